"""Opening and reading with arguments of wrong types, and without the packages: one line that says what is wrong."""

import importlib
import sys

import numpy as np
import pytest
import zarr
from large_files import picture, write_pyramid
from test_wrong_types import VALUES, problem_of

from overfeat.errors import InputError
from overfeat.large import is_large, open_image

ARRAY = picture(64, 80)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_pyramid(folder / "a.tif", ARRAY, tile=64, levels=1)
    np.save(folder / "a.npy", ARRAY)
    zarr.create_array(folder / "a.zarr", data=ARRAY)
    return [folder / "a.tif", folder / "a.npy", folder / "a.zarr", ARRAY]


def test_arguments_of_other_types(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [lambda value: open_image(value)]
    for file in files:
        image = open_image(file)
        calls += [
            lambda value, file=file: open_image(file, channels=value),
            lambda value, file=file: open_image(file, value_range=value),
            lambda value, image=image: image.read(value, slice(0, 9), slice(0, 9)),
            lambda value, image=image: image.read(0, value, slice(0, 9)),
            lambda value, image=image: image.read(0, slice(0, 9), value),
            lambda value, image=image: image.read(0, slice(value, 9), slice(0, value)),
        ]
    problems = [problem_of(lambda call=call, value=value: call(value)) for call in calls for value in VALUES]
    assert not [problem for problem in problems if problem]


def test_an_open_image_is_returned_as_it_is(files):
    image = open_image(files[0])
    assert open_image(image) is image
    for argument, value in (("channels", (0,)), ("value_range", (0, 1))):
        with pytest.raises(InputError, match=f"^{argument} is chosen when an image is opened; this one is open$"):
            open_image(image, **{argument: value})


@pytest.mark.parametrize(
    "package, file, message",
    [
        ("tifffile", "a.tif", r'large TIFF files need tifffile: pip install "overfeat\[large\]"$'),
        ("imagecodecs", "a.tif", r'large TIFF files need imagecodecs: pip install "overfeat\[large\]"$'),
        ("zarr", "a.zarr", r'zarr files need zarr: pip install "overfeat\[large\]"$'),
        ("openslide", "a.mrxs", r"slides of this kind need openslide: pip install openslide-python openslide-bin$"),
        ("rasterio", "a.vrt", r"files of this kind need rasterio: pip install rasterio$"),
    ],
)
def test_without_a_package(files, tmp_path, monkeypatch, package, file, message):
    importlib.import_module("overfeat.large.readers.open")
    monkeypatch.setitem(sys.modules, package, None)
    path = files[0].with_name(file)
    if not path.exists():
        path = tmp_path / file
        path.write_bytes(b"-")
    assert is_large(path) or file == "a.tif"
    with pytest.raises(InputError, match=message):
        open_image(path, channels=(0,))
