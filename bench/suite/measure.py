"""Run the selected suites on one device."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import overfeat.fast  # noqa: F401
from bench.suite.cases import SUITES
from bench.suite.growth import sweeps
from bench.suite.machine import FAST, OURS, Machine
from bench.suite.memory import process_memory
from bench.suite.runner import Run
from overfeat.errors import InputError
from overfeat.training.distributed import choose_device

GROWTH = "growth"


def set_up(device: str) -> torch.device:
    """The device, with float32 arithmetic in full precision, so that results can be compared, and cuDNN's search."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return chosen


def measure(
    suites: Sequence[str], backends: Sequence[str] | None, quick: bool, device: str, command: str, out: str | Path,
    peaks: bool = True,
) -> None:  # fmt: skip
    """Run suites with all implementations, or those named in `backends`; save the results after every case.

    Args:
        command: the command line, for the results.
        out: file of results.
        peaks: measure the device's peaks and report each row's fraction of them.

    Raises:
        InputError: nothing can be measured with these implementations.
    """
    run = Run(Path(out), set_up(device), backends, command, quick, peaks)
    machine = Machine(run)
    if run.device.type == "cpu":
        run.skip("GPU", "none that torch can use" if not torch.cuda.is_available() else f"--device {device}")
    for name in suites:
        if name in SUITES:
            for case in SUITES[name](machine):
                run.measure(case)
    if quick:
        run.skip(f"{GROWTH}, torch.compile, most shapes and nets", "--quick")
    elif GROWTH in suites and backends and FAST not in backends:
        run.skip(GROWTH, f"it is measured with {FAST} alone")
    elif GROWTH in suites:
        _measure_growth(run, machine)
    if not run.rows and not run.results["growth"]:
        raise InputError(f"nothing to measure with {', '.join(backends or ())} in {', '.join(suites)} on this machine")
    run.finish()
    print(f"rows: {len(run.rows)}, in {run.results['seconds']:.0f} s")


def _measure_growth(run: Run, machine: Machine) -> None:
    """Growth of time and memory, and on a CPU the peak memory of a whole process."""
    for sweep in sweeps(machine):
        run.measure_growth(*sweep)
    if run.device.type == "cpu":
        try:
            run.results["process memory"] = {OURS: process_memory(False), FAST: process_memory(True)}
        except subprocess.CalledProcessError as error:
            run.skip("memory of a process", (error.stderr.strip().splitlines() or ["it was killed"])[-1])


if __name__ == "__main__":  # started by bench.suite.compare with the library of another commit
    try:
        measure(**json.loads(sys.argv[1]))
    except InputError as error:
        sys.exit(f"bench: {error}")
