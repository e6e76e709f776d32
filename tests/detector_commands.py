"""The command line of detectors, for tests."""

from pathlib import Path

from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main


def run(*arguments: object) -> int:
    """The status of a command."""
    return main([str(argument) for argument in arguments])


def train_detector(data: Path, out: Path, *more: object, init: Path | None = SHIPPED_WEIGHTS) -> int:
    """The status of a short training at two scales; `more` comes after its options and replaces them."""
    common = "--batch-size 4 --num-workers 0 --device cpu --samples-per-image 1 --epochs 1 --no-flip --scales 0.5,0.8"
    start = ("--init", init) if init else ()
    return run("train", "detector", "--data", data, "--out", out, *start, *common.split(), *more)
