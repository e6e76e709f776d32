"""Arrays in windows."""

import pickle

import numpy as np
import pytest
import tifffile
from large_files import picture

from bench.common import process_kilobytes
from overfeat.errors import InputError
from overfeat.large import is_large, open_image

WINDOW = (slice(3, 70), slice(20, 33))


def pixels(image):
    return image.read(0, *WINDOW).permute(1, 2, 0).numpy()


def test_npy_files_and_mapped_arrays_in_any_layout(tmp_path):
    array = picture(101, 130)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "first.npy", array.transpose(2, 0, 1))
    mapped = np.memmap(tmp_path / "raw", np.uint8, "w+", shape=array.shape)
    mapped[:] = array
    assert is_large(tmp_path / "a.npy")
    for source in (
        tmp_path / "a.npy",
        str(tmp_path / "first.npy"),
        mapped,
        mapped[:, :],
        array,
        array.transpose(2, 0, 1),
    ):
        image = open_image(source)
        assert list(image.levels) == [(101, 130)]
        for opened in (image, pickle.loads(pickle.dumps(image))):
            assert np.array_equal(pixels(opened), array[WINDOW])
    assert len(pickle.dumps(open_image(mapped))) < 1000  # the file is named, not copied


def test_grey_and_chosen_channels():
    array = picture(101, 130)
    assert np.array_equal(pixels(open_image(array[..., 1])), np.repeat(array[..., 1:2], 3, 2)[WINDOW])
    many = np.concatenate([array, array[..., ::-1]], 2)
    assert np.array_equal(pixels(open_image(many, channels=(5, 1, 3))), array[..., [0, 1, 2]][WINDOW][..., [0, 1, 2]])
    assert np.array_equal(pixels(open_image(many, channels=[4])), np.repeat(array[..., 1:2], 3, 2)[WINDOW])
    with pytest.raises(
        InputError, match=r"^the array: has 6 channels; channels chooses one, or three as red, green and"
    ):
        open_image(many)
    with pytest.raises(
        InputError, match=r"^the array: has 6 channels; channels must be one or three numbers from 0 to 5"
    ):
        open_image(many, channels=(0, 6, 1))


def test_a_mapped_file_does_not_fill_the_memory(tmp_path):
    """The pages of a window are given back: of 96 MB as much is held as a window needs."""
    size, band = (8000, 4000, 3), 500
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, size).flush()
    tifffile.imwrite(tmp_path / "a.tif", shape=size, dtype=np.uint8, photometric="rgb", metadata=None)
    for name in ("a.npy", "a.tif"):
        image = open_image(tmp_path / name)
        image.read(0, slice(0, band), slice(None))
        mapped = process_kilobytes("RssFile")
        for top in range(0, size[0], band):
            image.read(0, slice(top, top + band), slice(None))
        assert process_kilobytes("RssFile") - mapped < 8 << 10
