"""Packages of the `large` extra, imported where they are needed."""

import importlib
from typing import Any

from overfeat.errors import InputError


def package(name: str, purpose: str) -> Any:
    """The package. Raises InputError if it is not installed; `purpose` is the subject of the message."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f'{purpose} need {name}: pip install "overfeat[large]"') from error
