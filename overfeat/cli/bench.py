"""`overfeat bench`: the bench suite of a clone of the project, on this machine."""

import argparse
import importlib
import sys
from pathlib import Path

from overfeat.files import InputError

ROOT = Path(__file__).resolve().parent.parent.parent


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time everything on this machine, beside baselines and what the machine reaches",
        description="Run the bench suite: every op by every way that this machine has, in turns, each checked against "
        "the reference before it is timed, beside the best rates of large matrix products, convolutions and copies, "
        "measured in the same run. What is left out is told, with the reason. It needs a clone of the project.",
        epilog="example: overfeat bench --quick -o bench.json",
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and baselines; two minutes on two cores")
    parser.add_argument(
        "--suites", nargs="+", metavar="NAME", help="some of dense, classifier, merge, train, end-to-end (default: all)"
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="only these ways (default: all that are here)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if there is one")
    parser.add_argument(
        "--against", metavar="REF",
        help="run this checkout and another commit of it in turn, three times, and tell the ratios of their times",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the rows as JSON, after every case")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if (ROOT / "bench" / "suite").is_dir():
        sys.path.insert(0, str(ROOT))
    try:
        command = importlib.import_module("bench.suite.command")
    except ModuleNotFoundError as error:
        if error.name.startswith("bench"):
            raise InputError(
                "the suite is not installed with the package; run it in a clone: pip install -e '.[bench]'"
            ) from error
        raise InputError(f"the suite needs {error.name}: pip install -e '.[bench]'") from error
    return command.main(args)
