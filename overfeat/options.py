"""Options as data: the fields of a frozen dataclass with their help; the command line is made from them."""

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
) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: Its default value.
        help: One line for `--help` and the documentation.
        choices: The values that are allowed.
        metavar: How the value is written in `--help`.
        parse: Makes the value from the command line's text, where the field's type does not.

    Returns:
        The field, with these in its metadata.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar, "parse": parse})
