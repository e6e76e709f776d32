"""What ships with the package: small enough, listed, and made as SOURCES.md says."""

import json

import numpy as np
import pytest
from PIL import Image

import overfeat
from overfeat.cli.common import ASSETS, SHIPPED_WEIGHTS
from overfeat.data.images import list_images
from overfeat.data.scenes import make_scene

SCENES = list_images(ASSETS / "scenes")


@pytest.mark.parametrize("path", SCENES, ids=lambda path: path.name)
def test_shipped_scenes_come_out_of_the_generator(path):
    scene = make_scene("test", seed=0, index=int(path.stem))
    with Image.open(path) as shipped:
        np.testing.assert_array_equal(np.asarray(shipped), scene.image)
    assert json.loads((ASSETS / "scenes" / "labels.json").read_text())[path.name] == str(scene.labels[0])


def test_shipped_net():
    assert SHIPPED_WEIGHTS.stat().st_size <= 2_000_000
    net = overfeat.load(SHIPPED_WEIGHTS)
    assert net.architecture.name == "small" and net.class_names == [str(digit) for digit in range(10)]
    assert not net.flip  # a mirrored digit is no digit
    assert overfeat.load_regressor(SHIPPED_WEIGHTS).classes is None


def test_every_asset_is_listed():
    listed = (ASSETS / "SOURCES.md").read_text()
    for path in ASSETS.rglob("*"):
        if path.is_file() and path.name not in ("SOURCES.md", "labels.json"):
            assert path.name in listed or f"`scenes/*{path.suffix}`" in listed, path
