"""Maps as OME-Zarr and GeoTIFF, read by zarr, tifffile and rasterio."""

import json

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from affine import Affine

from overfeat.errors import InputError
from overfeat.large.map_file import MapFile, MapPositions, chunk_sides, halve
from overfeat.large.map_tiff import map_transform, write_map_tiff
from overfeat.large.readers.georeference import Georeference

NAMES = ["benign", "a < b é"]
POSITIONS = MapPositions((300, 521), (23.5, 31.5), (8.0, 10.0))
BLOCK = (128, 128)


@pytest.fixture(scope="module")
def values():
    values = np.random.default_rng(0).random((2, *POSITIONS.shape), dtype=np.float32)
    values[:, :128, 128:256] = np.nan  # a block that is not written
    return values


@pytest.fixture(scope="module")
def maps(values, tmp_path_factory):
    """A file that two writers wrote in turns, the last block first."""
    path = tmp_path_factory.mktemp("maps") / "heat.zarr"
    writers = [
        MapFile.create(path, POSITIONS, NAMES, block=BLOCK, title="slide.tif", attributes={"scale": 1.0}),
        MapFile(path),
    ]
    for number, (top, left) in enumerate([(r, c) for r in (256, 128, 0) for c in range(512, -1, -128)]):
        block = np.s_[:, top : top + 128, left : left + 128]
        if (top, left) != (0, 128):
            writers[number % 2].write(block[1], block[2], values[block])
    writers[0].build_levels()
    return writers[0]


def test_zarr_reads_the_values_and_the_levels_are_maxima(maps, values):
    group = zarr.open_group(maps.path, mode="r")
    np.testing.assert_array_equal(group["0"][:], values)
    assert [group[name].shape for name in "012"] == [(2, 300, 521), (2, 150, 261), (2, 75, 131)]
    assert "3" not in group
    padded = np.pad(values, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan).reshape(2, 150, 2, 261, 2)
    np.testing.assert_array_equal(group["1"][:], np.fmax.reduce(np.fmax.reduce(padded, 4), 2))
    assert np.isnan(group["2"][:, :31, 33:63]).all() and np.nanmax(group["2"][1]) == np.nanmax(values[1])


def test_metadata_are_those_of_ome_zarr(maps):
    attributes = json.loads((maps.path / ".zattrs").read_text())
    (image,) = attributes["multiscales"]
    assert image["version"] == "0.4" and image["name"] == "slide.tif"
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis["type"] for axis in image["axes"]] == ["channel", "space", "space"]
    assert [entry["path"] for entry in image["datasets"]] == ["0", "1", "2"]
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1, 8, 10]},
        {"type": "translation", "translation": [0, 23, 31]},  # from pixel centre to pixel centre
    ]
    # A pixel of level 1 is the mean position of the 2 x 2 that it stands for.
    assert image["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1, 16, 20]},
        {"type": "translation", "translation": [0, 27, 36]},
    ]
    channels = attributes["omero"]["channels"]
    assert [channel["label"] for channel in channels] == NAMES
    assert all(len(channel["color"]) == 6 and channel["window"]["max"] == 1 for channel in channels)
    assert attributes["overfeat"] == {"scale": 1.0}
    array = json.loads((maps.path / "0" / ".zarray").read_text())
    assert array["zarr_format"] == 2 and array["dimension_separator"] == "/" and array["dtype"] == "<f4"


def test_positions_and_names_are_read_again(maps):
    assert maps.positions == POSITIONS and maps.names == NAMES


def test_a_mirrored_copy(maps, values, tmp_path):
    copy = maps.mirrored(tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copy.levels[0][:], values[..., ::-1])
    assert np.isnan(copy.levels[1][:]).all() and copy.positions == POSITIONS


def test_features_have_one_level_and_no_colours(tmp_path):
    maps = MapFile.create(tmp_path / "f.zarr", POSITIONS, 40, block=BLOCK, title="slide.tif", pyramid=False)
    assert [level.shape for level in maps.levels] == [(40, 300, 521)]
    assert "omero" not in json.loads((tmp_path / "f.zarr" / ".zattrs").read_text())


def test_chunks_divide_the_blocks():
    assert chunk_sides((128, 256)) == (128, 256)
    assert chunk_sides((2048, 600)) == (512, 300)
    assert chunk_sides((1021, 1)) == (1021, 1)  # a prime number of rows


def test_halving_an_odd_map_leaves_nan_out():
    values = np.array([[[1, np.nan, 3], [4, 2, np.nan], [np.nan, np.nan, np.nan]]], np.float32)
    np.testing.assert_array_equal(halve(values), [[[4, 3], [np.nan, np.nan]]])


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(InputError, match=r"a\.zarr: no maps of overfeat's"):
        MapFile(tmp_path / "a.zarr")


GEOREFERENCES = {
    "projected": Georeference((0.5, 0.0, 4e5, 0.0, -0.5, 5e6), 32633),
    "degrees": Georeference((1e-5, 0.0, 13.0, 0.0, -1e-5, 52.0), 4326, geographic=True),
    "turned": Georeference((0.5, 0.1, 4e5, 0.1, -0.5, 5e6), 32633),
}


@pytest.mark.parametrize("kind", GEOREFERENCES)
def test_rasterio_reads_the_geotiff(kind, maps, values, tmp_path):
    georeference = GEOREFERENCES[kind]
    write_map_tiff(tmp_path / "heat.tif", maps, georeference)
    with rasterio.open(tmp_path / "heat.tif") as file:
        np.testing.assert_array_equal(file.read(), values)
        assert file.crs.to_epsg() == georeference.epsg and np.isnan(file.nodata)
        assert file.descriptions == tuple(NAMES) and file.profile["tiled"] and file.overviews(1) == [2, 4]
        level = file.read(out_shape=(2, 150, 261))
        np.testing.assert_array_equal(level, maps.levels[1][:])
        # The centre of the pixel of row 3, column 5 is that of the window there.
        x, y = Affine(*georeference.transform) @ (31.5 + 5 * 10, 23.5 + 3 * 8)
        assert file.xy(3, 5) == pytest.approx((x, y))
    assert map_transform(POSITIONS, georeference)[0] == pytest.approx(10 * georeference.transform[0])


def test_tifffile_reads_the_tiff_of_an_image_without_georeference(maps, values, tmp_path):
    write_map_tiff(tmp_path / "heat.tif", maps)
    with tifffile.TiffFile(tmp_path / "heat.tif") as file:
        assert [page.shape for page in file.pages] == [(2, 300, 521), (2, 150, 261), (2, 75, 131)]
        assert all(page.is_tiled for page in file.pages) and [page.is_reduced for page in file.pages] == [0, 1, 1]
        assert not file.pages[0].is_geotiff
        np.testing.assert_array_equal(file.pages[0].asarray(), values)
