"""Options as data: the fields of a frozen dataclass with their help; the command line is made from them."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    flags: Sequence[str] = (),
) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: Its default value.
        help: One line for `--help` and the documentation.
        choices: The values that are allowed.
        metavar: How the value is written in `--help`.
        parse: Makes the value from the command line's text, where the field's type does not.
        flags: Its names on the command line, where they are not the field's name with dashes.

    Returns:
        The field, with these in its metadata.
    """
    metadata = {"help": help, "choices": choices, "metavar": metavar, "parse": parse, "flags": tuple(flags)}
    return field(default=default, metadata=metadata)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def mebibytes(text: str) -> int:
    """Parse a whole number of MiB above 0, as bytes."""
    return positive(text) << 20


def non_negative(text: str) -> float:
    """Parse a number from 0 up."""
    return _number(text, math.inf, "from 0 up")


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _number(text, 1.0, "from 0 to 1")


def _number(text: str, maximum: float, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= maximum:
        raise argparse.ArgumentTypeError(f"{text} is not a number {requirement}")
    return value
