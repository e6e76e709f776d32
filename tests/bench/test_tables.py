"""What the templates of the benchmark pages are written with."""

import pytest

from bench import tables
from bench.tables import (
    Case,
    cases,
    compared,
    detections,
    fixed,
    ms,
    number,
    percent,
    spread,
    table,
    with_error,
    wrapped,
)

DIFFERS = "scores differ by design"


def row(op, shape, backend, median, baseline=False, remark="", suite="densify", dtype="float32"):
    return {
        "suite": suite, "op": op, "shape": shape, "dtype": dtype, "backend": backend, "median": median,
        "baseline": baseline, "remark": remark,
    }  # fmt: skip


def test_a_table():
    rows = [("a", 1.5, None), ("b", -2, None)]
    text = table("name | value | never | said", rows, lambda name, value, never: f"{name} | {value}\n | | x{value} ")
    assert text == "| name | value | said |\n| --- | ---: | --- |\n| a | 1.5 | x1.5 |\n| b | -2 | x-2 |\n"
    assert table("a | b", [], lambda: "") == "Not measured.\n"
    with pytest.raises(ValueError, match=r"2 columns, a \| b, but 3 cells"):
        table("a | b", [{"a": 1}], lambda entry: "x | y | z")


def test_formats():
    assert [number(value) for value in (None, 0.01234, 12.34, 99.96, 1234.5)] == ["", "0.0123", "12.3", "100", "1,234"]
    assert [fixed(None), fixed(1234.5), fixed(1234.56, 1)] == ["", "1,234", "1,234.6"]
    assert [percent(None), percent(0.9155), percent(0.5, 0)] == ["", "91.5", "50"]
    timed = {"median": 0.01234, "p20": 0.012, "p80": 0.0137, "repeats": 5}
    assert [ms(timed), ms(None), spread(None)] == ["12.3", "", ""]
    assert spread(timed) == "12.34 (12 to 13.7)" and spread(timed | {"repeats": 1}) == "12.34 (one run)"
    assert with_error(10.0, 900) == "10.00 ± 1.00" and with_error([5.0, 15.0], 900, 1) == "10.0 ± 1.0"


def test_where_a_measurement_was_made():
    machine = {"cpu": "a CPU", "cpu capability": "AVX2", "threads": 1, "gpu": "none", "python": "3.11", "torch": "2.13",
               "date": "2026-11-26", "commit": "abc"}  # fmt: skip
    assert tables.measured({"command": "python -m bench", "machine": machine}) == (
        "Measured with `python -m bench` on 2026-11-26: a CPU, 1 thread (AVX2), Python 3.11, torch 2.13, commit abc."
    )
    with_gpu = {"machine": machine | {"gpu": "H100", "threads": 2}}
    assert tables.device(with_gpu) == "H100" and tables.device(with_gpu | {"device": "cpu"}) == "a CPU, 2 threads"


def test_paragraphs_are_filled_and_tables_and_code_are_not():
    text = (
        "# A\n\n\none\ntwo\n\n- an item that\n  goes on\n- another\n\n| a |\n| --- |\n| b |\n\n```\nx\n\n  y\n```\nend "
        + "z " * 60
    )
    lines = wrapped(text).splitlines()
    assert lines[:6] == ["# A", "", "one two", "", "- an item that goes on", "- another"]
    assert lines[6:16] == ["", "| a |", "| --- |", "| b |", "", "```", "x", "", "  y", "```"]
    assert lines[16] == "" and [len(line) for line in lines[17:]] == [119, 3]


def test_the_fastest_alternative():
    shape = "375x500"
    fast, direct = row("net", shape, "overfeat.fast", 0.1), row("net", shape, "overfeat.fast-direct", 0.2)
    others = [row("net", shape, "torch.eager", 0.3, True), row("net", shape, "openvino", 0.25, True)]
    apart = row("net", shape, "nms", 0.01, True, DIFFERS)
    case, half = cases({"rows": [fast, direct, *others, apart, fast | {"dtype": "bfloat16"}]}, "densify")
    assert (case.title, case.alternative, case.ratio) == ("net, 375x500", "openvino", 2.5)
    assert case.ours == fast and case.row("openvino") == others[1] and case.row("monai") is None
    assert (half.title, half.best, half.alternative, half.ratio) == ("net, 375x500, bfloat16", None, "", None)
    assert Case("merge", "9 boxes", "float32", (apart, row("merge", "9 boxes", "overfeat", 1.0))).ratio == 0.01
    assert cases({"rows": [fast]}, "merge") == []


def nets():
    """A net without padding at two strides, and one with padding at one."""
    plain, sparse = "256x256, stride 1, 9 windows of 32", "1024x1024, stride 8, 9 windows of 32"
    padded = "512x512, stride 32, 9 windows of 224"
    return {"rows": [
        row("plain", plain, "naive-windows", 8.0, True), row("plain", plain, "overfeat.fast-exact", 0.2),
        row("plain", sparse, "naive-windows", 2.0, True), row("plain", sparse, "overfeat.fast-exact", 0.5),
        row("plain", sparse, "torch.eager", 1.0, True),
        row("padded", padded, "naive-windows", 4.0, True), row("padded", padded, "onnxruntime-exact", 3.0, True),
        row("padded", padded, "torch.eager", 0.3, True, DIFFERS), row("padded", padded, "overfeat.fast-exact", 1.0),
        row("padded", padded, "openvino-neighbours", 0.25, True, DIFFERS),
        row("padded", padded, "overfeat.fast-neighbours", 0.1, False, DIFFERS),
        row("built-in", "fine stride", "overfeat.fast", 1.0),
        row("built-in", "fine stride", "overfeat.fast-exact", 1.1),
    ]}  # fmt: skip


def test_other_borders_are_other_cases():
    *_, exact, neighbours, built_in = cases(nets(), "densify")
    assert exact.title == "padded, 512x512, stride 32, 9 windows of 224, exact"
    assert (exact.alternative, exact.ratio) == ("onnxruntime", 3.0)
    assert neighbours.title.endswith(", neighbours") and (neighbours.alternative, neighbours.ratio) == ("openvino", 2.5)
    assert len(built_in.rows) == 2 and built_in.ratio is None


def test_own_networks_are_compared_at_a_quarter_of_their_window():
    assert [(case.op, case.shape.split(", ")[1], case.ratio) for case in compared(nets(), "densify")] == [
        ("plain", "stride 8", 2.0),
        ("padded", "stride 32", 3.0),
        ("padded", "stride 32", 2.5),
    ]
    rows = [row("net", "a", "overfeat", 1.0, suite="merge"), row("net", "a", "wbf", 2.0, True, suite="merge"),
            row("net", "b", "overfeat", 1.0, suite="merge")]  # fmt: skip
    assert [(case.shape, case.ratio) for case in compared({"rows": rows}, "merge")] == [("a", 2.0)]


def test_detection_beside_other_runtimes():
    seconds = {name: {"median": median} for name, median in (("eager", 3.0), ("fast", 1.0), ("openvino", 2.0))}
    entry = {"seconds": seconds, "positions": 1234.5, "gflops": 50.0}
    peaks = {"gemm": 80e9, "convolution": 100e9, "copy": 1e9}
    image, large = detections({"images": entry, "large": {**entry, "side": 2500}, "peaks": peaks})
    assert (image.title, large.title) == ("detect, a test image, 1,234 windows", "detect, 2500x2500, 1,234 windows")
    assert (large.alternative, large.ratio, large.ours["fraction"]) == ("net in openvino", 2.0, 0.5)
