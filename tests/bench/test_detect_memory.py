"""Memory of detection: what is measured."""

import math

from PIL import Image

from bench.detect import memory

MEASURED = {"image", "reading", "detection", "drawing", "features", "output", "seconds", "objects"}


def test_memory_is_measured(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "flat.png")
    measured = memory(tmp_path / "flat.png")
    assert measured.keys() == MEASURED and all(math.isfinite(value) for value in measured.values())
    assert measured["image"] == 3 * 300 * 400 / 2**20 and measured["objects"] == 0
