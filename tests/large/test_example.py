"""examples/large_image.py, as docs/guides/large-images.md names it."""

import json
import runpy
import sys
from pathlib import Path

import geojson
import zarr

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["large_image.py", "--side", "420", "-o", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "large_image.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "slide.tif: levels 420x420, 210x210, 105x105" in printed
    objects = geojson.loads((tmp_path / "objects.geojson").read_text())
    assert objects.is_valid and len(objects["features"]) > 10
    assert all(feature["properties"]["classification"]["name"] in "0123456789" for feature in objects["features"])
    assert f"{len(objects['features'])} objects" in printed
    assert len((tmp_path / "objects.csv").read_text().splitlines()) == 1 + len(objects["features"])
    heat, features = (zarr.open_group(tmp_path / name, mode="r")["0"] for name in ("heat.zarr", "features.zarr"))
    assert heat.shape[0] == 11 and heat[:].min() >= 0 and features.shape[1:] > (50, 50)
    labels = json.loads((tmp_path / "heat.zarr" / ".zattrs").read_text())["omero"]["channels"]
    assert [channel["label"] for channel in labels] == [*"0123456789", "background"]
