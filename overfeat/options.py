"""Options as data: fields of frozen dataclasses with their help and limits; the command line is made from them."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from overfeat.errors import ArgumentError


def option(
    default: Any, help: str, *, choices: Sequence[str] | None = None, minimum: float | None = None,
    below: float = math.inf, metavar: str | None = None, parse: Callable[[str], Any] | None = None,
    flags: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A dataclass field that is an option of a command.

    Args:
        default, help: Its default value, and one line for `--help`.
        choices, minimum, below: The values allowed; of tuples, for each number; below counts where minimum is given.
        metavar: How the value is written in `--help`.
        parse: Makes the value from the command line's text, where the field's type does not.
        flags: Its names on the command line, where they are not the field's name with dashes.
    """
    limits = {"choices": choices, "minimum": minimum, "below": below}
    shown = {"help": help, "metavar": metavar, "parse": parse, "flags": tuple(flags)}
    return field(default=default, metadata={**shown, **limits})


@dataclass(frozen=True)
class Options:
    """Base of option dataclasses: checks every field against the choices and limits of its `option`."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                _check(item.name, value, **{key: item.metadata.get(key) for key in ("choices", "minimum", "below")})


def _check(name: str, value: Any, choices: Sequence[str] | None, minimum: float | None, below: float | None) -> None:
    """Raises ArgumentError for a value that its option does not allow."""
    if choices and value not in choices:
        raise ArgumentError(name, f"must be one of {', '.join(choices)}, not {value!r}")
    numbers = value if isinstance(value, tuple) else (value,)
    if minimum is not None and below is not None and not all(minimum <= number < below for number in numbers):
        limit = f" and less than {below:g}" if below < math.inf else ""
        limit = limit or " and finite" * any(isinstance(number, float) for number in numbers)
        shown = ",".join(map(str, numbers))
        raise ArgumentError(name, f"must be at least {minimum:g}{limit}, not {shown}")


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


def one_or_several(text: str) -> float | tuple[float, ...]:
    """Parse a number from 0 up, or several, separated by commas."""
    return _one_or_several(text, non_negative)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _number(text, 1.0, "from 0 to 1")


def fractions(text: str) -> float | tuple[float, ...]:
    """Parse a number from 0 to 1, or several, separated by commas."""
    return _one_or_several(text, fraction)


def _one_or_several(text: str, parse: Callable[[str], float]) -> float | tuple[float, ...]:
    numbers = tuple(parse(part.strip()) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def _number(text: str, maximum: float, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= maximum:
        raise argparse.ArgumentTypeError(f"{text} is not a number {requirement}")
    return value
