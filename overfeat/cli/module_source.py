"""The user's own module, made by a function in a Python file; its errors with their line."""

import argparse
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overfeat.errors import InputError, shorten

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

EXAMPLE = "net.py:make_net"


@dataclass(frozen=True)
class ModuleSource:
    """Where a module is made: NAME in a Python file, or in a module that can be imported."""

    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


def parse_module(text: str) -> ModuleSource:
    """Parse FILE.py:NAME or PACKAGE.MODULE:NAME."""
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name.isidentifier():
        what = f"FILE.py:NAME, the file and the function that makes the net, such as {EXAMPLE}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return ModuleSource(file, name)


def load_module(source: ModuleSource) -> "Module | ExportedProgram":
    """Make the module that a source names. Raises InputError with the line of an error in the user's file."""
    from torch.export import ExportedProgram
    from torch.nn import Module

    python = _import(source)
    if not hasattr(python, source.name):
        names = [name for name, value in vars(python).items() if callable(value) and _defined_in(value, python)]
        raise InputError(f"{source.file}: has no {source.name}; it defines {shorten(names) or 'no function or class'}")
    made = getattr(python, source.name)
    if not isinstance(made, (Module, ExportedProgram)):
        made = _call(made, source)
    if isinstance(made, (Module, ExportedProgram)):
        return made
    returned = f"the class {made.__name__}" if isinstance(made, type) else f"a {type(made).__name__}"
    returned = "nothing" if made is None else returned
    raise InputError(f"{source}: returned {returned}, not a torch.nn.Module; return the net")


def _import(source: ModuleSource) -> ModuleType:
    """The Python module of a source; its folder, or the current one, is searched for what it imports."""
    path = Path(source.file)
    if path.suffix == ".py" or path.is_file() or len(path.parts) > 1:
        if not path.is_file():
            raise InputError(f"{path}: {'a folder, not a Python file' if path.is_dir() else 'no such file'}")
        if path.suffix != ".py":
            raise InputError(f"{path}: not a Python file; --module is {EXAMPLE}, and --weights the file of weights")
        return _run(source, lambda: _import_file(path))
    if not all(part.isidentifier() for part in source.file.split(".")):
        raise InputError(f"{source.file}: neither a Python file (FILE.py) nor the name of a module")
    sys.path.insert(0, "")
    return _run(source, lambda: importlib.import_module(source.file))


def _import_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(f"module_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for dataclasses, which look their module up
    spec.loader.exec_module(module)
    return module


def _call(function: Any, source: ModuleSource) -> Any:
    """What a function without arguments, or a class, makes."""
    if not callable(function):
        raise InputError(f"{source}: is a {type(function).__name__}, not a function that returns a torch.nn.Module")
    try:
        required = [p.name for p in inspect.signature(function).parameters.values() if _is_required(p)]
    except ValueError:  # no signature, as of some built-in functions
        required = []
    if required:
        remedy = f"name a function without any, such as `def make(): return {source.name}(...)`"
        raise InputError(f"{source}: needs the arguments {shorten(required)}; {remedy}")
    return _run(source, function)


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _run(source: ModuleSource, work: Callable[[], Any]) -> Any:
    """Run the user's code; an error of it becomes an InputError with its line."""
    try:
        return work()
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(f"{source.file}: ends the program; let only `if __name__ == '__main__':` run it") from error
    except ImportError as error:
        if "relative import" in str(error):
            remedy = "start in the folder that holds its package, and name it PACKAGE.MODULE:NAME"
            raise InputError(f"{source.file}: imports from its own package; {remedy}") from error
        remedy = f"install {error.name or 'it'} where overfeat is installed, or start in the folder that holds it"
        raise InputError(f"{source.file}: {_where(error, source)}{error}; {remedy}") from error
    except Exception as error:
        problem = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
        raise InputError(f"{source.file}: {_where(error, source)}{problem}") from error


def _where(error: Exception, source: ModuleSource) -> str:
    """The line of the user's file that the error comes from; of a file that it imports, where the syntax is wrong."""
    file = Path(source.file).resolve()
    if isinstance(error, SyntaxError):
        name = error.filename or source.file
        return f"{'' if Path(name).resolve() == file else f'{name}: '}line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"line {lines[-1]}: " if lines else ""


def _first_line(error: Exception) -> str:
    return (error.msg if isinstance(error, SyntaxError) else str(error)).partition("\n")[0]


def _defined_in(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__
