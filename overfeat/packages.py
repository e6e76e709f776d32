"""Packages that not every installation has, imported where they are needed."""

import importlib
from typing import Any

from overfeat.errors import InputError


def package(name: str, purpose: str, extra: str = "", install: str = "") -> Any:
    """The package or module. Raises InputError where it cannot be imported.

    Args:
        name: Such as "scipy.optimize".
        purpose: The start of the message with its verb, such as "zarr files need".
        extra: The extra of overfeat that has it.
        install: What pip installs instead of an extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        install = install or f'"overfeat[{extra}]"'
        raise InputError(f"{purpose} {missing}: pip install {install}") from error
