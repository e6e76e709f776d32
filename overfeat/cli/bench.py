"""`overfeat bench`: run the bench suite of a clone, `python -m bench`."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from overfeat.cli.command import Commands
from overfeat.errors import InputError

CLONE = Path(__file__).resolve().parents[2]


def add_parser(commands: Commands) -> None:
    """Add the command, whose arguments are those of `python -m bench`."""
    parser = commands.add_parser(
        "bench",
        help="time every op on this machine beside baselines and measured peaks (in a clone of the project)",
        add_help=False,
        prefix_chars="\0",  # every argument, --help too, is passed on
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run `python -m bench` of the clone that this package lies in."""
    if not (CLONE / "bench" / "__main__.py").is_file():
        raise InputError("the bench suite is not part of the installed package; run `python -m bench` in a clone")
    path = os.pathsep.join(filter(None, [str(CLONE), os.environ.get("PYTHONPATH")]))
    # -P: not a folder called "bench" in the current one.
    command = [sys.executable, "-P", "-m", "bench", *args.arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
