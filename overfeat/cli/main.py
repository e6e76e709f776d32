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
    features,
    localize,
    profile,
    scenes,
    train,
)
from overfeat.cli.completion import PrintCompletion
from overfeat.cli.options import flag_of
from overfeat.errors import ArgumentError, InputError, printable

COMMANDS = (
    classify, localize, detect, features, train, evaluate, profile, compare_borders, bench, convert, scenes, demo,
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
            print(f"warning: {printable(message)}", file=file or sys.stderr)

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
        return _fail(args, _message(args, error))
    except KeyboardInterrupt:
        return _fail(args, "interrupted; finished results are kept", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `| head` does
        return 141
    except OSError as error:
        return _fail(args, f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else ""
        # torch is not imported for this: its error of a GPU has the name.
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not out_of_memory and "tried to allocate" not in first:
            raise
        advice = "lower --memory-limit, --batch-size or whatever else is large; for a GPU's memory, try --device cpu"
        return _fail(args, f"out of memory ({first}); {advice}")


def _message(args: argparse.Namespace, error: InputError) -> str:
    """The error's message; an argument of the library is written as its flag."""
    if isinstance(error, ArgumentError) and "parser" in args and (flag := flag_of(args.parser, error.argument)):
        requirement, negative = error.requirement, flag.replace("--", "--no-", 1)
        if negative in args.parser._option_string_actions:
            for value, of_negative in {"must be False": "must be given", "must be True": "must be left out"}.items():
                if requirement.startswith(value):
                    flag, requirement = negative, requirement.replace(value, of_negative, 1)
        return f"{error.report}{flag} {requirement}"
    return str(error)


def _fail(args: argparse.Namespace, message: str, status: int = 1) -> int:
    print(f"overfeat {args.command}: {message}", file=sys.stderr)
    return status
