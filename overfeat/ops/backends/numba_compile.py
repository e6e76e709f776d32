"""Functions that numba compiles, with the results cached on disk for other processes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import cfunc, njit, types


def compiled(function: Callable[..., Any], fastmath: Any = False) -> Callable[..., Any]:
    """Compile at the first call."""
    return _cached(partial(njit, function, nogil=True, error_model="numpy", fastmath=fastmath))


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, with sums in an order that suits the processor's vector units."""
    return compiled(function, {"reassoc"})


def compiled_for_c(function: Callable[[int], None]) -> Any:
    """Compile a function of one address (int64) at once, with an `address` of its own that C code can call."""
    return _cached(lambda cache: cfunc(types.void(types.int64), nogil=True, cache=cache)(function))


def _cached(compile_: Callable[..., Any]) -> Any:
    """compile_(cache=True), or without a cache where neither the package's folder nor the user's can be written."""
    try:
        return compile_(cache=True)
    except RuntimeError:
        return compile_(cache=False)
