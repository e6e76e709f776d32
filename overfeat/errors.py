"""The errors that the caller can put right."""

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TypeGuard

# Control characters, line and paragraph separators, and what changes the direction of writing.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    """The text with control characters and line breaks escaped, as one line that is safe to print on a terminal.

    For names of files and classes, and whatever else a file may hold.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


MAX_REQUIREMENT = 400  # characters


class InputError(ValueError):
    """Something the caller can put right: a bad file, value or argument.

    The message names the file or value and the remedy; control characters in it are escaped. The command line prints it
    and exits with a non-zero status; any other exception is a bug and keeps its traceback.
    """

    def __init__(self, message: object = ""):
        super().__init__("\n".join(map(printable, str(message).split("\n"))))


class ArgumentError(InputError):
    """An argument with a value that is not allowed: "`argument` requirement".

    The command line writes the argument as its flag.

    Args:
        argument: Its name in Python.
        requirement: What it must be, or what it does about a problem; long values at its end are cut.
        report: Text before these two that describes the problem.
    """

    def __init__(self, argument: str, requirement: str, report: str = ""):
        requirement = " ".join(requirement.split())
        if len(requirement) > MAX_REQUIREMENT:
            requirement = f"{requirement[:MAX_REQUIREMENT]} ..."
        super().__init__(f"{report}{argument} {requirement}")
        self.argument, self.requirement, self.report = argument, requirement, report

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.argument, self.requirement, self.report)


def in_one_line(value: object) -> str:
    """What `repr` gives, in one line: arrays are printed in several."""
    return " ".join(repr(value).split())


def reason_of(error: object) -> str:
    """What an error says, in one line of at most 200 characters; of one that says nothing the name of its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number by its type: an int or NumPy's, not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(argument: str, value: object) -> None:
    """Raises ArgumentError unless the value of this argument is a whole number from 1 up, of 31 bits."""
    if not is_whole(value) or not 1 <= value < 1 << 31:
        raise ArgumentError(argument, f"must be 1 or more, not {value!r}, and a whole number")


def check_counts(argument: str, values: object) -> None:
    """Raises ArgumentError unless the value of this argument is a list of whole numbers from 1 up."""
    if not isinstance(values, Sequence):
        raise ArgumentError(argument, f"must be a list of whole numbers from 1 up, not {values!r}")
    for value in values:
        check_count(argument, value)


def check_names(argument: str, value: object) -> None:
    """Raises ArgumentError unless the value of this argument is a list of texts."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ArgumentError(argument, f"must be a list of names, not {value!r}")


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raises ArgumentError unless the value of this argument is one of these texts."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(argument, f"must be one of {', '.join(choices)}, not {value!r}")


def check_flag(argument: str, value: object) -> None:
    """Raises ArgumentError unless the value of this argument is True or False, of Python or NumPy."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ArgumentError(argument, f"must be True or False, not {value!r}")


def check_fraction(argument: str, value: float) -> None:
    """Raises ArgumentError unless the value of this argument is between 0 and 1."""
    try:
        allowed = bool(0 <= value <= 1) and type(value).__name__ not in ("bool", "bool_")
    except (TypeError, ValueError, RuntimeError):  # a string, an array of several
        allowed = False
    if not allowed:
        shown = repr(value) if isinstance(value, str) else value
        raise ArgumentError(argument, f"must be between 0 and 1, not {shown}")


class WriteError(InputError):
    """A file could not be written: no space, no permission. Trying the next one is of no use."""


def with_path(path: object, error: Exception | str) -> str:
    """The error's message as one line, after the path unless it contains it."""
    return printable(error if printable(path) in printable(error) else f"{path}: {error}")


def shorten(names: Sequence[str]) -> str:
    """The first five names, and the number of the others, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more
