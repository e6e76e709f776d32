"""The process of the workers of local:N: it is started again, and ended."""

import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

import overfeat
from overfeat.cluster import connect


@pytest.fixture
def started(monkeypatch):
    """The processes that stand for workers; `started.code` is what they run."""

    class Started(list):
        code = ""

        def __call__(self, address, count):
            self.append(subprocess.Popen([sys.executable, "-S", "-c", self.code], start_new_session=True))
            return self[-1]

    started = Started()
    monkeypatch.setattr(connect, "_start_workers", started)
    return started


def test_workers_that_end_are_started_again_and_then_given_up(started):
    given_up = Event()
    workers = connect._Workers("tcp://127.0.0.1:1", 2, given_up.set)
    assert given_up.wait(60) and workers.failed and len(started) == connect.STARTS
    workers.stop()
    assert len(started) == connect.STARTS


@pytest.mark.parametrize(("code", "ended_by"), [
    ("import time; time.sleep(60)", signal.SIGTERM),
    ("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)", signal.SIGKILL),
])  # fmt: skip
def test_workers_are_ended(started, monkeypatch, code, ended_by):
    monkeypatch.setattr(connect, "STOPPING", 1.0)
    started.code = code
    workers = connect._Workers("tcp://127.0.0.1:1", 2, lambda: None)
    while ended_by == signal.SIGKILL and not ignores(started[0].pid, signal.SIGTERM):
        time.sleep(0.01)
    workers.stop()
    assert started[0].returncode == -ended_by and not workers.failed


def ignores(pid, number):
    """Whether a process ignores a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16) >> number - 1 & 1


def test_ctrl_c_does_not_reach_workers_nor_their_warning_the_terminal(monkeypatch):
    given = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: given.update(options))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    connect._start_workers("tcp://127.0.0.1:1", 2)
    assert given["start_new_session"] is True
    assert given["env"]["PYTHONWARNINGS"] == f"ignore,{connect.LEAK}"


def test_the_functions_of_a_script_may_use_overfeat():
    assert pickle.loads(pickle.dumps(overfeat)) is overfeat  # Dask pickles them with the modules that they use
