"""Values from the metadata of files, which may be damaged or hostile: each is checked for its type and bounds.

All functions raise ValueError that names the entry. Imports no torch.
"""

import json
import math
import reprlib
from collections.abc import Collection
from typing import Any

from overfeat.errors import printable

MAX_TEXT = 1 << 23  # characters of an entry of the metadata
MAX_DIGITS = 18  # of a whole number
MAX_NAME = 10_000  # characters of a name
MAX_TITLE = 200  # characters of the name of an architecture
MAX_ITEMS = 1_000_000  # of a list, unless it has a smaller limit
MAX_SIZE = 1_000_000  # channels, classes, pixels
MAX_STEP = 10_000  # cells of a kernel, stride, padding or pooling
MAX_LEVEL = 1e9  # of a mean or standard deviation of pixels


def parse(text: str) -> Any:
    """The value of JSON text. Refused are NaN, keys that are given twice, and what is too long or nested too deeply."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text):,} characters of metadata")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise ValueError("metadata nested too deeply") from None


def entries(value: object, what: str, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object that has all the required keys, and of others only the optional ones."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {reprlib.repr(value)}, no object")
    missing = [key for key in required if key not in value]
    if missing or not value.keys() <= {*required, *optional}:
        unknown = sorted(value.keys() - {*required, *optional})
        raise ValueError(
            f"{what} lacks {missing[0]}" if missing else f"{what} has an unknown {reprlib.repr(unknown[0])}"
        )
    return value


def items(value: object, what: str, maximum: int = MAX_ITEMS) -> list[Any]:
    """A list of at most so many items."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {reprlib.repr(value)}, no list")
    if len(value) > maximum:
        raise ValueError(f"{what} has {len(value):,} items, more than {maximum:,}")
    return value


def whole(value: object, what: str, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
    """A whole number in minimum..maximum."""
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(f"{what} is {reprlib.repr(value)}, no whole number from {minimum} to {maximum:,}")
    return value


def real(value: object, what: str, minimum: float = -MAX_LEVEL, maximum: float = MAX_LEVEL) -> float:
    """A number in minimum..maximum."""
    if type(value) not in (int, float) or not minimum <= value <= maximum:  # type: ignore[operator]
        raise ValueError(f"{what} is {reprlib.repr(value)}, no number from {minimum:g} to {maximum:g}")
    return float(value)  # type: ignore[arg-type]


def flag(value: object, what: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"{what} is {reprlib.repr(value)}, neither true nor false")
    return value


def string(value: object, what: str) -> str:
    """A text of at most MAX_NAME characters."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"{what} is {reprlib.repr(value)}, no text of {MAX_NAME:,} characters or fewer")
    return value


def title(value: object, what: str) -> str:
    """A short text that is safe to print, as messages have it."""
    if not isinstance(value, str) or len(value) > MAX_TITLE or printable(value) != value:
        raise ValueError(f"{what} is {reprlib.repr(value)}, no line of {MAX_TITLE} characters or fewer")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{reprlib.repr(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN in the metadata")
    return math.inf if text == "Infinity" else -math.inf
