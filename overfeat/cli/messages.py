"""What a command prints of errors and warnings: the library's arguments are written as the command's flags."""

import argparse
import re
from pathlib import Path

from overfeat.cli.options import flag_of
from overfeat.errors import ArgumentError, InputError

# An argument in backticks, or one with an underscore that is not part of a path.
ARGUMENT = re.compile(r"`(\w+)`|(?<![\w./\\-])(\w+_\w+)(?![\w/\\-]|\.\w)")
MEMORY = ("--memory-limit", "--batch-size", "--max-pixels")  # flags that bound memory


def with_flags(args: argparse.Namespace, text: str) -> str:
    """The text with the names of arguments as flags, where the command has them."""

    def flag(match: re.Match[str]) -> str:
        return flag_of(args.parser, match[1] or match[2]) or match[0]

    return ARGUMENT.sub(flag, text) if "parser" in args else text


def message_of(args: argparse.Namespace, error: Exception) -> str:
    """The error's message."""
    if isinstance(error, ArgumentError) and "parser" in args and (flag := flag_of(args.parser, error.argument)):
        requirement, negative = error.requirement, flag.replace("--", "--no-", 1)
        if negative in args.parser._option_string_actions:
            for value, of_negative in {"must be False": "must be given", "must be True": "must be left out"}.items():
                if requirement.startswith(value):
                    flag, requirement = negative, requirement.replace(value, of_negative, 1)
        return str(InputError(f"{error.report}{flag} {requirement}"))
    if isinstance(error, ArgumentError) and error.argument == "net" and (file := _net_file(args)):
        return str(InputError(f"{error.report}{file}: the net {error.requirement}"))
    return with_flags(args, str(error))


def _net_file(args: argparse.Namespace) -> object:
    """The file that the command line names as its net; None where it names none, or several."""
    weights = getattr(args, "weights", None)
    return getattr(args, "module", None) or (weights if isinstance(weights, Path) else None)


def out_of_memory(args: argparse.Namespace, error: Exception) -> str | None:
    """The message of an error for want of memory; None for other errors."""
    first = str(error).splitlines()[0] if str(error) else ""
    # torch is not imported for this: its error of a GPU has the name.
    lacking = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not lacking and not (isinstance(error, RuntimeError) and "tried to allocate" in first):
        return None
    flags = args.parser._option_string_actions if "parser" in args else {}
    advice = [f"lower {' or '.join(flag for flag in MEMORY if flag in flags)}"] if set(MEMORY) & set(flags) else []
    advice += ["for a GPU's memory, try --device cpu"] if "--device" in flags else []
    return f"out of memory ({first}){'; ' * bool(advice)}{'; '.join(advice)}"
