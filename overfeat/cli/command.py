"""A subcommand's parser: its help with examples, and what it runs."""

import argparse
from collections.abc import Callable, Sequence

Commands = argparse._SubParsersAction  # of the parser above


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a description and keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent + " " * _indentation(line)) for line in text.splitlines())


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        commands: The subcommands of the parser above.
        name: Its name.
        run: Takes the parsed arguments and returns the exit status.
        summary: Its line in the help of the parser above.
        description: What it does.
        examples: Command lines for the end of its help.

    Returns:
        Its parser, for its options.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser
