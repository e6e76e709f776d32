"""`overfeat bench`: what is checked, kept, left out and compared."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from bench.suite import against, command, made_up
from bench.suite.against import pairwise
from bench.suite.baselines import eager, monai_windows, naive_windows, offset_loop, stage, windows_alone
from bench.suite.cases import SUITES, WAYS
from bench.suite.run import MOST, Case, Run, Way, exponent
from bench.tolerance import assert_matches
from overfeat.cli import bench as cli
from overfeat.cli.main import main
from overfeat.errors import InputError
from overfeat.models.overfeat import build

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Ceilings and repeats of no size."""
    monkeypatch.setattr("overfeat.profiling.peaks.PRODUCTS", (64,))
    monkeypatch.setattr("overfeat.profiling.peaks.CONVOLUTIONS", ((8, 16, 3),))
    monkeypatch.setattr("overfeat.profiling.peaks.COPIED", 1 << 16)


class Clock:
    """One that only what is timed moves on."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def slow(monkeypatch):
    """slow(seconds, value): a function that takes so long and gives four of the value."""
    clock = Clock()
    monkeypatch.setattr("bench.suite.run.time", clock)

    def make(seconds, value=1.0):
        def run():
            clock.now += seconds
            return torch.full((4,), value)

        return run

    return make


def case(**ways):
    return Case("dense", "op", "4", "right", ways, list, flop=1e6, moved=1e5)


def a_run(out=None, wanted=None, quick=True):
    return Run(out, CPU, wanted, "test", quick)


def test_rows_have_rates_ceilings_and_ratios(tmp_path, slow):
    run = a_run(tmp_path / "r.json")
    run.measure(case(ours=Way(slow(0.01)), right=Way(slow(0.03), baseline=True)))
    right, ours = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert ours["backend"] == "ours" and right["baseline"] and not ours["baseline"]
    assert ours["times"] == {"right": pytest.approx(3)} and right["times"] == {}
    assert ours["p20"] == ours["median"] == ours["p80"] == pytest.approx(0.01)
    assert ours["gflops"] == pytest.approx(0.1) and ours["gbs"] == pytest.approx(0.01)
    ceiling = run.results["ceilings"]["float32"]
    assert ours["ceiling_gflops"] == pytest.approx(max(ceiling["product"], ceiling["convolution"]) / 1e9)
    assert ours["fraction"] == pytest.approx(ours["gflops"] / ours["ceiling_gflops"])
    assert ours["dtype"] == "float32" and ours["peak_bytes"] is not None


def test_the_best_ceiling_of_a_run_counts(slow, monkeypatch):
    found = iter([{"product": 1e9, "convolution": 2e9, "copy": 4e9}, {"product": 4e9, "convolution": 1e9, "copy": 3e9}])
    monkeypatch.setattr("bench.suite.run.ceilings", lambda *_: next(found))
    run = a_run(quick=False)
    run.measure(case(right=Way(slow(0.01))))
    assert run.rows[0]["repeats"] == MOST and run.rows[0]["ceiling_gflops"] == 2
    run.finish()
    assert run.rows[0]["ceiling_gflops"] == 4 and run.rows[0]["fraction"] == pytest.approx(0.1 / 4)
    assert run.rows[0]["ceiling_gbs"] == 4


def test_no_speed_for_a_wrong_result(tmp_path, capsys, slow):
    run = a_run(tmp_path / "r.json")
    wrong = Way(slow(0.1, 1.001))
    other = Way(slow(0.1, 3.0), baseline=True, like="", remark=lambda got: f"{got[0]:g}")
    like, unlike = Way(slow(0.1, 3.0), like="other"), Way(slow(0.1, 1.0), like="other")
    run.measure(case(right=Way(slow(0.1)), wrong=wrong, other=other, like=like, unlike=unlike))
    assert {row["backend"]: row["remark"] for row in run.rows} == {"right": "", "other": "3", "like": ""}
    left = {entry["what"].split(", ")[-1]: entry["why"] for entry in run.results["left out"]}
    assert left.keys() == {"wrong", "unlike"}
    assert left["wrong"].startswith("its result differs: largest error 1.00e-03")
    assert "its result differs" in capsys.readouterr().err


def test_no_speed_without_a_reference(slow):
    def missing():
        raise ModuleNotFoundError("No module named 'monai'")

    run = a_run()
    run.measure(case(right=Way(missing), ours=Way(slow(0.1))))
    assert run.rows == []
    assert [entry["why"] for entry in run.results["left out"]] == [
        "No module named 'monai'",
        "right, which it is compared with, has no result",
    ]


def test_what_is_wanted_is_compared_with_what_is_not(slow):
    run = a_run(wanted=["ours", "wrong"])
    run.measure(case(right=Way(slow(0.1)), ours=Way(slow(0.2)), wrong=Way(slow(0.1, 2.0)), other=Way(slow(0.1))))
    assert [row["backend"] for row in run.rows] == ["ours"]
    assert len(run.results["left out"]) == 1


def test_what_fails_later_is_left_out(slow):
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError("no room")
        return torch.ones(4)

    run = a_run()
    run.measure(case(right=Way(slow(0.1)), failing=Way(failing)))
    assert [row["backend"] for row in run.rows] == ["right"]
    assert run.results["left out"][0]["why"] == "no room"
    run.grow("what", "size", [(1, slow(0.1)), (2, failing), (3, slow(0.3))])
    assert [point["size"] for point in run.results["growth"][0]["points"]] == [1, 3]
    run.grow("what", "size", [(1, slow(0.1)), (2, failing)])
    assert len(run.results["growth"]) == 1, "no line through one point"


def test_what_takes_long_runs_once(slow):
    counted = []

    def count(run):
        return lambda: (counted.append(1), run())[1]

    for way, runs in (
        (Way(count(slow(11.0)), cold=True), 1),
        (Way(count(slow(11.0))), 3),
        (Way(count(slow(9.0)), warm=3), 4),
    ):
        counted.clear()
        run = a_run()
        run.measure(case(right=way))
        assert len(counted) == runs and run.rows[0]["repeats"] == 1


def test_an_interrupted_run_keeps_its_rows(tmp_path, slow):
    def interrupted():
        raise KeyboardInterrupt

    run = a_run(tmp_path / "r.json")
    run.measure(case(right=Way(slow(0.1))))
    with pytest.raises(KeyboardInterrupt):
        run.measure(case(right=Way(interrupted)))
    kept = json.loads((tmp_path / "r.json").read_text())
    assert len(kept["rows"]) == 1 and kept["complete"] is False
    run.finish()
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is True


def test_growth_has_exponents(tmp_path, slow):
    assert exponent([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)
    run = a_run(tmp_path / "r.json")
    run.grow("sleeping", "seconds", [(size, slow(size)) for size in (0.01, 0.02, 0.04)])
    (entry,) = run.results["growth"]
    assert entry["time exponent"] == pytest.approx(1) and [point["size"] for point in entry["points"]] == [
        0.01,
        0.02,
        0.04,
    ]


def test_names_that_are_not_known(capsys):
    assert main(["bench", "--suites", "dense", "tents"]) == 1
    told = capsys.readouterr().err
    assert "no suite is called 'tents'" in told and ", ".join(SUITES) in told
    assert main(["bench", "--backends", "abacus"]) == 1
    told = capsys.readouterr().err
    assert "no backend is called 'abacus'" in told and ", ".join(WAYS) in told
    assert cli.SUITES == (*SUITES, command.GROWTH) and cli.BACKENDS == WAYS, "the help names others"


def test_nothing_to_measure(tmp_path, capsys):
    arguments = ["--quick", "--suites", "merge", "--backends", "torch.eager", "-o", str(tmp_path / "r.json")]
    assert main(["bench", *arguments]) == 1
    assert "nothing is measured by torch.eager in merge here" in capsys.readouterr().err


def test_one_suite_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.suite.cases.one_image", lambda count: made_up.one_image(20))
    out = tmp_path / "b.json"
    assert main(["bench", "--quick", "--suites", "merge", "--device", "cpu", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["complete"] and found["machine"]["torch"] == torch.__version__
    assert found["command"] == f"overfeat bench --quick --suites merge --device cpu -o {out}"
    assert {"overfeat", "paper-loop"} <= {row["backend"] for row in found["rows"]}
    assert main(["bench", "--quick", "--suites", "merge", "--backends", "overfeat", "-o", str(out)]) == 0
    assert {row["backend"] for row in json.loads(out.read_text())["rows"]} == {"overfeat"}
    out.write_text("mine")
    assert main(["bench", "--quick", "-o", str(out)]) == 1
    assert "holds no results" in capsys.readouterr().err and out.read_text() == "mine"


@pytest.mark.parametrize("package", ["pycocotools", "monai", "ensemble_boxes", "matplotlib"])
def test_without_a_package(tmp_path, package):
    """As on a GPU machine without a network: what is not there is left out, and the rest runs."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import overfeat.profiling.peaks as m; m.PRODUCTS, m.CONVOLUTIONS, m.COPIED = (64,), ((8, 16, 3),), 1 << 16\n"
        "import torch; from bench.suite import cases, run\n"
        "machine = cases.Machine(run.Run(None, torch.device('cpu'), None, ''))\n"
        "assert len([case for suite in cases.SUITES.values() for case in suite(machine)]) > 20\n"
        "from overfeat.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["bench", "--quick", "--suites", "merge", "--backends", "overfeat", "-o", "rows.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(against.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]


def results(times, **machine):
    rows = [
        dict(zip(("suite", "op", "shape", "dtype", "backend"), "abcd" + k, strict=True), median=m)
        for k, m in times.items()
    ]
    return {"machine": {"cpu": "x", "gpu": "none", "threads": 2, "torch": "2", **machine}, "rows": rows}


def test_two_commits_are_compared_pair_by_pair():
    first = results({"e": 2.0, "f": 1.0}), results({"e": 1.0, "g": 1.0})
    second = results({"e": 3.0}), results({"e": 2.0})
    assert pairwise([first, second]) == {("a", "b", "c", "d", "e"): [2.0, 1.5]}
    with pytest.raises(InputError, match="the two runs differ in cpu: x and y"):
        pairwise([(first[0], results({"e": 1.0}, cpu="y"))])


def test_a_commit_against_itself(tmp_path, capfd):
    if not (against.ROOT / ".git").exists():
        pytest.skip("not a clone")
    options = {"suites": ["merge"], "backends": ["overfeat"], "quick": True, "device": "cpu"}
    against.compare("HEAD", options, "overfeat bench ...", tmp_path / "r.json", pairs=1)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["machine"]["commit"].removesuffix("-dirty") == found["against"]
    (row,) = found["rows"]
    assert row["backend"] == "overfeat" and row["ratios"][0] > 0
    assert "times as fast as HEAD" in capfd.readouterr().out
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=against.ROOT, capture_output=True, text=True).stdout
    assert "overfeat-against-" not in worktrees


def test_a_commit_that_is_not_there(tmp_path, capsys):
    assert main(["bench", "--quick", "--against", "no-such-commit", "-o", str(tmp_path / "r.json")]) == 1
    assert "--against no-such-commit: " in capsys.readouterr().err


def test_every_case_of_the_quick_suites_can_be_listed():
    """pytest bench/ finds them without running them."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", "--collect-only", "-q", "-o", "addopts=", "-p", "no:xdist"],
        capture_output=True, text=True, cwd=command.__file__.split("/bench/")[0],
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    listed = [line for line in found.stdout.splitlines() if "test_speed[" in line]
    assert len(set(listed)) == len(listed) > 15
    assert all(any(f"[{name}, " in line for line in listed) for name in SUITES)


@pytest.fixture
def bare(make_net):
    """A net without padding, whose every window alone gives what the whole image gives there; and an image."""
    net = make_net("thin fast", 5)
    bare = dataclasses.replace(
        net.architecture, convs=tuple(dataclasses.replace(conv, pad=0) for conv in net.architecture.convs)
    )
    torch.manual_seed(0)
    net = build(bare, 5).eval()
    net.init_weights(None)
    sides = [bare.window + bare.fine_stride * more for more in (3, 1)]
    return net, torch.randint(0, 256, (1, 3, *sides), dtype=torch.uint8)


@pytest.mark.parametrize("windows", [naive_windows, monai_windows])
@torch.no_grad()
def test_windows_alone_are_the_places_of_the_whole(bare, windows):
    if windows is monai_windows:
        pytest.importorskip("monai", reason="it is in the extra bench alone")
    net, image = bare
    want = net(image, "fine")
    assert want.shape[2:] == (4, 2)
    assert_matches(windows(net, image, 3), want, torch.float32)


@torch.no_grad()
def test_baselines_give_what_the_library_gives(make_net):
    net = make_net("thin accurate", 5)
    sides = [net.architecture.window + net.architecture.fine_stride * more for more in (4, 2)]
    image = torch.randint(0, 256, (2, 3, *sides), dtype=torch.uint8)
    maps, want = net.features(image), net(image, "fine")
    assert_matches(eager(net, image), want, torch.float32)
    assert_matches(stage(net, maps), want, torch.float32)
    assert_matches(offset_loop(net, maps), want, torch.float32)
    window = image[:, :, : net.architecture.window, : net.architecture.window]
    assert_matches(windows_alone(net, window), net(window).flatten(1), torch.float32)
