"""The pixels that read_image gives, for real files of every mode and format."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from image_files import GRADIENT, error_of, rows, saved
from PIL import Image, ImageOps

from overfeat.data.arrays import as_tensor
from overfeat.data.images import read_image


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_colour_is_read_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    image = read_image(saved(tmp_path, Image.fromarray(GRADIENT), name, **options))
    assert image.dtype == torch.uint8 and image.shape == (3, 6, 4) and image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), GRADIENT)


def test_a_string_path_and_a_name_without_suffix(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT), "photo", format="PNG")
    assert np.array_equal(read_image(str(path)).permute(1, 2, 0).numpy(), GRADIENT)


def test_grey_is_repeated(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 90, 255]], np.uint8)))
    assert rows(read_image(path)) == [[[0] * 3, [90] * 3, [255] * 3]]


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257 * 100, 257 * 200 + 128, 65535]], np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values), name))
    assert rows(image) == [[[v] * 3 for v in (0, 0, 1, 100, 200, 255)]]


def test_16_bit_pgm(tmp_path):
    path = tmp_path / "grey16.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 40, 65535))
    assert rows(read_image(path)) == [[[40] * 3, [255] * 3]]


def test_one_bit(tmp_path):
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert rows(read_image(saved(tmp_path, image))) == [[[0] * 3, [255] * 3, [0] * 3]]


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    image.putdata([0, 1, 2])
    return image


def test_palette(tmp_path):
    assert rows(read_image(saved(tmp_path, palette_image()))) == [[[10, 20, 30], [200, 100, 0], [7, 8, 9]]]


def test_icon_with_a_palette(tmp_path):
    icon = palette_image().resize((1024, 1024), Image.Resampling.NEAREST)
    image = read_image(saved(tmp_path, icon, "p.icns"))
    assert image.shape == (3, 1024, 1024) and image[:, 0, ::511].T.tolist() == [[10, 20, 30], [200, 100, 0], [7, 8, 9]]


@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_transparent_palette_entry_is_white(tmp_path, name):
    path = saved(tmp_path, palette_image(), name, transparency=1)
    assert rows(read_image(path)) == [[[10, 20, 30], [255, 255, 255], [7, 8, 9]]]


def test_alpha_over_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    image = read_image(saved(tmp_path, Image.fromarray(pixels)))
    assert rows(image) == [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]


def test_grey_alpha_over_white(tmp_path):
    pixels = np.array([[[50, 255], [50, 0], [0, 102]]], np.uint8)
    image = read_image(saved(tmp_path, Image.fromarray(pixels, "LA")))
    assert rows(image) == [[[50] * 3, [255] * 3, [153] * 3]]


def test_transparent_colour_key(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT[:1, :2].copy()), transparency=(9, 12, 15))
    assert rows(read_image(path)) == [[[0, 3, 6], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["c.tif", "c.jpg"])
def test_cmyk(tmp_path, name):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    options = {"quality": 100} if name.endswith("jpg") else {}
    red, green, blue = read_image(saved(tmp_path, image, name, **options))
    assert red.max() <= 3 and green.min() >= 252 and blue.min() >= 252


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    path = saved(tmp_path, Image.fromarray(GRADIENT), exif=exif)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), np.rot90(GRADIENT, -1))


def test_exif_rotation_of_a_jpeg(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 8
    image = read_image(saved(tmp_path, Image.fromarray(pixels), "turned.jpg", exif=exif, quality=95))
    assert image.shape == (3, 32, 16) and image[:, :14].min() > 240 and image[:, 18:].max() < 15


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(saved(tmp_path, Image.fromarray(GRADIENT), exif=exif))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), GRADIENT)


def exif_bytes(*entries):
    """An EXIF block with tags (tag, type, count, value), of which the first need not suit the second."""
    body, data, offset = struct.pack("<H", len(entries)), b"", 14 + 12 * len(entries)
    for tag, kind, count, value in sorted(entries):
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", offset + len(data))
        data += value if len(value) > 4 else b""
        body += struct.pack("<HHL", tag, kind, count) + place
    return b"Exif\0\0II" + struct.pack("<HL", 42, 8) + body + bytes(4) + data


ODD_TAGS = {
    "resolution -1/0": (0x11A, 10, 1, struct.pack("<ll", -1, 0)),
    "resolution as text": (0x11A, 2, 8, b"72/1\0\0\0\0"),
    "software as a fraction": (0x131, 5, 1, struct.pack("<LL", 1, 1)),
    "speed over 65,535": (0x8827, 4, 1, struct.pack("<L", 102400)),
    "negative width": (0x100, 9, 1, struct.pack("<l", -1)),
    "date as a number": (0x132, 4, 1, struct.pack("<L", 1700000000)),
}


@pytest.mark.parametrize("odd", ODD_TAGS.values(), ids=ODD_TAGS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_exif_tags_do_not_keep_a_photograph_from_being_turned(tmp_path, orientation, odd):
    turned = Image.fromarray(np.arange(24 * 16, dtype=np.uint8).reshape(24, 16) // 2)
    plain, path = tmp_path / "plain.jpg", tmp_path / "photo.jpg"
    tag = (0x112, 3, 1, struct.pack("<H", orientation))
    for target, tags in ((plain, [tag]), (path, [tag, odd])):
        turned.save(target, quality=95, exif=exif_bytes(*tags))
    image = read_image(path)
    assert image.shape == ((3, 24, 16) if orientation < 5 else (3, 16, 24))
    with Image.open(plain) as expected:
        assert np.array_equal(image[0].numpy(), np.asarray(ImageOps.exif_transpose(expected)))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


LARGE_TEXTS = {
    "colour profile": (b"iCCP", b"profile\0\0" + zlib.compress(bytes(1_500_000)), b"IDAT"),
    "compressed text": (b"zTXt", b"Raw\0\0" + zlib.compress(bytes(2_000_000)), b"IDAT"),
    "compressed text after the pixels": (b"zTXt", b"Raw\0\0" + zlib.compress(bytes(2_000_000)), b"IEND"),
    "compressed XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000)), b"IDAT"),
    "text of 68 MB": (b"tEXt", b"Comment\0" + b"x" * 68_000_000, b"IDAT"),
}


@pytest.mark.parametrize(("kind", "content", "place"), LARGE_TEXTS.values(), ids=LARGE_TEXTS)
def test_a_png_with_a_large_profile_or_text_is_read(tmp_path, kind, content, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(GRADIENT), exif=exif)
    data = path.read_bytes()
    at = data.index(place) - 4
    path.write_bytes(data[:at] + png_chunk(kind, content) + data[at:])
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_with_a_plane_of_16_bits_for_each_colour(tmp_path, orientation):
    values = np.arange(5 * 7 * 3, dtype=np.uint16).reshape(5, 7, 3) * 600
    path = tmp_path / "planes.tif"
    options = {"photometric": "rgb", "planarconfig": "separate", "extratags": [(0x112, "H", 1, orientation, True)]}
    expected = values >> 8
    expected = np.rot90(expected, -1) if orientation == 6 else expected
    for more in ({}, {"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 16)}):
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), **options, **more)
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


def packed(levels, bits):
    """Rows of levels as bytes, each of the given number of bits, and each row filled up to whole bytes."""
    texts = ["".join(f"{level:0{bits}b}" for level in row) for row in levels]
    return [int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8)) for text in texts]


def grey_tiff(path, levels, bits, compression=1):
    data = b"".join(packed(levels, bits))
    data = zlib.compress(data) if compression == 8 else data
    height, width = len(levels), len(levels[0])
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHLL", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in tags)
    path.write_bytes(
        struct.pack("<2sHL", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    return path


@pytest.mark.parametrize("compression", [1, 8])
def test_a_grey_tiff_of_12_bits(tmp_path, compression):
    path = grey_tiff(tmp_path / "g.tif", [[0, 2048, 4095], [16, 1000, 9]], 12, compression)
    assert read_image(path)[1].tolist() == [[0, 128, 255], [1, 62, 1]]
    with Image.open(path) as image:
        image.load()
        assert as_tensor(image)[1].tolist() == [[0, 128, 255], [1, 62, 1]]


@pytest.mark.parametrize("bits", [10, 14])
def test_a_tiff_of_bits_that_pillow_does_not_read(tmp_path, bits):
    assert "not an image that Pillow can read" in error_of(grey_tiff(tmp_path / "g.tif", [[0, 512, 1023, 7]], bits))


def with_alpha(depth):
    """RGBA and RGB over white of an image with a mask, of 8 or 16 bits, straight and premultiplied."""
    straight = np.random.default_rng(0).integers(0, 256, (20, 17, 4), np.uint8)
    straight[..., 3] = 255 * (straight[..., 3] > 99)
    straight[0, 0] = [10, 100, 200, 51]
    premultiplied = straight.copy()
    premultiplied[straight[..., 3] == 0] = 0
    premultiplied[0, 0] = [2, 20, 40, 51]
    expected = np.where(straight[..., 3:] == 0, 255, straight[..., :3])
    expected[0, 0] = [206, 224, 244]
    return [bands.astype(np.uint16) * 257 if depth == 16 else bands for bands in (straight, premultiplied)], expected


TIFFS = [{}, {"byteorder": ">"}, {"compression": "zlib"}]


@pytest.mark.parametrize("options", TIFFS, ids=str)
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_transparency_of_a_tiff(tmp_path, planar, depth, options):
    (straight, premultiplied), expected = with_alpha(depth)
    kinds = {"unassalpha": straight, "assocalpha": premultiplied, "unspecified": straight}
    if planar == "separate" and depth == 8 and "compression" not in options:
        del kinds["unspecified"]  # Pillow does not read it
    for kind, bands in kinds.items():
        values = np.moveaxis(bands, 2, 0) if planar == "separate" else bands
        path = tmp_path / f"{kind}.tif"
        tifffile.imwrite(path, values, photometric="rgb", planarconfig=planar, extrasamples=[kind], **options)
        image = read_image(path).permute(1, 2, 0).numpy()
        right = expected if kind != "unspecified" else bands[..., :3] // (257 if depth == 16 else 1)
        assert np.abs(image.astype(int) - right).max() <= (kind != "unspecified")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("extra", [0, 1])
def test_near_infrared_that_is_tagged_as_associated_alpha(tmp_path, depth, extra):
    if depth == 16 and extra:
        pytest.skip("Pillow does not read it")
    bands = np.random.default_rng(0).integers(1, 255, (9, 8, 4 + extra), np.uint8)
    values = bands.astype(np.uint16) * 257 if depth == 16 else bands
    kinds = ["assocalpha", "unspecified"][: 1 + extra]
    tifffile.imwrite(tmp_path / "nir.tif", values, photometric="rgb", planarconfig="contig", extrasamples=kinds)
    with pytest.warns(UserWarning, match="near-infrared"):
        assert np.array_equal(read_image(tmp_path / "nir.tif").permute(1, 2, 0).numpy(), bands[..., :3])
    with Image.open(tmp_path / "nir.tif") as image, pytest.warns(UserWarning, match="near-infrared"):
        assert np.array_equal(as_tensor(image).permute(1, 2, 0).numpy(), bands[..., :3])
        with Image.open(tmp_path / "nir.tif") as untouched:
            assert image.tobytes() == untouched.tobytes()


def test_grey_that_is_multiplied_by_alpha(tmp_path):
    bands = np.array([[[50, 255], [0, 0], [20, 51]]], np.uint8)
    tifffile.imwrite(
        tmp_path / "g.tif", bands, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]
    )
    assert rows(read_image(tmp_path / "g.tif")) == [[[50] * 3, [255] * 3, [224] * 3]]


def png(path, shape, bits, colour_type, lines, key):
    header = struct.pack(">IIBBBBB", *shape[::-1], bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    key = struct.pack(f">{len(key)}H", *key)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [0, 1, -2, -1])
def test_the_transparent_level_of_a_grey_png_is_white(tmp_path, bits, key):
    white = 2**bits - 1
    levels = sorted({0, 1, white - 1, white, white // 3})
    path = png(tmp_path / "g.png", (1, len(levels)), bits, 0, packed([levels], bits), [key % 2**bits])
    expected = [255 if level == key % 2**bits else round(level * 255 / white) for level in levels]
    assert rows(read_image(path)) == [[[level] * 3 for level in expected]]
    with Image.open(path) as image:
        assert rows(as_tensor(image)) == [[[level] * 3 for level in expected]]


def test_the_transparent_colour_of_an_rgb_png_of_16_bits_is_white(tmp_path):
    key = [0x1234, 0x5678, 0x9ABC]
    colours = [key, [0x1235, *key[1:]], [*key[:2], 0x9BBC], [0x34, 0x78, 0xBC], [0, 65535, 257]]
    lines = [struct.pack(">15H", *np.ravel(colours))]
    image = rows(read_image(png(tmp_path / "c.png", (1, 5), 16, 2, lines, key)))
    assert image == [[[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9B], [0, 0, 0], [0, 255, 1]]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_transparent_entry_of_a_palette_of_few_bits_is_white(tmp_path, bits):
    path = saved(tmp_path, palette_image(), bits=bits, transparency=1)
    assert rows(read_image(path)) == [[[10, 20, 30], [255, 255, 255], [7, 8, 9]]]


def tga(tmp_path, kind, bits, alpha_bits, pixels):
    """The two pixels of a file."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, 2, 1, bits, 0x20 | alpha_bits)
    (tmp_path / "a.tga").write_bytes(header + pixels + bytes(26))  # Pillow reads a footer
    return rows(read_image(tmp_path / "a.tga"))[0]


def test_a_tga_whose_header_says_whether_it_has_alpha(tmp_path):
    first, second = bytes([30, 20, 10, 0]), bytes([3, 2, 1, 255])  # blue, green, red, alpha
    assert tga(tmp_path, 2, 32, 0, first + second) == [[10, 20, 30], [1, 2, 3]]
    assert tga(tmp_path, 2, 32, 8, first + second) == [[255] * 3, [1, 2, 3]]
    assert tga(tmp_path, 10, 32, 0, b"\x80" + first + b"\0" + second) == [[10, 20, 30], [1, 2, 3]]  # runs of one pixel
    red = struct.pack("<2H", 0x7C00, 0xFC00)
    assert tga(tmp_path, 2, 16, 0, red) == [[255, 0, 0]] * 2
    assert tga(tmp_path, 2, 16, 1, red) == [[255, 0, 0], [255] * 3]  # as Pillow reads the bit: set where transparent
    assert tga(tmp_path, 3, 16, 0, bytes([40, 0, 50, 255])) == [[40] * 3, [50] * 3]
    assert tga(tmp_path, 3, 16, 8, bytes([40, 0, 50, 255])) == [[255] * 3, [50] * 3]


def test_a_16_bit_tiff_in_which_white_is_zero(tmp_path):
    tifffile.imwrite(tmp_path / "w.tif", np.array([[0, 65535, 257 * 55]], np.uint16), photometric="miniswhite")
    assert rows(read_image(tmp_path / "w.tif")) == [[[255] * 3, [0] * 3, [200] * 3]]


@pytest.mark.parametrize("factor", [1, 257])
def test_a_tiff_palette_of_8_or_16_bits(tmp_path, factor):
    colors = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)]).astype(np.uint16)
    indices = np.array([[0, 3, 255]], np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", indices, photometric="palette", colormap=colors * np.uint16(factor))
    assert rows(read_image(tmp_path / "p.tif")) == [[[0, 255, 7], [3, 252, 7], [255, 0, 7]]]


def test_the_transparent_level_of_16_bit_grey_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1000, 1001, 65535]], np.uint16))
    path = saved(tmp_path, image, transparency=1000)
    assert rows(read_image(path)) == [[[v] * 3 for v in (0, 255, 4, 255)]]


def test_set_bits_of_an_xbm_are_black(tmp_path):
    path = tmp_path / "ink.xbm"
    path.write_text("#define ink_width 8\n#define ink_height 1\nstatic char ink_bits[] = {\n0x05};\n")
    assert rows(read_image(path)) == [[[0] * 3, [255] * 3, [0] * 3] + [[255] * 3] * 5]


def test_a_fourth_band_of_a_tiff_that_is_no_mask(tmp_path):
    bands = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
    tifffile.imwrite(tmp_path / "nir.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.warns(UserWarning, match="near-infrared"):
        assert np.array_equal(read_image(tmp_path / "nir.tif").permute(1, 2, 0).numpy(), bands[..., :3])
    bands[..., 3] = 255 * (bands[..., 3] > 99)
    tifffile.imwrite(tmp_path / "mask.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(tmp_path / "mask.tif").permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.where(bands[..., 3:] == 0, 255, bands[..., :3]))


@pytest.mark.parametrize("name", ["m.gif", "m.tif"])
def test_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert rows(read_image(path)) == [[[255, 0, 0]] * 4] * 4


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_images_are_converted_by_strips(mode, orientation, tmp_path, monkeypatch):
    """As Pillow converts and turns the whole image."""
    levels = np.random.default_rng(0).integers(0, 256, (7, 11, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(levels, "RGBA").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "image.png", exif=exif)
    monkeypatch.setattr("overfeat.data.pixels.STRIP", 30)
    whole = Image.fromarray(levels[..., 0]) if mode == "I;16" else picture
    white = Image.new("RGBA", picture.size, "white")
    expected = Image.alpha_composite(white, whole.convert("RGBA")).convert("RGB")
    expected.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(expected))
    assert np.array_equal(read_image(tmp_path / "image.png").permute(1, 2, 0), expected)
