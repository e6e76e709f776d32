"""Evaluate a ConvNet at every position and scale of an image (OverFeat, Sermanet et al. 2013).

`__init__.pyi` lists the public names. They are imported at their first use, so `import overfeat` alone loads no torch.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

__version__ = "0.2.0"

# Public name -> the module that defines it (None: the name is a module itself), read from the stub.
_SOURCES = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_SOURCES)


class _Package(ModuleType):
    """A package whose public functions keep their names.

    Python sets every imported subpackage as an attribute of its parent: `import overfeat.densify.net` would hide the
    function `densify`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and _SOURCES.get(name)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Pickled by name: Dask pickles a script's functions with the modules that they use."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _SOURCES:
        raise AttributeError(f"module 'overfeat' has no attribute {name!r}")
    module = importlib.import_module(f"overfeat.{_SOURCES[name] or name}")
    value = getattr(module, name) if _SOURCES[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
