"""The example for Ray Data: its unit of work, and all of it where Ray is installed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overfeat.files import ASSETS

FILE = Path(__file__).resolve().parents[2] / "examples" / "ray_map_batches.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("ray_map_batches", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(ASSETS / "scenes" / "00001.png").crop((0, 0, 110, 80)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    return folder


def test_the_unit_of_work(example, photos, tmp_path):
    batch = {"path": np.array([str(photos / "a.png"), str(photos / "b.png")])}
    errors = example.Detector(str(tmp_path))(batch)["error"].tolist()
    assert errors[0] == "" and errors[1].startswith(f"{photos / 'b.png'}: ")
    (entry,) = json.loads((tmp_path / "a.png.json").read_text())["objects"]
    assert entry["class"] == "2" and entry["score"] > 0.4
    before = (tmp_path / "a.png.json").stat().st_mtime_ns
    assert example.Detector(str(tmp_path)).process(photos / "a.png") == ""
    assert (tmp_path / "a.png.json").stat().st_mtime_ns == before


def test_under_ray(example, photos, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    example.main(str(photos), str(tmp_path / "results"), 1)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a.png.json"]
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{photos / 'b.png'}: ")
