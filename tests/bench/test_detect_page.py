"""Memory of detection: what is measured, and its table."""

import json
import math

from PIL import Image

from bench.common import RESULTS
from bench.detect import memory
from bench.pages.speed_detect import page

MEASURED = {"image": 71.5, "reading": 181.5, "detection": 636.5, "drawing": 240.0, "features": 335.6, "output": 166.6,
            "seconds": 53.26, "objects": 2340}  # fmt: skip


def test_a_row_for_each_image():
    results = json.loads((RESULTS / "speed-detect.json").read_text())
    lines = page(results | {"memory": {"limit": 256, "5000": MEASURED}}).splitlines()
    assert lines[-1] == "| 5000 x 5000 | 72 | 182 | 636 | 53.3 | 2,340 | 240 | 336 | 167 |"
    assert lines[-3].startswith("| image | the image | reading | detect | s | detections | picture |")
    earlier = {key: MEASURED[key] for key in ("image", "detection", "seconds", "objects")}
    lines = page(results | {"memory": {"limit": 256, "1000": earlier}}).splitlines()
    assert lines[-1] == "| 1000 x 1000 | 72 | 636 | 53.3 | 2,340 |"


def test_memory_is_measured(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "flat.png")
    measured = memory(tmp_path / "flat.png")
    assert measured.keys() == MEASURED.keys() and all(math.isfinite(value) for value in measured.values())
    assert measured["image"] == 3 * 300 * 400 / 2**20 and measured["objects"] == 0
