"""Memory of large results on a CPU, used again once a result is gone.

Fresh memory costs a page fault for every page, which the system clears: as long as a layer of a small net takes. The
memory is NumPy's, in large pages where the system has them.
"""

import math
import os
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

MIN_BYTES = 1 << 18  # of memory that is kept; the C library keeps smaller ones
MAX_IDLE = 1 << 29  # bytes that are kept and not used, half of them of one result at most

_idle: list[np.ndarray] = []  # the last one was used last
_scratch = threading.local()
_lock = threading.RLock()  # a result may be freed while the lock is held


def empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor."""
    size = 4 * math.prod(shape)
    if size < MIN_BYTES:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    memory = _take(size)
    values = memory[:size].view(np.float32).reshape(shape)
    weakref.finalize(values, _give_back, memory).atexit = False  # the tensor holds this array
    return torch.from_numpy(values)


def scratch(size: int) -> Tensor:
    """So many uninitialised bytes, this thread's until its next call."""
    kept = getattr(_scratch, "tensor", None)
    if kept is None or len(kept) < size:
        kept = _scratch.tensor = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept


def clear() -> None:
    """Free the memory that is not used."""
    with _lock:
        _idle.clear()
    vars(_scratch).clear()


def _after_fork() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.RLock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _take(size: int) -> np.ndarray:
    """At least so many bytes, and at most twice as many."""
    with _lock:
        fitting = [memory for memory in _idle if size <= len(memory) <= 2 * size]
        if fitting:  # by identity: positions move if a result is freed meanwhile
            taken = min(fitting, key=len)
            _idle[:] = [memory for memory in _idle if memory is not taken]
            return taken
    return np.empty(size, np.uint8)


def _give_back(memory: np.ndarray) -> None:
    if len(memory) > MAX_IDLE // 2:
        return
    with _lock:
        _idle.append(memory)
        while sum(len(m) for m in _idle) > MAX_IDLE:
            del _idle[:1]
