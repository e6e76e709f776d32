"""The table of the library beside ONNX Runtime and OpenVINO."""

import pytest

from bench.pages.runtimes import summary, targets


def rows(suite, shape, dtype="float32", **medians):
    return [
        {"suite": suite, "op": "a net", "shape": shape, "dtype": dtype, "backend": name.replace("_", "."),
         "median": median} for name, median in medians.items()
    ]  # fmt: skip


def test_speed_ups_are_over_the_better_runtime():
    small = rows("small-net", "1000x1000, 9 windows", overfeat_fast=0.1, onnxruntime=0.15, openvino=0.12)
    half = rows("small-net", "1000x1000, 9 windows", "bfloat16", overfeat_fast=0.1, openvino=0.09, torch_eager=0.3)
    six = rows("end-to-end", "375x500", overfeat_fast=1.0, onnxruntime=2.0)
    scale = rows("dense", "scale 1", overfeat_fast=1.0, onnxruntime=2.0)
    alone = rows("train", "4 x 3", overfeat_fast=1.0, torch_eager=2.0)
    results = {"rows": small + half + six + scale + alone}
    lines = summary(results).splitlines()
    assert lines[2:] == [
        "| a net, 1000x1000, 9 windows | float32 | 100 | 150 | 120 |  | 1.20 |",
        "| a net, 1000x1000, 9 windows | bfloat16 | 100 |  | 90 | 300 | 0.90 |",
        "| a net, 375x500 | float32 | 1,000 | 2,000 |  |  | 2.00 |",
        "| a net, scale 1 | float32 | 1,000 | 2,000 |  |  | 2.00 |",
    ]
    assert summary(results, "bfloat16").splitlines()[2:] == lines[3:4]
    reached = [(value, bound) for _, value, bound, minimum in targets(results) if minimum]
    assert reached == [(pytest.approx(1.2), 1.3), (pytest.approx(0.9), 1.0), (2.0, 1.5), (2.0, 1.15)]


def test_converted_nets_are_compared_by_their_borders():
    cases = rows("densify", "304x304", **{"overfeat_fast-exact": 1.0, "onnxruntime-exact": 3.0, "torch_eager": 0.2,
                                          "overfeat_fast-neighbours": 0.1, "openvino-neighbours": 0.3})  # fmt: skip
    results = {"rows": cases}
    assert [line.split(" | ")[0] for line in summary(results).splitlines()[2:]] == [
        "| a net, 304x304, exact",
        "| a net, 304x304, neighbours",
    ]
    assert [line.split(" | ")[-2:] for line in summary(results).splitlines()[2:]] == [["", "3.00 |"], ["200", "3.00 |"]]
    assert targets(results) == []


def test_a_run_without_runtimes_has_no_table():
    assert summary({"rows": rows("dense", "scale 1", overfeat_fast=1.0, torch_eager=2.0)}) == ""
