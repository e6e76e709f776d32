"""`overfeat classify` and `overfeat features` of large images."""

import json

import numpy as np
import pytest
import rasterio
import tifffile
import torch
import zarr
from large_files import picture, write_pyramid
from PIL import Image

import overfeat
from overfeat.cli.assets import ASSETS
from overfeat.cli.main import main
from overfeat.dense.layer_output import find_layer, layer_output

WEIGHTS = ASSETS / "small.safetensors"


@pytest.fixture
def image():
    return torch.from_numpy(picture(150, 170)).permute(2, 0, 1)


@pytest.fixture
def slide(image, tmp_path, monkeypatch):
    """A georeferenced pyramid."""
    monkeypatch.setattr("overfeat.large.blocks.BLOCK", 64)
    monkeypatch.setattr("overfeat.large.layers.BLOCK", 64)
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]  # fmt: skip
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "slide.tif"
    write_pyramid(path, image.permute(1, 2, 0).numpy(), levels=2, tile=64, extratags=tags)
    return path


def run(*arguments):
    return main([*map(str, arguments), "--weights", str(WEIGHTS)])


def test_classify_writes_heat_maps_of_a_large_image(slide, image, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--scales", "1.0", "--no-flip", "-n", "3"]
    assert run("classify", slide, *options, "--heat-map", "-o", out) == 0
    net = overfeat.load(WEIGHTS)
    (expected,) = overfeat.score_maps(net, image, scales=[1.0], flip=False)
    heat = zarr.open_group(out / "slide.tif.zarr", mode="r")
    np.testing.assert_allclose(heat["0"][:], expected.scores[0].numpy(), atol=1e-6)
    with rasterio.open(out / "slide.tif.tif") as file:
        np.testing.assert_array_equal(file.read(), heat["0"][:])
        assert file.crs.to_epsg() == 32633 and file.descriptions == tuple(net.class_names)
    scores = expected.scores[0].amax(dim=(1, 2))
    printed = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in printed] == [net.class_names[i] for i in scores.topk(3).indices]
    assert [float(score) for _, score in printed] == pytest.approx(scores.topk(3).values.tolist(), abs=1e-5)
    classes = json.loads((out / "slide.tif.json").read_text())["classes"]
    assert [entry["class"] for entry in classes] == [name for name, _ in printed]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".lock")) == [
        "settings.json", "slide.tif.json", "slide.tif.tif", "slide.tif.zarr",
    ]  # fmt: skip
    # Without maps, and without files.
    assert run("classify", slide, *options) == 0
    assert [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()] == printed
    # A part of an ordinary file.
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    assert run("classify", tmp_path / "photo.png", *options, "--region", 10, 20, 60, 70) == 0
    part = overfeat.classify(net, image[:, 20:90, 10:70], scales=[1.0], flip=False)[0].max()
    assert float(capsys.readouterr().out.split()[1]) == pytest.approx(float(part), abs=1e-5)
    # A damaged tile is named in the result, too.
    with tifffile.TiffFile(slide) as file:
        offset, count = file.pages[0].dataoffsets[8], file.pages[0].databytecounts[8]
    with open(slide, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    assert run("classify", slide, *options, "-o", tmp_path / "damaged") == 0
    result = json.loads((tmp_path / "damaged" / "slide.tif.json").read_text())
    (message,) = result["left_out"]
    assert f"warning: left out: {message}" in capsys.readouterr().err and "rows 128 to 150" in message
    assert list(result) == ["image", "classes", "left_out"] and len(result["classes"]) == 3


def test_an_interrupted_run_continues_at_the_block(slide, tmp_path, monkeypatch, capsys):
    from overfeat.large import score_maps as module

    numbers, evaluate = [], module.score_block

    def until_the_third(*arguments, **options):
        numbers.append(arguments[2].number)
        if len(numbers) == 3:
            raise KeyboardInterrupt
        evaluate(*arguments, **options)

    monkeypatch.setattr(module, "score_block", until_the_third)
    command = ["classify", slide, "--scales", "1.0,0.7", "--heat-map", "-o"]
    assert run(*command, tmp_path / "out") == 130
    assert run(*command, tmp_path / "out") == 0
    assert sorted(numbers) == sorted([*set(numbers), numbers[2]]) and len(set(numbers)) == 6
    assert run(*command, tmp_path / "whole") == 0
    for number in "01":
        own, whole = (zarr.open_group(tmp_path / name / "slide.tif.zarr", mode="r") for name in ("out", "whole"))
        np.testing.assert_array_equal(own[number]["0"][:], whole[number]["0"][:])
    assert (tmp_path / "out" / "slide.tif.1.tif").exists()
    texts = [(tmp_path / name / "slide.tif.json").read_text() for name in ("out", "whole")]
    assert texts[0] == texts[1] and not (tmp_path / "out" / ".blocks").exists()


def test_features_of_a_large_image(slide, image, tmp_path, capsys):
    net = overfeat.load(WEIGHTS)
    expected = layer_output(net, find_layer(net, "5")[1], image).numpy()
    target = tmp_path / "f.zarr"
    assert run("features", slide, "-L", "5", "-o", target) == 0
    shape = " x ".join(map(str, expected.shape))
    assert capsys.readouterr().out == f"{target}: layer 5, {shape}\n"
    np.testing.assert_allclose(zarr.open_group(target, mode="r")["0"][:], expected, atol=1e-4)
    assert run("features", slide, "-L", "5", "-o", target) == 1
    assert "f.zarr: exists; name another file, or delete it" in capsys.readouterr().err
    # A folder, with an ordinary image; a second run has nothing to do.
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(slide.with_name("photo.png"))
    for _ in range(2):
        assert run("features", slide.parent, "-L", "5", "-o", tmp_path / "out") == 0
    assert "2 of 2 images are done already" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(tmp_path / "out" / "photo.png.npz")["features"], expected, atol=1e-4)
    own = zarr.open_group(tmp_path / "out" / "slide.tif.zarr", mode="r")["0"]
    np.testing.assert_allclose(own[:], expected, atol=1e-4)
    assert not (tmp_path / "out" / ".blocks").exists()
    # Of one image, too, -o names a folder where many machines share it.
    assert run("features", slide, "-L", "5", "--part", "1/1", "-o", tmp_path / "shared") == 0
    shared = zarr.open_group(tmp_path / "shared" / "slide.tif.zarr", mode="r")["0"]
    np.testing.assert_array_equal(shared[:], own[:])


def test_what_is_refused(slide, tmp_path, capsys):
    for command, message in (
        (["classify", slide, "--voting", "ten"], "--voting must be dense for"),
        (["features", slide, "--format", "text"], "is read in windows, and its features are written as .zarr; use "),
        (["classify", slide, "-f"], "is read in windows, and its features are written as .zarr; use "),
        (["features", slide, "-o", tmp_path / "f.npz"], "f.npz: the output of a layer is written as .zarr; name a"),
        (["features", slide, "--level", "7"], "--level must be from 0 to 1, not 7"),
    ):
        assert run(*command) == 1
        assert message in capsys.readouterr().err.replace("\n", " "), command
