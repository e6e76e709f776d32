"""Folders of images as people have them: folders within, long names, files of others beside the results."""

import json
import shutil
import sys

import pytest
from PIL import Image

from overfeat.cli.assets import ASSETS, SHIPPED_WEIGHTS
from overfeat.cli.main import main

LONG = "x" * 251 + ".png"


@pytest.fixture
def photos(tmp_path):
    """A picture of the same name in a folder and in a folder of it, and one with a name that fills 255 bytes."""
    (tmp_path / "photos" / "below").mkdir(parents=True)
    scene = Image.open(ASSETS / "scenes" / "00012.png").convert("RGB").resize((90, 80))
    for name in ("a.png", "below/a.png", LONG):
        scene.save(tmp_path / "photos" / name, format="PNG")
    return tmp_path / "photos"


def run(*arguments):
    return main([*map(str, arguments)])


def test_folders_in_a_folder(photos, tmp_path, capsys):
    command = ["classify", photos, "--weights", SHIPPED_WEIGHTS, "--scales", "1.0"]
    assert run(*command, "-o", tmp_path / "flat") == 0
    assert "left out the folders below (--recursive reads them)" in capsys.readouterr().err
    assert run(*command, "-o", tmp_path / "all", "--recursive") == 0
    assert "left out" not in capsys.readouterr().err
    results = {path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.json")}
    assert {"a.png.json", "below/a.png.json"} < results and len(results) == 4
    assert run(*command, "-o", tmp_path / "all", "--recursive") == 0
    assert "3 of 3 images are done already" in capsys.readouterr().err


def test_a_long_name_has_a_result(photos, tmp_path):
    images = photos / LONG, photos / "a.png"
    for command in ("classify", "features"):
        assert run(command, *images, "--weights", SHIPPED_WEIGHTS, "-o", tmp_path / command) == 0
        assert len([path for path in (tmp_path / command).iterdir() if path.name != "settings.json"]) == 2
    (result,) = (tmp_path / "classify").glob("xxx*")
    assert json.loads(result.read_text())["image"] == str(photos / LONG)


def test_detections_beside_other_json_and_without_matplotlib(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shutil.copytree(ASSETS / "multi-object" / "test", photos / "below", dirs_exist_ok=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.json").write_text('{"mine": 1}')
    (out / "broken.json").write_text("{")
    assert run("detect", photos, "--recursive", "-o", out) == 0
    assert "results without pictures: pictures need matplotlib" in capsys.readouterr().err
    names = {entry["file_name"] for entry in json.loads((out / "coco.json").read_text())}
    assert any(name.startswith("below/") for name in names)
    assert not list(out.rglob("*.png"))
    assert (out / "notes.json").read_text() == '{"mine": 1}'
