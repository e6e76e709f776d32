"""A subcommand's parser: its help from documentation, and what it runs."""

import argparse
import inspect
from collections.abc import Callable

Commands = argparse._SubParsersAction  # of the parser above


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a description and keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        indents = (len(line) - len(line.lstrip()) for line in text.splitlines())
        return "\n".join(
            fill(line, width, indent + " " * i) for i, line in zip(indents, text.splitlines(), strict=True)
        )


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], doc: str | None
) -> argparse.ArgumentParser:
    """Add a subcommand; returns its parser, for its options.

    `doc` is its help: a line "`overfeat name`: summary.", a paragraph that describes it, and "Examples:". `run` takes
    the parsed arguments and returns the exit status.
    """
    head, _, examples = inspect.cleandoc(doc or "").partition("\n\nExamples:\n")
    summary, _, description = head.partition("\n\n")
    parser = commands.add_parser(
        name, help=summary.partition("`: ")[2].rstrip("."), description=" ".join(description.split()),
        epilog=f"examples:\n{examples}", formatter_class=HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser)
    return parser
