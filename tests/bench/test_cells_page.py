"""The page about blood cells, from some trainings as a measurement saves them."""

import pytest

from bench.pages import cells

RULES = ("greedy", "greedy, across classes", "NMS", "NMS, across classes")


def figures(value):
    return {"map": value, "coco": value / 2, "classes": {name: value for name in cells.CLASSES}, "boxes": 20.0}


def detector(value, minutes=30):
    rules = {rule: figures(value + 0.001 * n) for n, rule in enumerate(RULES)}
    tried = {"name": "NMS", "threshold": 0.3, "score_threshold": 0.1, "class_iou": 0.5, "stride": "fine", "map": 0.875}
    return {
        "machine": {
            "cpu": "a CPU", "gpu": "none", "threads": 2, "date": "2026-11-26", "torch": "2.13", "commit": "abc",
            "cpu capability": "AVX512", "python": "3.11",
        },
        "training": {"epochs": 8, "samples": 8200, "seconds": 60 * minutes},
        "detect": {"fine": figures(value), "coarse": figures(value - 0.1)},
        "rules": rules | {f"{rule}, coarse": figures(value - 0.2) for rule in RULES},
        "validation": [tried],
        "standard error": 0.01,
        "standard error of the difference to NMS": 0.004,
        "seconds an image": 1.25,
    }  # fmt: skip


@pytest.fixture
def results():
    nets = {"default": detector(0.93, 61), "default-seed-1": detector(0.91), "short": detector(0.8)}
    multibox = {key: value for key, value in detector(0.5).items() if key != "rules"}
    nets["multibox"] = multibox | {"training of the classifier": {"epochs": 1, "samples": 9, "seconds": 600}}
    data = {key: {"images": 72, "objects": 945} for key in ("val", "test")}
    return {"command": "a command", "machine": nets["short"]["machine"], "data": data, "nets": nets}


def test_targets(results):
    reached = cells.targets(results)
    assert [line for line, good in reached.items() if not good] == [
        "greedy merging 93.0 %, no worse than NMS with 93.2 %",
        "training in 61 minutes, at most 60",
    ]
    assert len(reached) == 5
    results["nets"]["20-images"] = detector(0.85)
    assert cells.targets(results)["from 20 images 85.0 %, at least 84"]
    del results["nets"]["default"]
    assert len(cells.targets(results)) == 1


def test_page(results):
    page = cells.page(results)
    assert "| default, seed 1 | 91.0 | 91.0 | 91.0 | 91.0 | 45.5 | 30 |" in page
    assert "| DeepMultiBox, SqueezeNet's features frozen | 50.0 | 50.0 | 50.0 | 50.0 | 25.0 | 40 |" in page
    assert "Default, 2 seeds: 92.0 % on average, 91.0 to 93.0 %." in page and "Short training, 2" not in page
    assert "| short training | 80.0 (+0.1) | 80.2 (+0.1) |" in page
    assert "| default, coarse | 83.0 | 73.0 | 73.0 |" in page
    assert "| NMS | 0.3 | 0.1 | 0.5 | 87.5 |" in page
    assert len(cells.summary(results).splitlines()) == 2 + 2


def test_a_page_without_the_default(results):
    results["nets"] = {"short": results["nets"]["short"]}
    assert "The default was not measured." in cells.page(results)
