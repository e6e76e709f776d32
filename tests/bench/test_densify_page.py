"""The densify suite's tables and targets, from rows as a run saves them."""

import pytest

from bench.pages import densify, suite


def row(net, shape, backend, median, flop=1e9, **speedups):
    return {
        "suite": "densify", "op": net, "shape": shape, "dtype": "float32", "backend": backend, "median": median,
        "flop": flop, "speedups": {name.replace("_", "-"): ratio for name, ratio in speedups.items()},
    }  # fmt: skip


@pytest.fixture
def results():
    lenet, padded = "256x256, stride 1, 50625 windows of 32", "256x256, stride 8, 441 windows of 96"
    rows = [
        row("LeNet-like", lenet, "naive-windows", 8.0, 4e9),
        row("LeNet-like", lenet, "naive-windows-channels-last", 5.0, 4e9),
        row("LeNet-like", lenet, "overfeat.fast-exact", 0.2, 4e8, naive_windows=40.0, naive_windows_channels_last=25.0),
        row("LeNet-like", "1024x1024, stride 8, 15625 windows of 32", "naive-windows", 2.0),
        row("VGG-like, padded", padded, "naive-windows", 4.0, 4e9),
        row("VGG-like, padded", padded, "overfeat.fast-exact", 1.0, 1e9, naive_windows=4.0),
        row("VGG-like, padded", padded, "overfeat.fast-neighbours", 0.1, 1e8, naive_windows=40.0),
        row("small net", "fine stride", "overfeat", 1.0),
        row("small net", "fine stride", "overfeat-exact", 1.2),
    ]
    other = row("merge_boxes", "300 boxes", "overfeat", 1.0) | {"suite": "merge"}
    return {"rows": [*rows, other], "growth": []}


def test_tables(results):
    lenet, padded = densify.summary(results).splitlines()[2:]
    assert lenet == "| LeNet-like, 32 | 1 | 50,625 in 256x256 | 8 | 5 | 200 | 40, 25 | 10 |  |  |  |"
    assert padded == "| VGG-like, padded, 96 | 8 | 441 in 256x256 | 4 |  | 1,000 | 4 | 4 | 100 | 40 | 40 |"
    assert len(densify.summary(results, every_stride=True).splitlines()) == 2 + 3
    assert densify.built_in(results).splitlines()[2:] == ["| small net, exact | overfeat | 1,000 | 1,200 | 1.20 |"]
    assert not densify.rows_of({"rows": [{"suite": "merge"}]})


def test_targets(results):
    assert densify.targets(results) == [
        ("LeNet-like, stride 1, exact: speed-up over cropping", 40.0, 30, True),
        ("VGG-like, padded, stride 8, exact: speed-up over cropping", 4.0, 5, True),
        ("small net, converted, overfeat: time relative to natively", 1.2, 1.1, False),
    ]
    assert suite.missed(results) == [
        "VGG-like, padded, stride 8, exact: speed-up over cropping: 4, target at least 5",
        "small net, converted, overfeat: time relative to natively: 1.2, target at most 1.1",
    ]
