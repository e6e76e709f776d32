"""Reading of large images: every reader reads the windows."""

import numpy as np
import pytest

from bench.enormous import write_enormous
from bench.large_reading import READERS, WINDOW, measure, write_zarr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_zarr(folder / "a.zarr", write_enormous(folder / "a.tif", 2600, 2600), 2600)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_the_same_window(folder, reader):
    opened, name = READERS[reader]
    pixels = [
        np.asarray(read(700, 900))
        for read in (opened(folder / name), READERS["overfeat, JPEG TIFF"][0](folder / "a.tif"))
    ]
    height_first = [image if image.shape == (3, WINDOW, WINDOW) else image.transpose(2, 0, 1) for image in pixels]
    difference = abs(height_first[0].astype(int) - height_first[1])
    assert difference.mean() < (6 if "Zarr" in reader else 2)  # JPEG changes the pixels, and its decoders differ


def test_windows_are_measured(folder):
    measured = measure("overfeat, JPEG TIFF", folder, 2600, 2)
    assert measured["ms"] > 0 and measured["MiB"] >= 0
