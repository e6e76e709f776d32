"""`overfeat COMMAND ...`: run a command; report bad input in one line with a non-zero status."""

import argparse
import importlib
import shlex
import sys
import warnings
from pathlib import Path
from typing import TextIO

import overfeat
from overfeat.cli import (
    bench,
    classify,
    compare_borders,
    convert,
    demo,
    detect,
    evaluate,
    export,
    features,
    localize,
    profile,
    scenes,
    serve,
    teach,
    train,
)
from overfeat.cli.completion import PrintCompletion
from overfeat.cli.messages import message_of, out_of_memory, with_flags
from overfeat.errors import InputError, printable

COMMANDS = (
    classify, localize, detect, features, teach, train, evaluate, profile, compare_borders, bench, convert, export,
    scenes, demo, serve,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, by default the process's arguments; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    args.line = shlex.join(["overfeat", *arguments])  # for results to record
    return _run(args)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overfeat",
        allow_abbrev=False,
        description="Evaluate a ConvNet at every position and scale of an image: classify, localize and detect.",
        epilog='`overfeat COMMAND --help` has examples. Completion in bash: eval "$(overfeat --print-completion bash)"',
    )
    parser.add_argument("--version", action="version", version=f"overfeat {overfeat.__version__}")
    help = "import overfeat.fast: Triton kernels on a GPU, pre-packed weights on a CPU"
    parser.add_argument("--fast", action="store_true", help=help)
    parser.add_argument("--print-completion", action=PrintCompletion, help="print the completion script of a shell")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    actions = build_parser()._actions
    (choices,) = (action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    return choices[command]


def _run(args: argparse.Namespace) -> int:
    """`_report_errors`; each of the library's own warnings is a line, and comes once."""
    default, shown = warnings.showwarning, set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if not Path(filename).is_relative_to(Path(overfeat.__file__).parent):
            default(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {with_flags(args, printable(message))}", file=file or sys.stderr)

    warnings.showwarning = show
    try:
        return _report_errors(args)
    finally:
        warnings.showwarning = default


def _report_errors(args: argparse.Namespace) -> int:
    """Run the parsed command; turn errors that a user can put right into a line and a status."""
    try:
        if args.fast:
            importlib.import_module("overfeat.fast")
        return args.run(args)
    except InputError as error:
        return _fail(args, message_of(args, error))
    except KeyboardInterrupt:
        return _fail(args, "interrupted; finished results are kept", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `| head` does
        return 141
    except OSError as error:
        return _fail(args, f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        message = out_of_memory(args, error)
        if message is None:
            raise
        return _fail(args, message)


def _fail(args: argparse.Namespace, message: str, status: int = 1) -> int:
    print(f"overfeat {args.command}: {message}", file=sys.stderr)
    return status
