"""The run on a GPU, as a dry run on the CPU: its sections, its exit status, and that it detects a wrong kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.pages.gpu import page

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    "short checks", "measured peaks", "packed", "classification", "tuning", "scales", "overlapping pools", "training",
    "merging", "thorough checks", "other kinds", "naive windows", "fragile checks",
]  # fmt: skip

# A kernel that leaves the last row of its result uninitialised; on the run's clock, every check takes a second.
WRONG = """
import itertools, sys
from types import SimpleNamespace
import bench.gpu.run
import overfeat.fast
from overfeat.ops.backends import triton
right = triton.BACKEND.functions["skip_classifier_flat"]
def wrong(*arguments):
    rows = right(*arguments)
    result = rows.new_empty(rows.shape)
    result[:-1] = rows[:-1]
    return result
triton.BACKEND.functions["skip_classifier_flat"] = wrong
bench.gpu.run.time = SimpleNamespace(monotonic=itertools.count().__next__)
from bench.gpu.__main__ import main
sys.exit(main())
"""


def start(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


def test_a_dry_run_completes_every_section(tmp_path):
    done = start("-m", "bench.gpu", "--dry-run", "--out", tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["dry-run.json"]
    results = json.loads((tmp_path / "dry-run.json").read_text())
    assert results["dry run"] is True
    assert {name: section["state"] for name, section in results["sections"].items()} == dict.fromkeys(
        SECTIONS, "complete"
    )
    assert {check["result"] for check in results["checks"]} == {"passed", "skipped"}
    for row in results["rows"]:
        assert "error" not in row and row["check"], row
    packed = [row for row in results["rows"] if row["section"] == "packed" and row["backend"].startswith("overfeat")]
    assert packed and {row["runs"] for row in packed} == {"triton"}
    assert all(row["speedup_over_eager"] and row["tflops"] and row["fraction_of_gemm"] for row in packed)
    assert set(results["peaks"]) == {"float16", "tf32", "float32", "copy"}
    assert len(results["targets"]) == 10
    text = page(results)
    assert "its times have no meaning" in text and "0 failed" in text
    assert all(target["name"] in text for target in results["targets"])
    assert all(f"{row['median']:.3f}" in text for row in packed)


def test_a_wrong_kernel_is_detected(tmp_path):
    done = start("-c", WRONG, "--dry-run", "--out", tmp_path, "--budget", "20", TRITON_INTERPRET="1")
    assert done.returncode == 1, done.stdout + done.stderr
    results = json.loads((tmp_path / "dry-run.json").read_text())
    failed = [check for check in results["checks"] if check["result"] == "failed"]
    text = page(results)
    assert f"{len(failed)} failed" in text and f"Failed: {failed[0]['name']}" in text
    assert {check["op"] for check in failed} == {"first full layer"}
    assert "]: nan, expected" in failed[0]["message"], "which element is wrong"
    assert f"FAILED {failed[0]['name']}" in done.stdout
    # The time budget was used up as well, which is reported too.
    assert list(results["sections"]) == SECTIONS
    assert results["sections"]["fragile checks"]["state"] == "cut short: the time budget of 20 s is used up"


def test_a_failed_check_invalidates_its_rows(tmp_path):
    from bench.gpu.run import EAGER, FAST, Run

    def fail():
        raise AssertionError("no")

    run = Run(tmp_path, 60, dry=True)
    for backend in (EAGER, f"{FAST}, fused", FAST):
        for kind in ("float16", "float32"):
            assert run.row("here", "first full layer", "", kind, backend, lambda: None)
    assert run.check("fine", "first full layer", EAGER, "float16", lambda: None)
    assert not run.check("bad", "first full layer", FAST, "float16", fail)
    run.save()
    rows = json.loads(run.path.read_text())["rows"]
    assert [row["check"] for row in rows] == [True, True, False, True, False, True]


def test_an_interrupted_section_is_not_complete(tmp_path):
    from bench.gpu.run import Run

    def interrupt(run):
        raise KeyboardInterrupt

    run = Run(tmp_path, 60, dry=True)
    with pytest.raises(KeyboardInterrupt):
        run.section("here", interrupt)
    assert json.loads(run.path.read_text())["sections"]["here"]["state"] == "interrupted"
    assert "Not complete: here, interrupted" in page(run.results)


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "x"])
def test_a_budget_is_a_time(budget):
    done = start("-m", "bench.gpu", "--dry-run", "--budget", budget)
    assert done.returncode == 2 and "--budget" in done.stderr


def test_without_a_gpu():
    done = start("-m", "bench.gpu", CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout.startswith("no GPU that torch can use on this machine")
    assert len(done.stdout.splitlines()) == 1
