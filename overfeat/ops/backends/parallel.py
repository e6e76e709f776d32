"""Compiled functions on the threads that torch computes with."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_COMPILED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(function: Any, argument: int, threads: int) -> None:
    """Call a function that numba compiled for C in so many threads at once, or fewer; the argument is an address."""
    address, call = _callable(function)
    if threads == 1:
        call(argument)
    elif (parallel := _openmp()) is not None:
        parallel(address, argument, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call, [argument] * threads))


@lru_cache
def _callable(function: Any) -> tuple[int, Callable[[int], None]]:
    return function.address, _COMPILED(function.address)


@lru_cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Run a function in a team of the OpenMP that torch uses; other threads would compete with its waiting ones."""
    name = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "")
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel  # and its libraries
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
