"""`overfeat detect` of large images."""

import json

import geojson
import numpy as np
import pytest
import tifffile
import torch
from large_files import write_pyramid

from overfeat.cli.assets import ASSETS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.data.resize import resize


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A pyramid with digits, 300 x 450 px."""
    monkeypatch.setattr("overfeat.large.blocks.BLOCK", 150)
    paths = sorted((ASSETS / "multi-object" / "test").glob("*.png"))[:6]
    images = [resize(read_image(path)[None], (150, 150))[0] for path in paths]
    pixels = torch.cat([torch.cat(images[:3], dim=2), torch.cat(images[3:], dim=2)], dim=1)
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "scene.tif"
    write_pyramid(path, pixels.permute(1, 2, 0).numpy(), levels=2, tile=64)
    return path


def detect(*arguments):
    return main(["detect", *map(str, arguments), "--scales", "0.8"])


def test_a_large_image_is_evaluated_in_blocks(scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert detect(scene, "-o", out) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "scene.tif.json").read_text())
    objects = result["objects"]
    assert list(result) == ["image", "objects"], "nothing was left out"
    assert len(objects) > 10 and len(printed.splitlines()) == len(objects)
    collection = geojson.loads((out / "scene.tif.geojson").read_text())
    assert collection.is_valid and len(collection.features) == len(objects)
    assert len((out / "scene.tif.csv").read_text().splitlines()) == len(objects) + 1
    assert {result["file_name"] for result in json.loads((out / "coco.json").read_text())} == {"scene.tif"}
    assert not (out / ".blocks").exists() and not (out / "scene.tif.png").exists()


def test_a_killed_run_continues_at_the_block(scene, tmp_path, monkeypatch, capsys):
    from overfeat.large import detect as module

    evaluated, evaluate = [], module.evaluate_block

    def until_the_third(*arguments, **options):
        evaluated.append(arguments[2].number)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(module, "evaluate_block", until_the_third)
    out = tmp_path / "out"
    assert detect(scene, "-o", out) == 130
    assert len(list((out / ".blocks" / "scene.tif").glob("*.safetensors"))) == 2
    assert detect(scene, "-o", out) == 0
    assert sorted(evaluated) == sorted([*set(evaluated), evaluated[2]])
    monkeypatch.undo()
    assert detect(scene, "-o", tmp_path / "whole") == 0
    assert json.loads((out / "coco.json").read_text()) == json.loads((tmp_path / "whole" / "coco.json").read_text())


def test_region_level_and_folders(scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert detect(scene.parent, "-o", out, "--region", 150, 0, 300, 200, "--level", 0, "--mask") == 0
    objects = json.loads((out / "scene.tif.json").read_text())["objects"]
    boxes = np.array([entry["box"] for entry in objects])
    assert len(boxes) > 3 and boxes[:, 0].min() >= 150 and boxes[:, 3].max() <= 200
    assert json.loads((out / "settings.json").read_text())["large"] == {"mask": True, "region": [150, 0, 300, 200]}
    capsys.readouterr()
    assert detect(scene, "-o", out) == 1 and "holds results of other settings" in capsys.readouterr().err


def test_what_does_not_go_is_refused(scene, tmp_path, capsys):
    for options, message in (
        (("--region", 400, 0, 300, 200), "300 px high and 450 px wide; --region must lie in it, not be 400,0,300,200"),
        (("--level", 5), "has 2 levels; --level must be from 0 to 1, not 5"),
        (("--level", -1), "--level must be at least 0, not -1"),
        (("--channels", "0,7"), "--channels must be"),
        (("--region", 0, 0, 20, 20), "choose a larger scale"),
    ):
        assert detect(scene, *options) == 1
        assert message in capsys.readouterr().err
    for option, value, message in (
        ("--channels", "x", "--channels: must be numbers such as 4,2,1, not 'x'"),
        ("--value-range", "9", "--value-range: must be numbers such as 0,4095, not '9'"),
        ("--value-range", "5,5", "--value-range: must be numbers such as 0,4095, not '5,5'"),
    ):
        with pytest.raises(SystemExit):
            detect(scene, option, value)
        assert message in capsys.readouterr().err
    # A small image of channels that are not chosen, and one of them.
    path = tmp_path / "five.tif"
    tifffile.imwrite(path, np.full((100, 120, 5), 9, np.uint8), photometric="minisblack", planarconfig="contig")
    assert detect(path) == 1
    assert "five.tif: has 5 channels; --channels chooses one, or three as red, green" in capsys.readouterr().err
    assert detect(path, "--channels", 3) == 0


def test_ordinary_images_with_an_option(scene, tmp_path, capsys):
    path = ASSETS / "multi-object" / "test" / "00000.png"
    path = path if path.exists() else sorted(path.parent.glob("*.png"))[0]
    height, width = read_image(path).shape[1:]
    assert detect(path) == 0
    expected = capsys.readouterr().out
    assert detect(path, "--region", 0, 0, width, height) == 0
    assert capsys.readouterr().out == expected


def test_a_damaged_tile_is_named_or_ends_the_run(scene, tmp_path, capsys):
    with tifffile.TiffFile(scene) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[9], page.databytecounts[9]  # row 1, column 1 of 8 columns of tiles
    with open(scene, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    assert detect(scene, "-o", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert error.count("warning: left out:") == 1 and "rows 64 to 128, columns 64 to 128" in error
    result = json.loads((tmp_path / "out" / "scene.tif.json").read_text())
    objects = result["objects"]
    assert [f"warning: left out: {message}" in error for message in result["left_out"]] == [True]
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())) == len(objects)
    assert 5 < len(objects) and all(box["box"][2] < 110 or box["box"][0] > 70 or box["box"][1] > 70 for box in objects)
    assert detect(scene, "-o", tmp_path / "strict", "--strict") == 1
    assert "damaged tile at level 0, rows 64 to 128" in capsys.readouterr().err
    assert not (tmp_path / "strict" / "scene.tif.json").exists()


def test_the_mask_says_how_much_it_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("overfeat.large.blocks.BLOCK", 150)
    pixels = np.full((400, 400, 3), 240, np.uint8)
    pixels[:100, :100] = 90
    np.save(tmp_path / "scene.npy", pixels)
    assert detect(tmp_path / "scene.npy", "--mask") == 0
    error = capsys.readouterr().err
    assert "scene.npy: 92 % of the windows see background alone, and are left out (--mask)" in error
