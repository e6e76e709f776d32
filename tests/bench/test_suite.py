"""`python -m bench`: results are checked, saved and skipped."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from bench.__main__ import main
from bench.common import ROOT
from bench.suite import synthetic
from bench.suite.cases import SUITES
from bench.suite.kernels import GPU_SUITES
from bench.suite.measure import ALL
from bench.suite.names import IMPLEMENTATIONS
from bench.suite.runner import MAX_REPEATS, Case, DeviceLost, Implementation, Run, exponent
from overfeat.files import ASSETS
from overfeat.ops.backends.winograd import record_saved

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Tiny matmuls, convolutions and copies for the measured peaks."""
    monkeypatch.setattr("overfeat.profiling.peaks.GEMM_SIZES", (64,))
    monkeypatch.setattr("overfeat.profiling.peaks.CONVOLUTIONS", ((8, 16, 3),))
    monkeypatch.setattr("overfeat.profiling.peaks.COPY_BYTES", 1 << 16)


class Clock:
    """A clock that only the timed functions advance."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def slow(monkeypatch):
    """slow(seconds, value): a function that takes that long and returns four elements of the value."""
    clock = Clock()
    monkeypatch.setattr("bench.suite.runner.time", clock)

    def make(seconds, value=1.0):
        def run():
            clock.now += seconds
            return torch.full((4,), value)

        return run

    return make


def case(**implementations):
    return Case("dense", "op", "4", "right", implementations, list, flop=1e6, bytes_moved=1e5)


def a_run(out=None, selected=None, quick=True, peaks=True):
    return Run(out, CPU, selected, "test", quick, peaks)


def test_rows_have_rates_peaks_and_speedups(tmp_path, slow):
    run = a_run(tmp_path / "r.json")
    run.measure(case(ours=Implementation(slow(0.01)), right=Implementation(slow(0.03), baseline=True)))
    right, ours = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert ours["backend"] == "ours" and right["baseline"] and not ours["baseline"]
    assert ours["speedups"] == {"right": pytest.approx(3)} and right["speedups"] == {}
    assert ours["p20"] == ours["median"] == ours["p80"] == pytest.approx(0.01)
    assert ours["gflops"] == pytest.approx(0.1) and ours["gbs"] == pytest.approx(0.01)
    peaks = run.results["peaks"]["float32"]
    assert ours["peak_gflops"] == pytest.approx(max(peaks["gemm"], peaks["convolution"]) / 1e9)
    assert ours["fraction"] == pytest.approx(ours["gflops"] / ours["peak_gflops"])
    assert ours["dtype"] == "float32" and ours["peak_bytes"] is not None


def test_rows_of_an_implementation_with_fewer_operations_or_a_portion_of_the_work(slow):
    run = a_run()
    fewer = Implementation(slow(0.01), flop=lambda: 2.5e5)
    part = Implementation(slow(0.03), baseline=True, portion=0.25)
    run.measure(case(right=part, fewer=fewer))
    right, ours = run.rows
    assert right["median"] == pytest.approx(0.12) and ours["speedups"] == {"right": pytest.approx(12)}
    assert right["flop"] == 1e6 and ours["flop"] == 2.5e5


def test_rates_count_the_multiplications_that_minimal_filtering_does(slow):
    def filtered():
        record_saved(4e5)
        return slow(0.01)()

    run = a_run()
    run.measure(case(right=Implementation(slow(0.03), baseline=True), filtered=Implementation(filtered)))
    right, ours = run.rows
    assert right["operations"] == 1e6 and ours["flop"] == 1e6 and ours["operations"] == 2e5
    assert ours["gflops"] == pytest.approx(0.02)


def test_rows_without_measured_peaks_have_no_fraction(slow):
    run = a_run(peaks=False)
    run.measure(case(right=Implementation(slow(0.01))))
    run.finish()
    assert run.results["peaks"] == {} and run.rows[0]["gflops"] == pytest.approx(0.1)
    assert "fraction" not in run.rows[0] and "peak_gbs" not in run.rows[0]


def test_the_highest_measured_peak_of_a_run_counts(slow, monkeypatch):
    rates = iter([{"gemm": 1e9, "convolution": 2e9, "copy": 4e9}, {"gemm": 4e9, "convolution": 1e9, "copy": 3e9}])
    monkeypatch.setattr("bench.suite.runner.measured_peaks", lambda *_: next(rates))
    run = a_run(quick=False)
    run.measure(case(right=Implementation(slow(0.01))))
    assert run.rows[0]["repeats"] == MAX_REPEATS and run.rows[0]["peak_gflops"] == 2
    run.finish()
    assert run.rows[0]["peak_gflops"] == 4 and run.rows[0]["fraction"] == pytest.approx(0.1 / 4)
    assert run.rows[0]["peak_gbs"] == 4


def test_no_speed_for_a_wrong_result(tmp_path, capsys, slow):
    run = a_run(tmp_path / "r.json")
    wrong = Implementation(slow(0.1, 1.001))
    other = Implementation(slow(0.1, 3.0), baseline=True, compare_with="", remark=lambda result: f"{result[0]:g}")
    equal, unequal = (
        Implementation(slow(0.1, 3.0), compare_with="other"),
        Implementation(slow(0.1, 1.0), compare_with="other"),
    )
    run.measure(case(right=Implementation(slow(0.1)), wrong=wrong, other=other, equal=equal, unequal=unequal))
    assert {row["backend"]: row["remark"] for row in run.rows} == {"right": "", "other": "3", "equal": ""}
    skipped = {entry["what"].split(", ")[-1]: entry["why"] for entry in run.results["skipped"]}
    assert skipped.keys() == {"wrong", "unequal"}
    assert skipped["wrong"].startswith("its result differs: largest error 1.00e-03")
    assert "its result differs" in capsys.readouterr().err


def test_no_speed_without_a_reference(slow):
    def missing():
        raise ModuleNotFoundError("No module named 'monai'")

    run = a_run()
    run.measure(case(right=Implementation(missing), ours=Implementation(slow(0.1))))
    assert run.rows == []
    assert [entry["why"] for entry in run.results["skipped"]] == [
        "No module named 'monai'",
        "right, its reference, has no result",
    ]


def test_selected_implementations_are_compared_with_others(slow):
    run = a_run(selected=["ours", "wrong"])
    right, ours, other = (Implementation(slow(seconds)) for seconds in (0.1, 0.2, 0.1))
    run.measure(case(right=right, ours=ours, wrong=Implementation(slow(0.1, 2.0)), other=other))
    assert [row["backend"] for row in run.rows] == ["ours"]
    assert len(run.results["skipped"]) == 1


def test_failures_while_timing_are_skipped(slow):
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError("no room")
        return torch.ones(4)

    run = a_run()
    run.measure(case(right=Implementation(slow(0.1)), failing=Implementation(failing)))
    assert [row["backend"] for row in run.rows] == ["right"]
    assert run.results["skipped"][0]["why"] == "no room"
    run.measure_growth("what", "size", [(1, slow(0.1)), (2, failing), (3, slow(0.3))])
    assert [point["size"] for point in run.results["growth"][0]["points"]] == [1, 3]
    run.measure_growth("another", "size", [(1, slow(0.1)), (2, failing)])
    assert len(run.results["growth"]) == 1, "no line through one point"


def test_slow_implementations_run_once(slow):
    counted = []

    def count(run):
        return lambda: (counted.append(1), run())[1]

    for implementation, runs in (
        (Implementation(count(slow(11.0)), cold=True), 1),
        (Implementation(count(slow(11.0))), 3),
        (Implementation(count(slow(9.0)), warmup=3), 4),
    ):
        counted.clear()
        run = a_run()
        run.measure(case(right=implementation))
        assert len(counted) == runs and run.rows[0]["repeats"] == 1


def test_an_interrupted_run_keeps_its_rows(tmp_path, slow):
    def interrupted():
        raise KeyboardInterrupt

    run = a_run(tmp_path / "r.json")
    run.measure(case(right=Implementation(slow(0.1))))
    with pytest.raises(KeyboardInterrupt):
        run.measure(case(right=Implementation(interrupted)))
    saved = json.loads((tmp_path / "r.json").read_text())
    assert len(saved["rows"]) == 1 and saved["complete"] is False
    run.finish()
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is True


def test_a_wrong_result_of_the_library_fails(slow):
    """One of a baseline does not, nor a launch that was not chosen and does not fit the chip."""

    class OutOfResources(RuntimeError):
        pass

    def too_large():
        raise OutOfResources("out of resource: shared memory")

    run = a_run()
    wrong, other = Implementation(slow(0.1, 2.0)), Implementation(slow(0.1, 2.0), baseline=True)
    forced, chosen = Implementation(too_large, forced=True), Implementation(too_large)
    run.measure(case(right=Implementation(slow(0.1)), wrong=wrong, other=other, forced=forced, chosen=chosen))
    assert [entry["what"].split(", ")[-1] for entry in run.failed] == ["wrong", "chosen"]
    assert run.failed[0]["why"].startswith("AssertionError: largest error 1.00e+00")
    assert [row["backend"] for row in run.rows] == ["right"]

    def no_inputs():
        raise RuntimeError("no inputs")

    run.measure(dataclasses.replace(case(right=Implementation(slow(0.1))), op="another", inputs=no_inputs))
    assert run.failed[-1] == {"what": "dense, another, 4, float32", "why": "RuntimeError: no inputs"}


def test_a_resumed_run_goes_on_with_the_next_case(tmp_path, slow, monkeypatch):
    out = tmp_path / "r.json"
    counted = []

    def count(run):
        return lambda: (counted.append(1), run())[1]

    run = Run(out, CPU, None, "", quick=True, resume=True)
    run.measure(case(right=Implementation(count(slow(0.1)))))
    again = Run(out, CPU, None, "", quick=True, resume=True)
    before = len(counted)
    again.measure(case(right=Implementation(count(slow(0.1)))))
    assert len(counted) == before and again.rows == run.rows and again.results["peaks"] == run.results["peaks"]
    saved = json.loads(out.read_text())
    out.write_text(json.dumps(saved | {"running": "a case"}))
    assert Run(out, CPU, None, "", resume=True).failed == [{"what": "a case", "why": "the process ended while it ran"}]
    out.write_text(json.dumps(saved | {"measured": {"sources": "others"}}))
    assert Run(out, CPU, None, "", resume=True).rows == []


def test_a_lost_device_ends_the_run_and_its_case_is_not_repeated(tmp_path, slow, monkeypatch):
    def lost(*_):
        raise RuntimeError("an illegal memory access was encountered")

    run = a_run(tmp_path / "r.json", peaks=False)
    monkeypatch.setattr("bench.suite.runner.synchronize", lost)
    with pytest.raises(DeviceLost, match="no longer responds"):
        run.measure(case(right=Implementation(slow(0.1))))
    saved = json.loads((tmp_path / "r.json").read_text())
    assert list(saved["cases"]) == ["dense, op, 4, float32"] and saved["running"] is None
    assert saved["failed"][0]["why"].startswith("RuntimeError: an illegal memory access")


def test_a_case_on_the_device_has_its_own_time_and_the_walls(slow, monkeypatch):
    run = a_run(peaks=False)
    run._cold = lambda call, once: call() is None or 0.25 * once
    run.measure(dataclasses.replace(case(right=Implementation(slow(0.1))), on_device=True, images=2))
    assert run.rows[0]["median"] == pytest.approx(0.025) and run.rows[0]["wall"] == pytest.approx(0.1)
    assert run.rows[0]["gflops"] == pytest.approx(0.04) and run.rows[0]["images_per_s"] == pytest.approx(20)


def test_tf32_is_arithmetic_of_a_case(slow):
    seen = []
    run = a_run(peaks=False)
    read = Implementation(lambda: seen.append(torch.get_float32_matmul_precision()) or torch.ones(4))
    run.measure(dataclasses.replace(case(right=read), dtype="tf32"))
    assert set(seen) == {"high"} and torch.get_float32_matmul_precision() == "highest"
    assert run.rows[0]["dtype"] == "tf32"


def test_growth_has_exponents(tmp_path, slow):
    assert exponent([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)
    run = a_run(tmp_path / "r.json")
    run.measure_growth("sleeping", "seconds", [(size, slow(size)) for size in (0.01, 0.02, 0.04)])
    run.measure_growth("sleeping", "seconds", [(1, lambda: pytest.fail("measured before"))])
    (entry,) = run.results["growth"]
    assert entry["time exponent"] == pytest.approx(1) and [point["size"] for point in entry["points"]] == [
        0.01,
        0.02,
        0.04,
    ]


def test_unknown_names(capsys):
    assert main(["dense", "tents"]) == 1
    message = capsys.readouterr().err
    assert "no suite is called 'tents'" in message and ", ".join(ALL) in message
    assert main(["--backends", "abacus"]) == 1
    message = capsys.readouterr().err
    assert "no backend is called 'abacus'" in message and ", ".join(IMPLEMENTATIONS) in message


def test_nothing_to_measure(tmp_path, capsys):
    arguments = ["merge", "--quick", "--backends", "torch.eager", "-o", str(tmp_path / "r.json")]
    assert main(arguments) == 1
    assert "nothing to measure with torch.eager in merge" in capsys.readouterr().err


def test_one_suite_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.suite.cases.boxes_of_one_class", lambda count: synthetic.boxes_of_one_class(20))
    out = tmp_path / "b.json"
    assert main(["merge", "--quick", "--device", "cpu", "-o", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["complete"] and results["machine"]["torch"] == torch.__version__
    assert results["command"] == f"python -m bench merge --quick --device cpu -o {out}"
    assert {"overfeat", "paper-loop"} <= {row["backend"] for row in results["rows"]}
    assert main(["merge", "--quick", "--backends", "overfeat", "-o", str(out)]) == 0
    assert {row["backend"] for row in json.loads(out.read_text())["rows"]} == {"overfeat"}
    out.write_text("mine")
    assert main(["--quick", "-o", str(out)]) == 1
    assert "holds no results" in capsys.readouterr().err and out.read_text() == "mine"


def test_without_optional_packages(tmp_path):
    """As in `make gpu`, without a network: the suite and the profile need none of these packages."""
    missing = "pycocotools scipy monai ensemble_boxes matplotlib skimage mlxtend lazy_loader shtab".split()
    missing += ["onnxscript", "onnxruntime", "openvino"]
    code = (
        "import sys\n"
        f"for name in {missing}: sys.modules[name] = None\n"
        "import overfeat.profiling.peaks as m\n"
        "m.GEMM_SIZES, m.CONVOLUTIONS, m.COPY_BYTES = (64,), ((8, 16, 3),), 1 << 16\n"
        "import bench.gpu_run, torch; from bench.suite import cases, kernels, machine, runner\n"
        "this = machine.Machine(runner.Run(None, torch.device('cpu'), None, ''))\n"
        "listed = [case for suite in cases.SUITES.values() for case in suite(this)]\n"
        "assert {case.suite for case in listed} == set(cases.SUITES) - set(kernels.GPU_SUITES)\n"
        "names = {name for case in listed for name in case.implementations}\n"
        "assert 'overfeat' in names and not names & {'monai', 'nms', 'wbf', 'openvino'}\n"
        "from bench.__main__ import main; from overfeat.cli.main import main as overfeat\n"
        "image, weights = sys.argv[1:]\n"
        "flags = ['--weights', weights, '--scales', '0.5', '--repeats', '1', '-o', 'out']\n"
        "assert overfeat(['--fast', 'profile', image, *flags]) == 0\n"
        "sys.exit(main(['merge', '--quick', '--backends', 'overfeat', '-o', 'rows.json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(ASSETS / name for name in ("scenes/00012.png", "small.safetensors"))],
        cwd=tmp_path,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert json.loads((tmp_path / "out" / "profile.json").read_text())["whole"]


def test_tuning_is_copied(tmp_path, monkeypatch):
    """`python -m bench --tune`, without measuring: within the time limit of tuning, and of --budget."""
    pytest.importorskip("triton")
    from overfeat.kernels import tune

    def tuned(device, budget_s, progress):
        stored = tmp_path / "stored.json"
        stored.write_text(json.dumps({"device": str(device), "budget": budget_s}))
        progress("filter3: WRONG" if budget_s < 15 else "filter3: 1 ms")
        return stored

    monkeypatch.setattr(tune, "tune", tuned)
    for budget, expected in (("20", 20.0), ("900", 150.0)):
        assert main(["--tune", "--device", "cpu", "--budget", budget, "-o", str(tmp_path / "copy.json")]) == 0
        assert json.loads((tmp_path / "copy.json").read_text()) == {"device": "cpu", "budget": expected}
    assert main(["--tune", "--device", "cpu", "--budget", "10"]) == 1, "a wrong result"


def test_every_case_of_the_quick_suites_can_be_listed():
    """pytest bench/ collects them without running them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", "--collect-only", "-q", "-o", "addopts=", "-p", "no:xdist"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    listed = [line for line in done.stdout.splitlines() if "test_speed[" in line]
    assert len(set(listed)) == len(listed)
    assert {line.split("[")[1].split(",")[0] for line in listed} == set(SUITES) - set(GPU_SUITES)
