"""`overfeat COMMAND ...`: picks the command, turns bad input into one line and a non-zero status."""

import argparse
import importlib
import shlex
import sys

import torch

import overfeat
from overfeat.cli import bench, classify, convert, demo, detect, evaluate, features, localize, profile, scenes, train
from overfeat.errors import InputError

COMMANDS = (classify, localize, detect, features, train, evaluate, profile, bench, convert, scenes, demo)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="overfeat",
        description="Find what is where in images: a ConvNet over every place and every size at once.",
    )
    parser.add_argument("--version", action="version", version=f"overfeat {overfeat.__version__}")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="import overfeat.fast: Triton kernels on a GPU, weights prepared once on a CPU",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_parser(commands)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    args = parser.parse_args(arguments)
    args.line = shlex.join(["overfeat", *(sys.argv[1:] if arguments is None else arguments)])  # for results to tell
    if args.fast:
        importlib.import_module("overfeat.fast")
    try:
        return args.run(args)
    except InputError as error:
        print(f"overfeat {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"overfeat {args.command}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `| head` does
        return 141
    except OSError as error:
        print(f"overfeat {args.command}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        what = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "tried to allocate" not in what:
            raise
        print(
            f"overfeat {args.command}: out of memory ({what}); lower --memory, --batch or what else was asked to be "
            "large; a GPU's may do with --device cpu",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
