"""`python -m bench --compare`: two commits, pair by pair."""

import json
import subprocess

import pytest

from bench.__main__ import main
from bench.common import ROOT
from bench.suite import compare
from bench.suite.compare import pairwise
from overfeat.errors import InputError


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
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    options = {"suites": ["small-net"], "backends": ["overfeat"], "quick": True, "device": "cpu"}
    compare.compare("HEAD", options, "python -m bench ...", tmp_path / "r.json", pairs=1)
    comparison = json.loads((tmp_path / "r.json").read_text())
    assert comparison["machine"]["commit"].removesuffix("-dirty") == comparison["compared with"]
    (row,) = comparison["rows"]
    assert row["backend"] == "overfeat" and row["ratios"][0] > 0
    assert "speed-up over HEAD" in capfd.readouterr().out
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "overfeat-compare-" not in worktrees


def test_an_unknown_commit(tmp_path, capsys):
    assert main(["--quick", "--compare", "no-such-commit", "-o", str(tmp_path / "r.json")]) == 1
    assert "--compare no-such-commit: " in capsys.readouterr().err
