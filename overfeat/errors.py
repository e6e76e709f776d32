"""The errors that the caller can put right."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the caller can put right: a bad file, value or argument.

    The message names the file or value and the remedy. The command line prints it and exits with a non-zero status; any
    other exception is a bug and keeps its traceback.
    """


class ArgumentError(InputError):
    """An argument with a value that is not allowed: "`argument` requirement".

    The command line writes the argument as its flag.

    Args:
        argument: Its name in Python.
        requirement: What it must be, or what it does about a problem.
        report: Text before these two that describes the problem.
    """

    def __init__(self, argument: str, requirement: str, report: str = ""):
        super().__init__(f"{report}{argument} {requirement}")
        self.argument, self.requirement, self.report = argument, requirement, report


def check_fraction(argument: str, value: float) -> None:
    """Raises ArgumentError unless the value of this argument is between 0 and 1."""
    try:
        allowed = bool(0 <= value <= 1)
    except (TypeError, ValueError, RuntimeError):  # a string, an array of several
        allowed = False
    if not allowed:
        shown = repr(value) if isinstance(value, str) else value
        raise ArgumentError(argument, f"must be between 0 and 1, not {shown}")


class WriteError(InputError):
    """A file could not be written: no space, no permission. Trying the next one is of no use."""


def with_path(path: object, error: Exception) -> str:
    """The error's message, after the path unless it contains it."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def shorten(names: Sequence[str]) -> str:
    """The first five names, and the number of the others, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
