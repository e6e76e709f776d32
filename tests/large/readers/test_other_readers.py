"""Files that openslide and rasterio read, and what they say of files that both they and tifffile read."""

import pickle
import warnings

import imagecodecs
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from large_files import picture, write_enormous, write_pyramid
from PIL import Image
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from overfeat.errors import InputError
from overfeat.large import Georeference, TileError, is_large, open_image
from overfeat.large.readers.openslide import SlideImage
from overfeat.large.readers.rasterio import RasterImage

TRANSFORM = Affine(0.25, 0, 500_000, 0, -0.25, 6_000_000)


def pixels(image, level=0, rows=slice(None), columns=slice(None), **options):
    """A window as [h, w, 3]."""
    return image.read(level, rows, columns, **options).permute(1, 2, 0).numpy()


def test_openslide_reads_the_same_pixels_as_tifffile(tmp_path):
    path = tmp_path / "a.tif"
    write_enormous(path, 3000, 2500, levels=2)
    by_tifffile, by_openslide = open_image(path), SlideImage(path)
    assert by_openslide.levels == by_tifffile.levels and by_openslide.tile == by_tifffile.tile
    for level in (0, 1):
        window = level, slice(300, 700), slice(200, 1100)
        for image in (by_openslide, pickle.loads(pickle.dumps(by_openslide))):
            assert np.array_equal(pixels(image, *window), pixels(by_tifffile, *window))
    green = pixels(SlideImage(path, channels=[1]), 0, slice(0, 50), slice(0, 60))
    assert np.array_equal(green[..., 0], pixels(by_tifffile, 0, slice(0, 50), slice(0, 60))[..., 1])


def test_a_damaged_tile_of_a_slide(tmp_path):
    path = tmp_path / "a.tif"
    write_enormous(path, 1500, 2500, levels=1)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8", 17)  # the second tile
    content[start : start + 1000] = bytes(1000)
    path.write_bytes(content)
    damaged = []
    read = pixels(SlideImage(path), 0, slice(0, 512), slice(0, 1536), damaged=damaged)
    assert [(error.rows, error.columns) for error in damaged] == [(slice(0, 512), slice(512, 1024))]
    assert (read[:, 512:1024] == 255).all() and (read[:, :512] < 255).all()
    with pytest.raises(TileError, match=r"damaged tile at level 0, rows 0 to 512, columns 512 to 1024 \("):
        pixels(SlideImage(path), 0, slice(0, 512), slice(0, 1536))


@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_of_aperio(tmp_path, compression):
    """Stored as YCbCr in one of its two kinds, whatever the tags say; openslide knows it, too."""
    array, path = picture(200, 260), tmp_path / "a.svs"
    stored = np.asarray(Image.fromarray(array).convert("YCbCr")) if compression == 33003 else array
    stored = np.pad(stored, ((0, 56), (0, 124), (0, 0)))
    corners = [(y, x) for y in (0, 128) for x in (0, 128, 256)]
    parts = (np.ascontiguousarray(stored[y : y + 128, x : x + 128]) for y, x in corners)
    coding = {"level": 0, "codecformat": "j2k", "mct": False, "reversible": True}
    tiles = (imagecodecs.jpeg2k_encode(part, **coding) for part in parts)
    description = "Aperio Image Library v10.0.51\n260x200 [0,0 260x200] (128x128) J2K/YUV16 Q=30|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(
        path, tiles, shape=array.shape, dtype="uint8", photometric="rgb", tile=(128, 128), compression=compression,
        description=description, metadata=None,
    )  # fmt: skip
    for image in (open_image(path), SlideImage(path)):
        assert abs(pixels(image).astype(int) - array).max() <= 3


def test_no_slide(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"no slide")
    assert is_large(tmp_path / "a.mrxs")
    with pytest.raises(
        InputError, match=r"a\.mrxs: openslide cannot read it \(.+\); copy the file again, with the folder"
    ):
        open_image(tmp_path / "a.mrxs")


def write_raster(path, array, overviews=(), crs="EPSG:32633", driver="GTiff", **options):
    """An array [bands, H, W] in a file of GDAL's."""
    size = {"height": array.shape[1], "width": array.shape[2], "count": len(array), "dtype": array.dtype}
    with rasterio.open(path, "w", driver, crs=crs, transform=TRANSFORM, **size, **options) as file:
        file.write(array)
        if overviews:
            file.build_overviews(overviews, rasterio.enums.Resampling.average)
    return path


@pytest.mark.parametrize("crs, epsg, geographic", [("EPSG:32633", 32633, False), ("EPSG:4326", 4326, True)])
def test_geotiffs_of_gdal_have_the_same_pixels_and_georeference(tmp_path, crs, epsg, geographic):
    array = picture(300, 411).transpose(2, 0, 1)
    path = write_raster(tmp_path / "a.tif", array, (2, 4), crs, tiled=True, blockxsize=64, blockysize=64)
    by_tifffile, by_gdal = open_image(path), RasterImage(path)
    expected = Georeference((0.25, 0, 500_000, 0, -0.25, 6_000_000), epsg, geographic)
    assert by_tifffile.georeference == by_gdal.georeference == expected
    assert list(by_tifffile.levels) == list(by_gdal.levels) == [(300, 411), (150, 206), (75, 103)]
    assert by_tifffile.tile == by_gdal.tile == (64, 64)
    for level in range(3):
        window = level, slice(7, 70), slice(0, 101)
        for image in (by_gdal, pickle.loads(pickle.dumps(by_gdal))):
            assert np.array_equal(pixels(image, *window), pixels(by_tifffile, *window))
    assert np.array_equal(pixels(by_gdal), array.transpose(1, 2, 0))


BANDS = np.concatenate([picture(300, 411), picture(300, 411)[..., :1]], 2).transpose(2, 0, 1)
WIDE = BANDS.astype(np.uint16) * 8
MASKED = np.where(BANDS[3:] > 120, 255, 0).astype(np.uint8)
LAYOUTS = {
    "16 bits": (WIDE, {"predictor": 2}, {"channels": (2, 1, 0)}),
    "planes of 12 bits": (WIDE, {"interleave": "band", "nbits": 12}, {"channels": (3, 1, 0)}),
    "12 bits": (WIDE, {"interleave": "pixel", "nbits": 12}, {"channels": [3]}),
    "alpha": (np.concatenate([BANDS[:3], MASKED]), {"photometric": "RGB", "alpha": "YES"}, {}),
    "heights": (BANDS[:1].astype(np.float32) * 3, {"predictor": 3, "nodata": -9999}, {"value_range": (0, 765)}),
    "signed": (BANDS[:1].astype(np.int16) * 3, {"compress": "zstd"}, {"value_range": (100, 700)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_gdal_are_read_as_gdal_reads_them(tmp_path, layout):
    array, options, chosen = LAYOUTS[layout]
    options = {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64, **options}
    path = write_raster(tmp_path / "a.tif", array, (2, 4), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_tifffile, by_gdal = open_image(path, **chosen), RasterImage(path, **chosen)
    assert len(by_tifffile.levels) == 3 and is_large(path)
    for level in range(3):
        assert np.array_equal(pixels(by_tifffile, level), pixels(by_gdal, level))


def test_a_cog_with_a_mask(tmp_path):
    """The mask is a page between the levels."""
    array, path = BANDS[:3], tmp_path / "a.tif"
    size = {"height": 300, "width": 411, "count": 3, "dtype": "uint8", "blocksize": 128}
    with rasterio.open(path, "w", "COG", crs="EPSG:32633", transform=TRANSFORM, compress="deflate", **size) as file:
        file.write(array)
        file.write_mask(MASKED[0])
    image = open_image(path)
    assert is_large(path) and list(image.levels) == [(300, 411), (150, 205), (75, 102)]
    assert np.array_equal(pixels(image), array.transpose(1, 2, 0))


def test_points_and_rotated_grids(tmp_path):
    turned = Affine(0.2, 0.1, 500_000, 0.1, -0.2, 6_000_000)
    for name, options in (("point", {"AREA_OR_POINT": "Point"}), ("turned", {})):
        transform = TRANSFORM if name == "point" else turned
        with rasterio.open(
            tmp_path / name, "w", "GTiff", width=64, height=64, count=1, dtype="uint8", crs="EPSG:32633",
            transform=transform,
        ) as file:  # fmt: skip
            file.write(np.zeros((1, 64, 64), np.uint8))
            file.update_tags(**options)
        georeference = open_image(tmp_path / name).georeference
        assert georeference.transform == pytest.approx(tuple(transform)[:6]) and georeference.epsg == 32633


def test_a_reference_system_without_a_number_is_reported(tmp_path):
    path = write_raster(tmp_path / "a.tif", picture(64, 64).transpose(2, 0, 1), crs="+proj=laea +lat_0=51.5 +lon_0=7")
    with pytest.warns(UserWarning, match=r"a\.tif: its coordinate reference system has no EPSG number: GeoJSON is in"):
        image = open_image(path)
    assert image.georeference.epsg is None and image.georeference.transform == tuple(TRANSFORM)[:6]


def test_files_of_gdal_alone(tmp_path):
    array = picture(300, 411).transpose(2, 0, 1)
    tif = write_raster(tmp_path / "a.tif", array)
    img = write_raster(tmp_path / "a.img", array, driver="HFA")
    with rasterio.open(tif) as file, WarpedVRT(file) as warped:
        rasterio.shutil.copy(warped, tmp_path / "a.vrt", driver="VRT")
    for path in (img, tmp_path / "a.vrt"):
        image = open_image(path)
        assert is_large(path) and isinstance(image, RasterImage) and image.georeference.epsg == 32633
        assert np.array_equal(pixels(image), array.transpose(1, 2, 0))
    bands = np.concatenate([array, array[:1]]).astype(np.uint16) * 16
    many = write_raster(tmp_path / "b.img", bands, driver="HFA")
    with pytest.raises(InputError, match=r"b\.img: has 4 channels; channels chooses one, or three as red, green"):
        open_image(many)
    chosen = open_image(many, channels=(2, 1, 3), value_range=(0, 4080))
    assert np.array_equal(pixels(chosen), array[[2, 1, 0]].transpose(1, 2, 0))


def test_large_jpeg_2000(tmp_path):
    array = picture(300, 411)
    Image.fromarray(array).save(tmp_path / "a.jp2", irreversible=False)
    assert not is_large(tmp_path / "a.jp2") and is_large(tmp_path / "a.jp2", max_pixels=1000)
    image = open_image(tmp_path / "a.jp2", max_pixels=1000)
    assert isinstance(image, RasterImage) and np.array_equal(pixels(image), array)


def test_no_raster(tmp_path):
    (tmp_path / "a.vrt").write_bytes(b"no raster")
    with pytest.raises(InputError, match=r"a\.vrt: GDAL cannot read it \(.+\); convert it to a tiled TIFF$"):
        open_image(tmp_path / "a.vrt")


def test_a_pyramid_of_gdal_beside_the_file_is_not_needed(tmp_path):
    array = picture(300, 411)
    write_pyramid(tmp_path / "a.tif", array, levels=1)
    assert np.array_equal(pixels(RasterImage(tmp_path / "a.tif")), array)
