"""TIFFs in windows: every window is the same part of the level, and enormous files cost no memory."""

import pickle

import numpy as np
import pytest
from large_files import DISTINCT, SPARSE_TILE, picture, write_enormous, write_pyramid
from PIL import Image

from overfeat.large import is_large, open_image


def pixels(image, level=0, rows=slice(None), columns=slice(None)):
    """A window as [h, w, 3]."""
    return image.read(level, rows, columns).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"sub_ifds": True}, {"bigtiff": True, "compression": "lzw"}, {"compression": None}],
    ids=str,
)
def test_windows_are_parts_of_their_level(tmp_path, options):
    path = tmp_path / "a.tif"
    arrays = write_pyramid(path, picture(301, 418), tile=64, **options)
    image = open_image(path)
    assert list(image.levels) == [(301, 418), (150, 209), (75, 104)]
    assert (image.tile, image.georeference, image.name) == ((64, 64), None, str(path))
    for level, array in enumerate(arrays):
        assert np.array_equal(pixels(image, level), array)
        for rows, columns in (
            (slice(0, 1), slice(0, 1)),
            (slice(63, 66), slice(60, 104)),
            (slice(70, 75), slice(3, 9)),
        ):
            assert np.array_equal(pixels(image, level, rows, columns), array[rows, columns])
    again = pickle.loads(pickle.dumps(image))
    image.close()
    assert np.array_equal(pixels(again, 2), arrays[2])
    assert is_large(path)


def test_a_file_of_ten_gigapixels(tmp_path):
    path = tmp_path / "a.tif"
    tiles = write_enormous(path, 100_000, 100_000)
    image = open_image(path)
    assert is_large(path) and image.levels[0] == (100_000, 100_000) and image.levels[-1] == (1562, 1562)
    row, column = 170, 133
    window = pixels(image, 0, *(slice(i * SPARSE_TILE, (i + 1) * SPARSE_TILE) for i in (row, column)))
    difference = window.astype(int) - tiles[(3 * row + column) % DISTINCT]
    assert abs(difference).mean() < 6 and abs(difference.mean()) < 0.5


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    write_enormous(tmp_path / "a.tif", 700, 1100)
    with Image.open(tmp_path / "a.tif") as file:
        assert np.array_equal(pixels(open_image(tmp_path / "a.tif")), np.asarray(file))
