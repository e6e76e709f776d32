"""Packages for large images, imported where they are needed."""

import importlib
from typing import Any

from overfeat.errors import InputError


def package(name: str, purpose: str, install: str = '"overfeat[large]"') -> Any:
    """The package. Raises InputError if it is not installed: `purpose` need it, and pip installs `install`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{purpose} need {name}: pip install {install}") from error
