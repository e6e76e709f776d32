"""Exact resume: the folder of a training run, with its checkpoint and its log of epochs."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from overfeat.errors import InputError
from overfeat.files import UnsupportedLockError, atomic_write, ensure_dir, lock

MAX_SHOWN = 80  # characters of a value in an error
LOCK_SECONDS = 10  # workers that read images hold the lock of a killed run for up to 5 s
CHECKPOINT, LOG, LAST, BEST = "checkpoint.pt", "log.jsonl", "net.safetensors", "best.safetensors"


class RunFolder:
    """The files of one training run: checkpoint.pt, log.jsonl, net.safetensors and best.safetensors."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    def claim(self, seconds: float = 0) -> None:
        """Keep other processes from training in the folder until `release`; InputError where one does.

        seconds: How long to wait for it to end.
        """
        deadline = time.monotonic() + seconds
        with suppress(UnsupportedLockError, OSError):  # no locks there, or no such folder
            while (descriptor := lock(self.path)) is None:
                if time.monotonic() >= deadline:
                    raise InputError(f"{self.path}: another process trains there; wait, or choose another folder")
                time.sleep(0.2)
            self._lock = descriptor

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create(self) -> None:
        """Make the folder, and claim it. Raises InputError where it holds another run."""
        ensure_dir(self.path)
        self.claim()
        for name in (CHECKPOINT, LOG, LAST, BEST):
            if (self.path / name).exists():
                raise InputError(f"{self.path} holds a run already ({name}); resume it, or choose another folder")

    def write_checkpoint(self, state: Mapping[str, object]) -> None:
        """Replace the checkpoint. Raises WriteError, and leaves the last one as it is."""
        with atomic_write(self.path / CHECKPOINT) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch reports a full disk as a RuntimeError
                raise OSError(str(error).splitlines()[0]) from error

    def read_checkpoint(self, fingerprint: Mapping[str, object]) -> dict[str, Any]:
        """The state that `write_checkpoint` wrote.

        Raises InputError where there is none, it is damaged, or its run had another fingerprint.
        """
        path = self.path / CHECKPOINT
        if not path.is_file():
            raise InputError(f"{path}: no such file, so there is no run to resume")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            earlier = state["fingerprint"]
        except MemoryError:
            raise
        except Exception as error:  # torch's reader raises many kinds for damaged files
            raise damaged(path, error) from error
        changed = [
            f"{name} was {_start(earlier.get(name))} and is now {_start(fingerprint.get(name))}"
            for name in dict.fromkeys([*earlier, *fingerprint])
            if earlier.get(name) != fingerprint.get(name)
        ]
        if changed:
            raise InputError(
                f"{path} belongs to a run with other options: {'; '.join(changed)}. "
                "Resume with the same options, or train in another folder"
            )
        return state

    def append_log(self, record: Mapping[str, object]) -> None:
        """Add an epoch's line to the log."""
        try:
            with open(self.path / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{self.path / LOG}: cannot be written ({error.strerror or error})") from error

    def read_log(self, epochs: int) -> list[dict]:
        """The log's records of the first epochs, those that the checkpoint includes."""
        log: list[dict] = []
        path = self.path / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                break  # a line that a killed run was writing
            if not isinstance(record, dict) or record.get("epoch", math.inf) > epochs:
                break
            log.append(record)
        return log

    def rewrite_log(self, log: list[dict]) -> None:
        """Replace the log, without the epochs that will be repeated."""
        with atomic_write(self.path / LOG) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in log), encoding="utf-8")


def _start(value: object) -> str:
    """The start of a value's text: an architecture is long."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def damaged(path: Path, error: Exception) -> InputError:
    """The error for a file that is no checkpoint of this program."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path}: not a checkpoint of this program, or damaged ({why}); train again in another folder")
