"""The first cases of every target of make fuzz, and the runner, with a target that fails in every way."""

import json
import random
import subprocess
import sys
from collections import Counter

import harness
import page
import pytest
import runner

HANG = {"seed": 5, "count": 1, "text": ""}
FAILING = """
import os, time

def check(rng, folder):
    case = len(list(folder.parent.glob("case-*")))
    (folder.parent / f"case-{case}").touch()
    if case in (0, 1, 4):  # 0 and 4: before the first case of each process
        return "held"
    if case == 2:
        raise KeyError("missing")
    os._exit(3) if case == 3 else time.sleep(1000)
"""


@pytest.mark.parametrize("name", harness.names())
def test_cases(name):
    for seed in range(harness.target(name).CASES):
        try:
            harness.run_case(name, seed)
        except BaseException as error:
            error.add_note(f"Repeat it: python tests/fuzz {name} --seed {seed}")
            raise


@pytest.mark.parametrize("seed", [3, 4])
def test_commands_that_are_killed(seed):
    """In a process of their own, since pytest's cannot start others by forking."""
    command = [sys.executable, str(harness.HERE), "kills", "--seed", str(seed)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("kills: killed")


def test_failures_crashes_and_hangs_are_found(tmp_path, monkeypatch):
    (tmp_path / "fuzz_failing.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outcomes, failures = Counter(), {}
    seed, problem = runner.run_worker("failing", 10, 100, outcomes, failures)
    assert (seed, problem["failure"]) == (12, "exit status 3")
    assert outcomes == {"held": 1, "failed": 1}
    assert [(kind, failure["seed"]) for kind, failure in failures.items()] == [("KeyError at fuzz_failing.py:10", 11)]
    monkeypatch.setattr(runner, "CASE_SECONDS", 0.1)
    assert runner.run_worker("failing", 13, 100, outcomes, failures) == (13, {"failure": "over 0.1 s", "text": ""})


def test_a_seed_gives_the_same_case():
    assert harness.mutate(bytes(1000), random.Random(5)) == harness.mutate(bytes(1000), random.Random(5))


@pytest.mark.parametrize("message", ["", "a\nb", "\x1b[31mred", "x" * 2000])
def test_messages_are_one_printable_line(message):
    with pytest.raises(AssertionError):
        harness.check_message(message)


def test_the_page_names_failures(tmp_path):
    good = {"tried": "Files", "cases": 1200, "seconds": 90, "outcomes": {"read": 1200}, "failures": {}}
    for failures, words in (({}, "no failure. "), ({"over 60 s": HANG}, "failures: over 60 s (files). ")):
        results, file = {"files": good | {"failures": failures}}, tmp_path / "run.json"
        assert ("--seed 5" in runner.report("files", results["files"])) == bool(failures)
        runner.write(results, file)
        text = file.with_suffix(".md").read_text()
        assert f"1,200 cases in 2 minutes of one process, {words}" in text
        assert "| `files`: Files | 1,200 | 1,200 read |" in text


def test_the_documentation_has_the_counts_and_no_failure():
    file = harness.HERE.parents[1] / "docs" / "reliability.json"
    targets = json.loads(file.read_text())["targets"]
    assert file.with_suffix(".md").read_text() == page.page(file)
    assert targets.keys() <= set(harness.names()) and not any(target["failures"] for target in targets.values())
