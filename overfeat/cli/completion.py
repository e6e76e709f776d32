"""Completion of commands, options and files in shells."""

import argparse
from pathlib import Path
from typing import Any

from overfeat.errors import InputError
from overfeat.packages import package

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints a shell's completion script and exits."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, choices=SHELLS, **options)

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, flag: object = None) -> None:
        try:
            shtab = package("shtab", "completion needs", "completion")
        except InputError as error:
            parser.exit(1, f"overfeat: {error}\n")
        _complete_files(parser, shtab)
        print(shtab.complete(parser, values))
        parser.exit()


def _complete_files(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Mark the arguments that are files or folders, in subcommands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, shtab)
        elif action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "FOLDER") else shtab.FILE  # type: ignore[attr-defined]
