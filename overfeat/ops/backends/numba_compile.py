"""Functions that numba compiles, with the results cached on disk for other processes.

numba invalidates a cached function when its own source file changes, but not when a file that it uses does. Therefore
the name of the cache folder has a digest of all sources.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import cfunc, config, njit, types

HERE = Path(__file__).resolve().parent
SOURCES = (*sorted(HERE.glob("*.py")), HERE.parents[1] / "toom_cook.py")


def compiled(function: Callable[..., Any], fastmath: Any = False) -> Callable[..., Any]:
    """Compile at the first call."""
    return _cached(partial(njit, function, nogil=True, error_model="numpy", fastmath=fastmath))


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, with sums in an order that suits the processor's vector units."""
    return compiled(function, {"reassoc"})


def compiled_for_c(function: Callable[[int], None]) -> Any:
    """Compile a function of one address (int64) at once, with an `address` of its own that C code can call."""
    return _cached(lambda cache: cfunc(types.void(types.int64), nogil=True, cache=cache)(function))


@cache
def digest(sources: Iterable[Path] = SOURCES) -> str:
    """A digest of the contents of these files."""
    contents = (hashlib.sha256(path.read_bytes()).digest() for path in sources)
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def _cached(compile_: Callable[..., Any]) -> Any:
    """compile_(cache=True), or without a cache where neither the package's folder nor the user's can be written."""
    settings: Any = config
    usual = settings.CACHE_DIR
    settings.CACHE_DIR = str(Path(usual or HERE / "__pycache__") / f"numba-{digest()}")
    try:
        return compile_(cache=True)
    except RuntimeError:
        return compile_(cache=False)
    finally:
        settings.CACHE_DIR = usual
