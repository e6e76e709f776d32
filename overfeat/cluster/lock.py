"""One run at a time in a folder of results, on whatever machine it runs; parts of one job run side by side.

The lock is a file in the folder with the owner in it: host, process, command, and a number that the owner counts up.
The operating system frees it when the process ends, however it ends. Where that is not to be trusted, since the owner
is on another host or the file system has no locks, the owner lives as long as its number changes.
"""

import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

from overfeat.cluster.part import Part
from overfeat.errors import InputError, printable
from overfeat.files import UnsupportedLockError, lock

BEAT = 5.0  # seconds between two signs of life
WATCH = 15.0  # seconds without one after which an owner on another host is dead
NAME = re.compile(r"\.run(?:-(\d+)-of-(\d+))?")


class RunLock:
    """Held from its creation to `release`, or the end of a `with`, which also gives the signs of life.

    Attributes:
        run: Identifies this run; the file has it, so that a worker sees whether it shares the folder.

    Raises InputError, which names the owner, where another run writes the same results.
    """

    def __init__(self, folder: Path, part: Part | None = None, command: str = ""):
        self.path = folder / (".run" if part is None else f".run-{part.index}-of-{part.count}")
        self.run, self._number = uuid.uuid4().hex, 0
        self._end, self._writing = Event(), Lock()
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._owner = {"host": socket.gethostname(), "process": os.getpid(), "started": started, "command": command}
        self._descriptor: int | None = _take(self.path)
        try:
            self._beat()
            for other in _others(self.path):
                descriptor = _take(other)
                other.unlink(missing_ok=True)  # of a run that was killed
                os.close(descriptor)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> "RunLock":
        Thread(target=self._live, name="run-lock", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Free the folder for other runs."""
        self._end.set()
        with self._writing:
            descriptor, self._descriptor = getattr(self, "_descriptor", None), None
            if descriptor is not None:
                with suppress(OSError):
                    self.path.unlink()
                os.close(descriptor)

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        with self._writing:
            if self._descriptor is not None:
                self._number += 1
                text = json.dumps({**self._owner, "run": self.run, "beat": self._number}).encode()
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                os.write(self._descriptor, text)
                os.ftruncate(self._descriptor, len(text))
                os.fsync(self._descriptor)  # other hosts see it now


def read_owner(path: Path) -> dict[str, Any]:
    """Who holds a lock; empty if nobody does, or it is being written."""
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_bytes())
        return owner if isinstance(owner, dict) else {}
    return {}


def _take(path: Path) -> int:
    """Lock the file. Raises InputError if its owner lives."""
    try:
        descriptor, locked = lock(path, make=True), True
    except UnsupportedLockError:
        descriptor, locked = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
    if descriptor is not None and not _lives(path, locked=locked):
        return descriptor
    if descriptor is not None:
        os.close(descriptor)
    raise InputError(_in_use(path))


def _lives(path: Path, *, locked: bool) -> bool:
    """Whether the owner in a file still runs; on this host the lock, or else the process, shows it."""
    owner = read_owner(path)
    if not owner:
        return False
    if owner.get("host") == socket.gethostname():
        return not locked and owner.get("process") != os.getpid() and _runs(owner.get("process"))
    message = f"{path.parent}: {_described(owner)} has left its lock; waiting {WATCH:g} s for a sign of life"
    print(printable(message), file=sys.stderr)
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH))
        if read_owner(path) != owner:
            return True
    return False


def _runs(process: object) -> bool:
    try:
        os.kill(int(str(process)), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        pass
    return True


def _others(path: Path) -> Iterator[Path]:
    """The locks in the folder that stand for some of the same results: all but those of other parts of one job."""
    own = NAME.fullmatch(path.name)
    for other in path.parent.glob(".run*"):
        match = NAME.fullmatch(other.name)
        if own and match and other != path and not (own[2] and own[2] == match[2]):
            yield other


def _in_use(path: Path) -> str:
    match = NAME.fullmatch(path.name)
    part = f" (part {match[1]} of {match[2]})" if match and match[1] else ""
    return f"{path.parent}: {_described(read_owner(path))} is writing results there{part}; " + (
        "wait until it has ended, or choose another folder"
    )


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run"
    host, process, started, command = (owner.get(key) for key in ("host", "process", "started", "command"))
    return f"another run (host {host}, process {process}, since {started}{f', {command}' if command else ''})"
