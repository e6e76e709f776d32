"""TIFFs of every kind of pixels in windows: the values that `read_image` reads, and those that it cannot."""

import pickle
import warnings

import numpy as np
import pytest
import tifffile
from large_files import picture, write_pyramid

from overfeat.data.images import read_image
from overfeat.errors import InputError
from overfeat.large import is_large, open_image

RGB = picture(100, 130)
GREY = RGB[..., 0]
MASK = (GREY > 128)[..., None] * np.uint8(255)
PALETTE = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
WINDOW = (slice(3, 97), slice(60, 129))


def pixels(image, rows=slice(None), columns=slice(None), **options):
    """A window as [h, w, 3]."""
    return image.read(0, rows, columns, **options).permute(1, 2, 0).numpy()


def opened(path, **options):
    """An image, and what was reported of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = open_image(path, **options)
    return image, [str(warning.message) for warning in caught if warning.category is UserWarning]


def with_band(band, image=RGB):
    return np.concatenate([image, band.reshape(*band.shape[:2], 1)], axis=2)


def deep(image):
    return image.astype(np.uint16) * 200 + 77


KINDS = {
    "rgb": (RGB, {"photometric": "rgb"}),
    "planes": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    "grey": (GREY, {"photometric": "minisblack"}),
    "white is zero": (GREY, {"photometric": "miniswhite"}),
    "palette": (GREY, {"photometric": "palette", "colormap": PALETTE}),
    "8-bit palette": (GREY, {"photometric": "palette", "colormap": PALETTE >> 8}),
    "CMYK": (with_band(GREY), {"photometric": "separated"}),
    "alpha": (with_band(MASK), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": (with_band(MASK, RGB // 2), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "a fourth band": (with_band(GREY), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "grey and alpha": (with_band(MASK, RGB[..., :1]), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
    "near infrared as alpha": (with_band(GREY), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "16-bit grey": (deep(GREY), {"photometric": "minisblack"}),
    "16-bit white is zero": (deep(GREY), {"photometric": "miniswhite"}),
    "16-bit rgb": (deep(RGB), {"photometric": "rgb"}),
    "16-bit planes": (deep(RGB).transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    "bilevel": (GREY > 128, {"photometric": "minisblack"}),
    "bilevel white is zero": (GREY > 128, {"photometric": "miniswhite"}),
    "YCbCr JPEG": (RGB, {"photometric": "ycbcr", "compression": "jpeg"}),
    "RGB JPEG": (RGB, {"photometric": "rgb", "compression": "jpeg"}),
    "grey JPEG": (GREY, {"photometric": "minisblack", "compression": "jpeg"}),
    "CMYK JPEG": (with_band(GREY), {"photometric": "separated", "compression": "jpeg"}),
    "CIELAB, by Pillow": (RGB, {"photometric": "cielab"}),
    "big endian": (deep(RGB), {"photometric": "rgb", "byteorder": ">"}),
    "predictor": (RGB, {"photometric": "rgb", "compression": "lzw", "predictor": True}),
    "strips": (RGB, {"photometric": "rgb", "tile": None, "rowsperstrip": 7, "compression": "lzw"}),
    "one array": (deep(RGB), {"photometric": "rgb", "tile": None, "compression": None, "byteorder": ">"}),
    "planes of one array": (
        RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate", "tile": None, "compression": None},
    ),
    **{f"orientation {n}": (RGB, {"photometric": "rgb", "extratags": [(274, 3, 1, n, True)]}) for n in range(2, 9)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_pixels_that_read_image_reads(tmp_path, kind):
    array, options = KINDS[kind]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, metadata=None, **{"tile": (64, 64), "compression": "deflate", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = read_image(path).permute(1, 2, 0).numpy()
    assert not is_large(path)
    image, notes = opened(path)
    rows, columns = WINDOW if "orientation" not in kind else (slice(3, 97), slice(60, 99))
    for one in (image, pickle.loads(pickle.dumps(image))):
        assert np.array_equal(pixels(one), expected)
        assert np.array_equal(pixels(one, rows, columns), expected[rows, columns])
    wide, fourth = "values of 0 to 65,535 become 0 to 255; value_range changes this", "a fourth band is tagged as"
    note = wide if array.dtype == np.uint16 else fourth if kind == "near infrared as alpha" else None
    assert len(notes) == (note is not None) and (note is None or notes[0].startswith(f"{path}: {note}"))


def test_alpha_is_not_of_the_range_of_colours(tmp_path):
    path, options = tmp_path / "a.tif", {"extrasamples": ["unassalpha"], "tile": (64, 64), "metadata": None}
    opacity = np.where(GREY > 60, 255, 128).astype(np.uint8)
    tifffile.imwrite(path, with_band(opacity), photometric="rgb", **options)
    read = pixels(open_image(path, value_range=(0, 510)))
    assert abs(read - (255 - (255 - RGB / 2) * (opacity[..., None] / 255))).max() <= 1.5
    tifffile.imwrite(path, with_band(MASK, RGB[..., :1]), photometric="miniswhite", **options)
    assert np.array_equal(pixels(open_image(path))[..., 0], np.where(MASK[..., 0] == 255, 255 - GREY, 255))


def test_more_compressions(tmp_path):
    for compression in ("zstd", "jpeg2000", "jpegxl", "lerc", "png"):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64), compression=compression)
        assert np.array_equal(pixels(open_image(tmp_path / "a.tif"), *WINDOW), RGB[WINDOW]), compression


STACK = np.stack([GREY, 255 - GREY, GREY // 2])
SAID = "its channels 0, 1, 2 are read as red, green and blue; `channels` chooses others"
NAMES = {"Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}


@pytest.mark.parametrize(
    "array, options, note",
    [
        (STACK, {"imagej": True, "metadata": {"axes": "CYX"}}, SAID),
        (
            np.stack([STACK] * 2),
            {"imagej": True, "metadata": {"axes": "ZCYX"}},
            f"of 2 depths the first is read; {SAID}",
        ),
        (STACK, {"ome": True, "metadata": {"axes": "CYX", **NAMES}}, SAID.replace("0, 1, 2", "DAPI, FITC, Cy5")),
        (
            np.stack([STACK] * 2, 1),
            {"ome": True, "metadata": {"axes": "CZYX"}},
            f"of 2 depths the first is read; {SAID}",
        ),
        (np.stack([STACK] * 2), {"ome": True, "metadata": {"axes": "TCYX"}}, f"of 2 times the first is read; {SAID}"),
        (STACK[:, None, None], {"ome": True, "metadata": {"axes": "CTZYX"}}, SAID),
    ],
)
def test_channels_on_pages_of_their_own(tmp_path, array, options, note):
    path = tmp_path / "a.ome.tif"
    stored = {} if "imagej" in options else {"tile": (64, 64), "compression": "lzw"}
    tifffile.imwrite(path, array, photometric="minisblack", **stored, **options)
    image, notes = opened(path)
    assert notes == [f"{path}: {note}"]
    assert np.array_equal(pixels(image, *WINDOW), STACK.transpose(1, 2, 0)[WINDOW])
    chosen, notes = opened(path, channels=[2])
    assert np.array_equal(pixels(chosen)[..., 1], STACK[2]) and not any("are read as" in text for text in notes)


def test_many_channels_must_be_chosen(tmp_path):
    bands, path = np.concatenate([STACK, STACK[:1]]), tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CD8", "PanCK"]}}
    tifffile.imwrite(path, bands, photometric="minisblack", ome=True, metadata=metadata, tile=(64, 64))
    with pytest.raises(InputError) as caught:
        open_image(path)
    remedy = "channels chooses one, or three as red, green and blue, such as (0, 1, 2)"
    assert str(caught.value) == f"{path}: has 4 channels (DAPI, CD3, CD8, PanCK); {remedy}"
    assert np.array_equal(pixels(open_image(path, channels=(3, 2, 1))), bands[[3, 2, 1]].transpose(1, 2, 0))
    tifffile.imwrite(path, bands.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig", tile=(64, 64))
    assert np.array_equal(pixels(open_image(path, channels=(3, 2, 1))), bands[[3, 2, 1]].transpose(1, 2, 0))
    for wrong in ((0, 4, 1), (0, 1), (), "012", 3, (0.5,), (True,)):
        with pytest.raises(InputError, match=r"has 4 channels; channels must be one or three numbers from 0 to 3$"):
            open_image(path, channels=wrong)


def test_numbers_without_a_range(tmp_path):
    path = tmp_path / "a.tif"
    values = GREY.astype(np.float32) / 10 - 5
    values[0, 0] = np.nan
    for array in (values, GREY.astype(np.int16), GREY.astype(np.uint32)):
        tifffile.imwrite(path, array, photometric="minisblack", tile=(64, 64))
        with pytest.raises(InputError) as caught:
            open_image(path)
        remedy = "value_range says what black and white are, such as (0, 4095)"
        assert str(caught.value) == f"{path}: {array.dtype} numbers have no fixed range of brightness; {remedy}"
    tifffile.imwrite(path, values, photometric="minisblack", tile=(64, 64))
    scaled = pixels(open_image(path, value_range=(-5, 15)))[..., 0]
    expected = np.clip((np.nan_to_num(values, nan=-5) + 5) * 12.75, 0, 255)
    assert abs(scaled - expected).max() <= 0.5 + 1e-4 and scaled[0, 0] == 0
    with pytest.raises(InputError, match=r"^value_range must be the values of black and white"):
        open_image(path, value_range=(3, 3))


def test_a_dark_16_bit_image_is_said_to_be_dark(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY.astype(np.uint16) * 16, photometric="minisblack", tile=(64, 64))
    _, notes = opened(path)
    largest = f"{int(GREY.max()) * 16:,}"
    assert notes == [
        f"{path}: values of 0 to 65,535 become 0 to 255, and are {largest} at most in its middle; "
        "value_range changes this"
    ]
    image, notes = opened(path, value_range=(0, 4080))
    assert not notes and np.array_equal(pixels(image)[..., 0], GREY)


def test_pixels_without_colours(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="cfa", tile=(64, 64))
    with pytest.raises(InputError, match=r"a\.tif: pixels of 1 samples as CFA, no colours; convert it to RGB$"):
        open_image(tmp_path / "a.tif", channels=(0,))
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=PALETTE, tile=(64, 64))
    with pytest.raises(InputError, match=r"palette pixels have no channels to choose from; leave out `channels`$"):
        open_image(tmp_path / "a.tif", channels=(0,))


def test_missing_tiles_have_the_value_of_no_data(tmp_path):
    path = tmp_path / "a.tif"
    for tags, value in (([], 0), ([(42113, "s", 0, "255", True)], 255)):
        tiles = (tile for tile in [RGB[:64, :64], None, None, None, None, None])
        tifffile.imwrite(
            path, tiles, shape=RGB.shape, dtype=np.uint8, photometric="rgb", tile=(64, 64), extratags=tags,
            metadata=None, compression="deflate",
        )  # fmt: skip
        read = pixels(open_image(path))
        assert (
            np.array_equal(read[:64, :64], RGB[:64, :64])
            and (read[64:] == value).all()
            and (read[:, 64:] == value).all()
        )


def test_a_slide_of_aperio(tmp_path):
    """Levels beside a thumbnail and a label; tiles that were not scanned are white."""
    path = tmp_path / "a.svs"
    arrays = [RGB, RGB[::2, ::2], RGB[::4, ::4]]
    description = "Aperio Image Library v12\n130x100 [0,0 130x100] (64x64) J2K/YUV16|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "compression": "deflate", "metadata": None, "description": description}
        tiles = (tile for tile in [np.ascontiguousarray(RGB[:64, :64]), None, None, None, None, None])
        file.write(tiles, shape=RGB.shape, dtype=np.uint8, tile=(64, 64), **options)
        file.write(RGB[::3, ::3], **options)
        for array in [*arrays[1:], RGB[:40:4, ::8]]:
            file.write(array, tile=(32, 32), subfiletype=0, **options)
    image, notes = opened(path)
    assert list(image.levels) == [(100, 130), (50, 65), (25, 33)]
    assert notes == [f"{path}: the level of 10x17 px is not used, its sides are in another ratio"]
    read = pixels(image)
    assert np.array_equal(read[:64, :64], RGB[:64, :64]) and (read[64:] == 255).all() and (read[:, 64:] == 255).all()


def test_levels_of_a_pyramid_of_channels(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "minisblack", "tile": (64, 64)}
        file.write(STACK, subifds=1, metadata={"axes": "CYX"}, **options)
        file.write(STACK[:, ::2, ::2], subfiletype=1, **options)
    image, _ = opened(path)
    assert list(image.levels) == [(100, 130), (50, 65)]
    assert np.array_equal(image.read(1, slice(None), slice(None)).numpy(), STACK[:, ::2, ::2])
    write_pyramid(path, RGB)
    assert np.array_equal(pixels(open_image(path)), RGB)
