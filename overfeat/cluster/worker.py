"""What runs on a worker: a group of items, by a function that is made once there."""

import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import overfeat
from overfeat.errors import InputError

_LOCK = threading.Lock()  # a worker's threads share the function, and its net
_LAST: tuple[bytes, Callable[[Any], Any]] | None = None


@dataclass(frozen=True)
class Group:
    """Results of a group of items: for each (result, None) or (None, error).

    Attributes:
        failure: Why the function could not be made.
        seconds: That the items took.
    """

    worker: str
    results: list[tuple[Any, Exception | None]] = field(default_factory=list)
    failure: Exception | None = None
    seconds: float = 0.0


def run_group(prepare: bytes, version: str, items: Sequence[Any]) -> Group:
    """Apply the function that the pickled `prepare` makes to each item."""
    with _LOCK:
        worker = _name()
        results: list[tuple[Any, Exception | None]] = []
        try:
            function = _prepared(prepare, version)
        except Exception as error:
            return Group(worker, failure=_portable(error))
        start = time.perf_counter()
        for item in items:
            try:
                results.append((function(item), None))
            except Exception as error:
                results.append((None, _portable(error)))
        return Group(worker, results, seconds=time.perf_counter() - start)


def _prepared(prepare: bytes, version: str) -> Callable[[Any], Any]:
    """The function, made once; that of another run makes room first."""
    global _LAST
    if version != overfeat.__version__:
        raise InputError(
            f"has overfeat {overfeat.__version__}, and the run {version}; install the same on all machines"
        )
    if _LAST is None or _LAST[0] != prepare:
        _LAST = None
        _LAST = (prepare, pickle.loads(prepare)())
    return _LAST[1]


def _name() -> str:
    from distributed import get_worker

    return f"{get_worker().address} on {socket.gethostname()}"


def _portable(error: Exception) -> Exception:
    """The error, or one with the same message that can be pickled; one that is a bug has the worker's traceback."""
    if not isinstance(error, InputError):
        error.add_note(f"on worker {_name()}:\n{''.join(traceback.format_exception(error))}")
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    same = InputError if isinstance(error, InputError) else RuntimeError
    return same(str(error) if same is InputError else f"{type(error).__name__}: {error}")
