"""Zarr arrays and OME-Zarr pyramids of both formats, in windows."""

import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
import zarr
from large_files import halved, picture

from overfeat.errors import InputError
from overfeat.large import TileError, is_large, open_image

WINDOW = (slice(3, 70), slice(20, 133))
SHAPE = (140, 171)


def pixels(image, level=0, rows=slice(None), columns=slice(None), **options):
    """A window as [h, w, 3]."""
    return image.read(level, rows, columns, **options).permute(1, 2, 0).numpy()


def write_ome(path, array, axes, zarr_format=3, omero=None, levels=2, **options):
    """An OME-Zarr pyramid as its specifications 0.4 and 0.5 have it; `array` has these axes."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    order = [axes.index(axis) for axis in "yx"] + [i for i, axis in enumerate(axes) if axis not in "yx"]
    for level in range(levels):
        chunks = tuple(64 if axis in "yx" else 1 for axis in axes)
        group.create_array(str(level), data=array, chunks=chunks, **options)
        array = halved(array.transpose(order)).reshape(*(side // 2 for side in np.shape(array.transpose(order))[:2]), *(
            array.shape[i] for i in order[2:]
        )).transpose(np.argsort(order))  # fmt: skip
    named = [{"name": axis, "type": {"c": "channel", "t": "time"}.get(axis, "space")} for axis in axes]
    scales = [{"axes": named, "datasets": [{"path": str(level)} for level in range(levels)]}]
    described = {"multiscales": scales, **({"omero": omero} if omero else {})}
    group.attrs.update({"ome": {"version": "0.5", **described}} if zarr_format == 3 else described)
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_pyramids_of_both_formats(tmp_path, zarr_format):
    array = picture(*SHAPE)
    path = write_ome(tmp_path / "a.zarr", array.transpose(2, 0, 1)[None, :, None], "tczyx", zarr_format)
    image = open_image(path)
    assert is_large(path) and list(image.levels) == [SHAPE, (70, 85)] and image.tile == (64, 64)
    for opened in (image, pickle.loads(pickle.dumps(image))):
        assert np.array_equal(pixels(opened, 0, *WINDOW), array[WINDOW])
        assert np.array_equal(pixels(opened, 1), halved(array))
    assert np.array_equal(pixels(open_image(path, channels=(2, 0, 1)), 0, *WINDOW), array[..., [2, 0, 1]][WINDOW])
    assert np.array_equal(pixels(open_image(path, channels=[1]))[..., 2], array[..., 1])


def test_arrays_without_a_pyramid(tmp_path):
    array = picture(*SHAPE)
    zarr.create_array(tmp_path / "last", data=array, chunks=(64, 64, 3), shards=(128, 128, 3))
    zarr.create_array(tmp_path / "first", data=array.transpose(2, 0, 1), chunks=(3, 64, 64), zarr_format=2)
    zarr.create_array(tmp_path / "grey", data=array[..., 0], dimension_names=["y", "x"])
    zarr.create_group(tmp_path / "one").create_array("image", data=array)
    for name in ("last", "first", "one"):
        assert np.array_equal(pixels(open_image(tmp_path / name), 0, *WINDOW), array[WINDOW]), name
        assert is_large(tmp_path / name)
    names = ["Latitude", "longitude", "Band"]
    zarr.create_array(tmp_path / "map", data=array.transpose(1, 0, 2), dimension_names=["lon", "lat", "channel"])
    zarr.create_array(tmp_path / "geographic", data=array, dimension_names=names)
    for name in ("map", "geographic"):
        assert np.array_equal(pixels(open_image(tmp_path / name)), array), name
    assert np.array_equal(pixels(open_image(tmp_path / "grey")), np.repeat(array[..., :1], 3, 2))
    archive = shutil.make_archive(tmp_path / "last.zarr", "zip", tmp_path / "last")
    assert is_large(archive) and np.array_equal(pixels(open_image(archive), 0, *WINDOW), array[WINDOW])


def test_what_was_adapted_is_said_once(tmp_path):
    array = np.zeros((2, 3, 140, 171), np.uint16)
    array[0, 1] = 4000
    omero = {"channels": [{"label": label} for label in ("DAPI", "FITC", "Cy5")]}
    path = write_ome(tmp_path / "a.zarr", array, "tcyx", omero=omero, levels=1)
    with pytest.warns(UserWarning) as caught:
        image = open_image(path)
    notes = [
        "its channels DAPI, FITC, Cy5 are read as red, green and blue; `channels` chooses others",
        "of 2 times the first is read",
        "values of 0 to 65,535 become 0 to 255, and are 4,000 at most in its middle; value_range changes this",
    ]
    assert [str(warning.message) for warning in caught] == [f"{path}: {'; '.join(notes)}"]
    assert pixels(image)[5, 5].tolist() == [0, 15, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(image))
    with pytest.warns(UserWarning, match="zarr: of 2 times the first is read$"):
        chosen = open_image(path, channels=(1, 1, 0), value_range=(0, 8000))
    assert pixels(chosen)[5, 5].tolist() == [128, 128, 0]


def test_a_damaged_chunk_is_named_and_a_missing_one_has_the_fill_value(tmp_path):
    array = picture(*SHAPE)
    path = write_ome(tmp_path / "a.zarr", array.transpose(2, 0, 1), "cyx")
    (path / "0/c/1/1/2").write_bytes(b"no chunk")
    (path / "0/c/0/0/0").unlink()
    image = open_image(path)
    with pytest.raises(TileError) as caught:
        image.read(0, slice(0, 140), slice(0, 171))
    error = caught.value
    assert str(error).startswith(f"{path}: damaged tile at level 0, rows 64 to 128, columns 128 to 171 (")
    assert (error.level, error.rows, error.columns) == (0, slice(64, 128), slice(128, 171))
    damaged = []
    read = pixels(image, damaged=damaged)
    assert [str(one) for one in damaged] == [str(error)]
    expected = array.copy()
    expected[:64, :64, 0] = 0
    expected[64:128, 128:] = 255
    assert np.array_equal(read, expected)


def edited(path, change):
    """Change the attributes of a group of format 3."""
    content = json.loads((path / "zarr.json").read_text())
    change(content["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(content))


def test_missing_levels(tmp_path):
    array = picture(*SHAPE)
    path = write_ome(tmp_path / "a.zarr", array.transpose(2, 0, 1), "cyx")
    shutil.rmtree(path / "1")
    with pytest.warns(UserWarning, match=r"a\.zarr: its level 1 is missing and is not used$"):
        assert list(open_image(path).levels) == [SHAPE]
    shutil.rmtree(path / "0")
    with pytest.raises(InputError, match=r"a\.zarr: its level 0 is missing; copy or export it again$"):
        open_image(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ome: ome.update(multiscales=[]), "the multiscales of its metadata are damaged (IndexError: list index"),
        (lambda ome: ome["multiscales"][0].pop("datasets"), "the multiscales of its metadata are damaged (KeyError: "),
        (
            lambda ome: ome["multiscales"][0]["axes"].pop(),
            "the axes 'cy' of its metadata do not fit arrays of shape [(",
        ),
        (
            lambda ome: ome.update(plate={"wells": [{"path": "B/2"}]}),
            "a plate of 1 wells; give one image of a well, such ",
        ),
        (lambda ome: ome.pop("multiscales"), "a zarr group that describes no image, it has 0, 1; give the path of an "),
    ],
)
def test_damaged_metadata(tmp_path, change, message):
    path = write_ome(tmp_path / "a.zarr", picture(*SHAPE).transpose(2, 0, 1), "cyx")
    edited(path, change)
    with pytest.raises(InputError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_no_zarr(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r": cannot be read as zarr \(.*\); copy or export it again$"):
        open_image(tmp_path)


def test_the_first_image_of_bioformats2raw(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    array = picture(*SHAPE)
    for number in ("0", "1"):
        write_ome(tmp_path / "a.zarr" / number, array.transpose(2, 0, 1)[None, :, None], "tczyx", 2)
    root.create_group("OME")
    with pytest.warns(UserWarning, match=r"of 2 images the first, .*a\.zarr/0, is read$"):
        assert np.array_equal(pixels(open_image(tmp_path / "a.zarr")), array)
