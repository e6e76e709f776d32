"""The modules that numba compiles, where numba can be imported; eager PyTorch does their work elsewhere."""

import importlib
from functools import cache
from types import ModuleType

from overfeat.errors import reason_of


@cache
def numba_problem() -> str | None:
    """Why numba cannot be used, or None. Importing numba takes a second."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return "numba is not installed" if error.name == "numba" else f"numba fails to import: {reason_of(error)}"
    return None


def load(name: str) -> ModuleType | None:
    """The module of this name beside this file, or None without numba."""
    return None if numba_problem() else importlib.import_module(f"overfeat.ops.backends.{name}")
