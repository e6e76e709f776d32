"""`make gpu` as a dry run on the CPU: its parts, exit status, resuming, and that it detects crashes and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_run
from bench.checks import outcomes
from bench.gpu_figures import figures
from bench.gpu_run import COMPLETE, FAILED, UNFINISHED, GpuRun
from bench.report import render

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("checks", "peaks", "suite")

# A process that is killed in a test, one that loses the device, and tests of every outcome.
TESTS = """
import os
import pytest, torch

def test_passes(): pass
def test_fails(): assert 1 + 1 == 3
@pytest.mark.skip(reason="not here")
def test_skips(): pass
def test_crashes(): os._exit(9)
def test_loses_the_device(monkeypatch):
    torch.cuda.is_initialized = lambda: True
    def lost(): raise RuntimeError("an illegal memory access was encountered")
    torch.cuda.synchronize = lost
def test_goes_on(): pass
"""


def start(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu_run", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def page(results: dict, suite: dict | None = None) -> str:
    """The page of a machine with a run, and its suite's results."""
    return render("machine", name="x", results={"gpu/x": results} | ({"suite/x": suite} if suite else {}))


def test_a_dry_run_completes_every_part_once(tmp_path):
    done = start("--dry-run", "--budget", "900", "--out", tmp_path, *PARTS)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu" / "dry-run.json").read_text())
    assert {part: state["state"] for part, state in results["parts"].items()} == dict.fromkeys(PARTS, COMPLETE)
    assert results["checks"]["passed"] > 0 and results["checks"]["failed"] == results["checks"]["left"] == 0
    suite = json.loads((tmp_path / "suite" / "dry-run.json").read_text())
    assert suite["complete"] and not suite["failed"] and set(suite["peaks"]) == {"float16", "tf32", "float32"}
    backends = {(row["suite"], row["backend"]) for row in suite["rows"]}
    assert {("pooling", "overfeat.fast"), ("first-layer", "torch.eager"), ("first-layer", "overfeat.fast")} <= backends
    text = page(results, suite)
    assert "its times have no meaning" in text and "0 failed, 0 left" in text and "### first-layer: " in text
    assert len(figures(suite)) == 7 and all(name in text for name, *_ in figures(suite))
    assert "| merging 640 groups of 1,575 boxes: ms | not measured |" in text
    again = start("--dry-run", "--out", tmp_path, *PARTS)
    assert again.returncode == 0 and again.stdout.count("complete in an earlier run") == 3


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of the tests in TESTS, whose logs are in the temporary folder."""
    (tmp_path / "test_of_all_kinds.py").write_text(TESTS)
    monkeypatch.setattr(gpu_run, "TINY_TESTS", (str(tmp_path / "test_of_all_kinds.py"),))
    monkeypatch.setattr(GpuRun, "_log", lambda self, shard: tmp_path / "log")
    return GpuRun(tmp_path / "out", None, 300, dry=True)


def test_checks_go_on_after_a_crash_and_a_lost_device(run, capfd):
    assert run.run(["checks"]) == 1
    checks = run.results["checks"]
    assert (checks["passed"], checks["failed"], checks["left"]) == (2, 3, 0)
    assert list(checks["skipped"].values()) == [1]
    failed = {entry["what"].split("::")[1]: entry["why"] for entry in run.results["parts"]["checks"]["failed"]}
    assert failed["test_fails"].startswith("assert (1 + 1) == 3")
    assert "ended with status 9" in failed["test_crashes"] and "illegal" in failed["test_loses_the_device"]
    assert run.results["parts"]["checks"]["state"] == FAILED
    out = capfd.readouterr().out
    assert "FAILED: " in out and "test_crashes: its process ended with status 9" in out
    saved = json.loads(run.path.read_text())
    assert saved["parts"]["checks"]["state"] == FAILED
    assert "Failed: " in page(saved) and "3 failed" in page(saved)


def test_a_run_without_time_is_unfinished(run):
    run.end = 0.0
    assert run.run(["checks", "suite"]) == 3
    assert {state["state"] for state in run.results["parts"].values()} == {UNFINISHED}


def test_what_was_run_is_kept_for_the_same_sources_alone(run):
    events = [{"test": name, "shard": "0/1", "outcome": outcome, "message": ""}
              for name, outcome in (("a", "passed"), ("b", "started"))]  # fmt: skip
    for state, kept in ((run.state, {"a"}), (run.state | {"device": "another"}, set())):
        run.record.write_text("".join(json.dumps(event) + "\n" for event in events))
        run.path.write_text(json.dumps(run.results | {"measured": state}))
        assert set(outcomes(GpuRun(run.out, None, 300, dry=True).record)) == kept


def test_tests_that_cannot_be_collected_fail(run, tmp_path, capfd):
    (tmp_path / "test_of_all_kinds.py").write_text("import no_such_module")
    assert run.run(["checks"]) == 1
    assert "no_such_module" in capfd.readouterr().out


@pytest.mark.parametrize("arguments", [("--budget", "0"), ("--budget", "nan"), ("--budget", "x"), ("tents",)])
def test_wrong_arguments(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu_run", "--dry-run", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu_run.main()
    assert ended.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu_run"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_run.main() == 2
    assert capsys.readouterr().out.splitlines() == ["no GPU that torch can use on this machine"]


@pytest.mark.parametrize("package", ["torch", "triton", "safetensors", "pytest"])
def test_a_missing_package_is_named(package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('none', name={package!r})")
    done = start(PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="")
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1 and f"has no {package}; name" in done.stdout


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = start("--dry-run", "--out", tmp_path / "file", "checks")
    assert done.returncode == 2 and not done.stderr
    assert len(done.stdout.splitlines()) == 1 and "file/gpu: cannot be made a folder" in done.stdout


def test_a_record_with_lines_that_were_cut_off(tmp_path):
    event = json.dumps({"test": "a", "shard": "0/1", "outcome": "passed", "message": ""})
    (tmp_path / "record").write_text(f"{event}\n{event[:20]}{event}\n{event[:9]}")
    assert list(outcomes(tmp_path / "record")) == ["a"]


def test_a_lost_terminal_stops_the_checks(tmp_path):
    """The processes of the checks are groups of their own, which a hang-up does not reach."""
    command = [sys.executable, "-m", "bench.gpu_run", "--dry-run", "--out", tmp_path, "checks"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout and "checks" in process.stdout.readline()
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    deadline = time.monotonic() + 30
    while running := [child for child in children if is_running(child)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def is_running(process: str) -> bool:
    """Whether a process exists that has not ended; one without a parent may be left as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
