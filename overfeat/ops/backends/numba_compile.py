"""Functions that numba compiles."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], fastmath: Any = False) -> Callable[..., Any]:
    """Compile at the first call, and cache the result on disk for other processes if a folder can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(function, **options)


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, with sums in an order that suits the processor's vector units."""
    return compiled(function, {"reassoc"})
