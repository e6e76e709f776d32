"""`overfeat bench`: the bench suite of a clone of the project, on this machine."""

import argparse
import importlib
import sys
from pathlib import Path

from overfeat.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
# Known before anything of the suite is imported; tests/test_suite.py holds them to what is there.
SUITES = ("dense", "classifier", "merge", "train", "end-to-end", "growth")
BACKENDS = (
    "overfeat", "overfeat.fast", "overfeat.fast-direct", "torch.eager", "torch.compile", "offset-loop",
    "naive-windows", "monai", "paper-loop", "nms", "wbf",
)  # fmt: skip


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
    parser.add_argument("--suites", nargs="+", metavar="NAME", help=f"some of {', '.join(SUITES)} (default: all)")
    parser.add_argument(
        "--backends", nargs="+", metavar="NAME",
        help=f"only some of {', '.join(BACKENDS)} (default: all that are here)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if there is one")
    parser.add_argument(
        "--against", metavar="REF",
        help="measure the library of another commit and of this checkout in turn, three times, and tell the ratios",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", default=Path("overfeat-bench.json"),
        help="where the rows go, after every case (default: %(default)s)",
    )  # fmt: skip
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
