"""The error for input that the caller can put right."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the caller can put right: a bad file, value or flag.

    The message names the file or value and says what to do. The command line prints it and
    exits with a non-zero status; anything else that is raised is a bug and keeps its traceback.
    """


class ArgumentError(InputError):
    """An argument with a value that makes no sense: `argument` and what it must be.

    The command line writes the argument as its flag.
    """

    def __init__(self, argument: str, requirement: str):
        super().__init__(f"{argument} {requirement}")
        self.argument, self.requirement = argument, requirement


def with_path(path: object, error: Exception) -> str:
    """The error's message, with the path before it unless it says it."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


class WriteError(InputError):
    """A file could not be written: no place, no permission. Trying the next one is of no use."""


def shorten(names: Sequence[str]) -> str:
    """The first five names, and how many more there are, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
