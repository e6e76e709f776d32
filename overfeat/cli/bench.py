"""`overfeat bench`: run the bench suite of a clone, `python -m bench`."""

import argparse
import subprocess
import sys
from pathlib import Path

from overfeat.errors import InputError

CLONE = Path(__file__).resolve().parents[2]


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time every op on this machine beside baselines and measured peaks",
        description="Run the bench suite of a clone: `python -m bench` with the same arguments.",
        add_help=False,
        prefix_chars="\0",  # every argument, --help too, is passed on
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not (CLONE / "bench" / "__main__.py").is_file():
        raise InputError("the bench suite is not part of the installed package; run `python -m bench` in a clone")
    return subprocess.run([sys.executable, "-m", "bench", *args.arguments], cwd=CLONE).returncode
