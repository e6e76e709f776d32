"""Score maps and layers of large images, block by block: equal to those of the image in memory."""

import os

import numpy as np
import pytest
import rasterio
import torch
import zarr
from large_files import picture, write_pyramid
from torch import nn

import overfeat
from overfeat.dense.evaluate import score_maps
from overfeat.dense.heat_maps import class_scores
from overfeat.dense.layer_output import find_layer, layer_output
from overfeat.errors import InputError, WriteError
from overfeat.large import blocks, classify_large, open_image
from overfeat.large.config import LargeConfig
from overfeat.large.layers import write_layer_output
from overfeat.large.score_maps import write_score_maps

NAMES = ["sound", "cracked", "dusty"]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    return overfeat.densify(nn.Sequential(*layers), 15, std=255, class_names=NAMES, check=False)


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(picture(300, 340)).permute(2, 0, 1)


@pytest.fixture
def file(image, tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, image.permute(1, 2, 0).numpy(), levels=1, tile=64)
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 128)
    monkeypatch.setattr("overfeat.large.layers.BLOCK", 128)


def arrays(path, count=1):
    """The finest level of each image of an OME-Zarr file."""
    group = zarr.open_group(path, mode="r")
    return [group["0"][:]] if count == 1 else [group[f"{number}/0"][:] for number in range(count)]


def of_memory(maps):
    """Maps of an image in memory, those of mirror images turned round."""
    return [m.scores[0].numpy()[..., :: -1 if m.grid.flipped else 1] for m in maps]


@pytest.mark.parametrize(
    "options", [{"stride": 4}, {"stride": 6, "flip": True, "scales": [1.0, 0.61]}], ids=["one", "mirrored"]
)
def test_maps_are_those_of_the_image_in_memory(options, net, image, file, tmp_path):
    scores = write_score_maps(net, file, tmp_path / "heat.zarr", **options)
    maps = score_maps(net, image, **options)
    for own, expected in zip(arrays(tmp_path / "heat.zarr", len(maps)), of_memory(maps), strict=True):
        np.testing.assert_array_equal(own, expected)
    assert torch.equal(scores, class_scores(maps))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heat.zarr", "slide.tif"]
    if len(maps) > 1:
        group = zarr.open_group(tmp_path / "heat.zarr", mode="r")
        assert group.attrs["bioformats2raw.layout"] == 3 and group["OME"].attrs["series"] == ["0", "1", "2", "3"]
    else:
        group = zarr.open_group(tmp_path / "heat.zarr", mode="r")
        assert group["0"].chunks[1:] == (24, 28)  # whole blocks


@pytest.mark.parametrize("flip", [False, True])
def test_metadata_are_the_centres_of_the_windows(flip, net, file, tmp_path):
    config = LargeConfig(region=(20, 10, 300, 250))
    write_score_maps(net, file, tmp_path / "heat.zarr", scales=[0.5], flip=flip, stride=4, large=config)
    image = zarr.open_group(tmp_path / "heat.zarr", mode="r")
    image = (image["1"] if flip else image).attrs["multiscales"][0]
    scale, shift = (change[change["type"]][1:] for change in image["datasets"][0]["coordinateTransformations"])
    whole = torch.from_numpy(picture(300, 340)).permute(2, 0, 1)
    grid = score_maps(net, whole[:, 10:260, 20:320], scales=[0.5], flip=flip, stride=4)[-1].grid
    boxes = grid.boxes()[:, :: -1 if flip else 1]
    for row, column in ((0, 0), (5, 7)):
        x1, y1, x2, y2 = boxes[row, column]
        centre = shift[0] + row * scale[0], shift[1] + column * scale[1]
        assert centre == pytest.approx(((y1 + y2) / 2 + 10 - 0.5, (x1 + x2) / 2 + 20 - 0.5))


def test_a_geotiff_of_a_georeferenced_file(net, image, tmp_path):
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]  # fmt: skip
    write_pyramid(tmp_path / "a.tif", image.permute(1, 2, 0).numpy(), levels=1, tile=64, extratags=tags)
    write_score_maps(net, tmp_path / "a.tif", tmp_path / "heat.tif", stride=4)
    (expected,) = of_memory(score_maps(net, image, stride=4))
    with rasterio.open(tmp_path / "heat.tif") as heat, rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(heat.read(), expected)
        assert heat.crs == source.crs and heat.crs.to_epsg() == 32633 and heat.descriptions == tuple(NAMES)
        x, y = source.transform @ (7.5 + 4 * 6, 7.5 + 4 * 3)  # the window's centre
        assert heat.xy(3, 6) == pytest.approx((x, y))
    assert not (tmp_path / ".blocks-heat.tif").exists()


def test_several_scales_as_tiffs_are_numbered(net, image, file, tmp_path):
    write_score_maps(net, file, tmp_path / "heat.tif", stride=8, scales=[1.0, 0.5])
    for number, expected in enumerate(of_memory(score_maps(net, image, stride=8, scales=[1.0, 0.5]))):
        with rasterio.open(tmp_path / f"heat.{number}.tif") as heat:
            np.testing.assert_array_equal(heat.read(), expected)


def test_classify_without_maps(net, image, file, tmp_path):
    expected = class_scores(score_maps(net, image, stride=4, flip=True))
    assert torch.equal(classify_large(net, file, stride=4, flip=True), expected)
    assert torch.equal(classify_large(net, file, stride=4, flip=True, folder=tmp_path / "blocks"), expected)
    assert len(list((tmp_path / "blocks").glob("*.safetensors"))) == 18


def test_little_memory_cuts_blocks_at_chunks(net, image, file, tmp_path):
    write_score_maps(net, file, tmp_path / "heat.zarr", stride=4, memory_limit=100_000)
    (expected,) = of_memory(score_maps(net, image, stride=4))
    np.testing.assert_allclose(arrays(tmp_path / "heat.zarr")[0], expected, atol=1e-6)


def test_background_is_nan(net, image, tmp_path):
    picture = image.permute(1, 2, 0).numpy().copy()
    picture[:, 150:] = 255
    write_pyramid(tmp_path / "a.tif", picture, levels=1, tile=64)
    scores = write_score_maps(net, tmp_path / "a.tif", tmp_path / "heat.zarr", stride=4, large=LargeConfig(mask=True))
    (own,) = arrays(tmp_path / "heat.zarr")
    (expected,) = of_memory(score_maps(net, torch.from_numpy(picture).permute(2, 0, 1), stride=4))
    seen = ~np.isnan(own[0])
    assert seen[:, :34].all() and not seen[:, 50:].any()
    np.testing.assert_array_equal(own[:, seen], expected[:, seen])
    assert scores.tolist() == np.nanmax(own, axis=(1, 2)).tolist()


def test_a_damaged_tile_is_named_and_left_out(net, image, file, tmp_path):
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        offset, count = tiff.pages[0].dataoffsets[8], tiff.pages[0].databytecounts[8]  # row 1, column 2
    content = bytearray(file.read_bytes())
    content[offset : offset + count] = b"\xff" * count
    file.write_bytes(content)
    tile = "damaged tile at level 0, rows 64 to 128, columns 128 to 192"
    with pytest.warns(UserWarning, match=rf"left out: .*slide\.tif: {tile}"):
        write_score_maps(net, file, tmp_path / "heat.zarr", stride=4)
    (own,) = arrays(tmp_path / "heat.zarr")
    (maps,) = score_maps(net, image, stride=4)
    x1, y1, x2, y2 = np.moveaxis(maps.grid.boxes(), 2, 0)
    damaged = (x1 < 192) & (x2 > 128) & (y1 < 128) & (y2 > 64)
    np.testing.assert_array_equal(np.isnan(own[0]), damaged)
    np.testing.assert_array_equal(own[:, ~damaged], maps.scores[0].numpy()[:, ~damaged])
    with pytest.raises(InputError, match=tile):
        write_score_maps(net, file, tmp_path / "strict.zarr", stride=4, large=LargeConfig(strict=True))
    with pytest.warns(UserWarning, match="left out"):
        write_layer_output(net, file, tmp_path / "f.zarr", layer="0", stride=4)
    features = arrays(tmp_path / "f.zarr")[0]
    np.testing.assert_array_equal(np.isnan(features[0]), damaged)  # a window's output of the first layer


def test_what_is_refused(net, file, tmp_path):
    (tmp_path / "heat.zarr").mkdir()
    with pytest.raises(InputError, match=r"heat\.zarr: exists; name another file, or delete it"):
        write_score_maps(net, file, tmp_path / "heat.zarr")
    with pytest.raises(InputError, match=r"heat\.png: maps are written as \.zarr or \.tif; name one"):
        write_score_maps(net, file, tmp_path / "heat.png")
    with pytest.raises(InputError, match=r"f\.npz: the output of a layer is written as \.zarr"):
        write_layer_output(net, file, tmp_path / "f.npz")
    with pytest.raises(InputError, match=r"slide\.tif: 300x10 px is smaller than the .* window of 15x15"):
        write_layer_output(net, file, tmp_path / "f.zarr", large=LargeConfig(region=(0, 0, 10, 300)))
    with pytest.raises(WriteError, match=r"no/heat\.zarr: cannot be written; name a file in a folder that exists"):
        write_score_maps(net, file, tmp_path / "no" / "heat.zarr")


def test_maps_that_fit_are_given_in_memory(net, image, file):
    maps = overfeat.score_maps(net, open_image(file), stride=4, flip=True)
    expected = score_maps(net, image, stride=4, flip=True)
    for own, other in zip(maps, expected, strict=True):
        assert own.grid == other.grid and torch.equal(own.scores, other.scores)
    with pytest.raises(InputError, match=r"slide\.tif: its score maps take .* MiB; memory_limit must be that much; "):
        overfeat.score_maps(net, images=open_image(file), stride=1, memory_limit=1 << 20)
    with pytest.raises(InputError, match=r"overfeat\.large\.write_score_maps writes them to a file"):
        overfeat.score_maps(net, images=open_image(file), stride=1, memory_limit=1 << 20)


@pytest.mark.parametrize("layer", ["0", "2", None])
def test_layers_of_a_converted_net(layer, net, image, file, tmp_path):
    shape = write_layer_output(net, file, tmp_path / "f.zarr", layer=layer, stride=5)
    expected = layer_output(net, find_layer(net, layer, 5)[1], image).numpy()
    np.testing.assert_allclose(arrays(tmp_path / "f.zarr")[0], expected, atol=1e-5)
    assert shape == expected.shape and os.listdir(tmp_path / "f.zarr").count("1") == 0


def test_layers_of_a_built_in_net(make_net, image, file, tmp_path):
    own = make_net("small")
    kinds = [layer.kind for layer in own.architecture.layers]
    for number in {kinds.index(kind) for kind in ("normalise", "pad", "conv", "pool", "full") if kind in kinds}:
        shape = write_layer_output(own, file, tmp_path / f"{number}.zarr", layer=str(number))
        expected = layer_output(own, find_layer(own, str(number))[1], image).numpy()
        np.testing.assert_allclose(arrays(tmp_path / f"{number}.zarr")[0], expected, atol=1e-4)
        assert shape == expected.shape
