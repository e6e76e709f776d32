"""One run at a time in a folder of results, and parts of one job side by side."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from overfeat.cluster import lock
from overfeat.cluster.lock import RunLock, read_owner
from overfeat.cluster.part import Part, parse_part
from overfeat.errors import InputError


def test_a_second_run_is_refused_with_its_owner(tmp_path):
    with RunLock(tmp_path, command="overfeat detect a"):
        owner = f"host {socket.gethostname()}, process {os.getpid()}, since 20"
        with pytest.raises(
            InputError, match=rf"{re.escape(str(tmp_path))}: another run \({re.escape(owner)}"
        ) as refused:
            RunLock(tmp_path)
        assert "overfeat detect a) is writing results there; wait until it has ended" in str(refused.value)
    with RunLock(tmp_path) as own:
        assert read_owner(tmp_path / ".run")["run"] == own.run
    assert not list(tmp_path.iterdir())


def test_parts_of_one_job_run_side_by_side(tmp_path):
    with RunLock(tmp_path, Part(1, 2)), RunLock(tmp_path, Part(2, 2)):
        with pytest.raises(InputError, match=r"is writing results there \(part 2 of 2\)"):
            RunLock(tmp_path, Part(2, 2))
        with pytest.raises(InputError, match=r"is writing results there \(part [12] of 2\)"):
            RunLock(tmp_path)
        with pytest.raises(InputError, match="of 2"):
            RunLock(tmp_path, Part(1, 3))
        assert len(list(tmp_path.iterdir())) == 2
    with RunLock(tmp_path), pytest.raises(InputError, match="is writing results there; wait"):
        RunLock(tmp_path, Part(1, 2))


def test_a_killed_run_frees_the_folder(tmp_path):
    code = (
        "import sys, time, pathlib; from overfeat.cluster.lock import RunLock; from overfeat.cluster.part import Part\n"
    )
    code += "held = RunLock(pathlib.Path(sys.argv[1]), Part(1, 2)); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"process {process.pid},.*part 1 of 2"):
            RunLock(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert read_owner(tmp_path / ".run-1-of-2")["process"] == process.pid
    with RunLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".run"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """What a run on another host left, whose locks this one does not see."""
    monkeypatch.setattr(lock, "WATCH", 0.3)
    owner = {"host": "node-7", "process": 11, "started": "2026-01-02 03:04:05", "command": "", "run": "a", "beat": 3}
    (tmp_path / ".run").write_text(json.dumps(owner))
    return owner


def test_a_dead_owner_on_another_host(tmp_path, elsewhere, capsys):
    with RunLock(tmp_path):
        pass
    assert (
        "another run (host node-7, process 11, since 2026-01-02 03:04:05) has left its lock" in capsys.readouterr().err
    )


def test_a_living_owner_on_another_host(tmp_path, elsewhere, monkeypatch):
    def beat(seconds):
        (tmp_path / ".run").write_text(json.dumps(elsewhere | {"beat": 4}))

    monkeypatch.setattr(lock.time, "sleep", beat)
    with pytest.raises(InputError, match=r"\(host node-7, process 11"):
        RunLock(tmp_path)


def test_without_locks_of_the_file_system_the_process_decides(tmp_path, monkeypatch):
    def unsupported(*arguments, **options):
        raise lock.UnsupportedLockError

    monkeypatch.setattr(lock, "lock", unsupported)
    owner = {"host": socket.gethostname(), "process": os.getppid(), "started": "now", "command": "", "run": "a"}
    (tmp_path / ".run").write_text(json.dumps(owner))
    with pytest.raises(InputError, match=f"process {os.getppid()}"):
        RunLock(tmp_path)
    (tmp_path / ".run").write_text(json.dumps(owner | {"process": 2**22 + 1}))
    with RunLock(tmp_path):
        pass


def test_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with RunLock(tmp_path):
        first, end = read_owner(tmp_path / ".run")["beat"], time.monotonic() + 30
        while read_owner(tmp_path / ".run").get("beat", first) <= first + 2:
            assert time.monotonic() < end, "no sign of life"


def test_parts():
    items = list(range(10))
    assert parse_part("2/3") == Part(2, 3) and str(Part(2, 3)) == "2/3"
    assert sorted(item for i in (1, 2, 3) for item in items if Part(i, 3).has(item)) == items
    for text in ("0/3", "4/3", "1", "a/3", "1/", "/", "-1/3", "1/0"):
        with pytest.raises(InputError, match=re.escape(f"{text!r} is no part: write I/N, such as 3/8")):
            parse_part(text)
