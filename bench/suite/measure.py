"""Run the selected suites on one device."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import overfeat.fast  # noqa: F401
from bench.suite.cases import SUITES
from bench.suite.growth import sweeps
from bench.suite.kernels import sizes_of
from bench.suite.machine import Machine
from bench.suite.memory import process_memory
from bench.suite.names import FAST, OURS
from bench.suite.runner import Run
from bench.suite.timing import dtype_name
from overfeat.errors import InputError
from overfeat.profiling import peaks as peaks_module
from overfeat.training.distributed import choose_device

GROWTH, PEAKS = "growth", "peaks"
ALL = (PEAKS, *SUITES, GROWTH)


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
    peaks: bool = True, *, resume: bool = False, tiny: bool = False, budget: float = math.inf,
) -> dict:  # fmt: skip
    """Run suites with all implementations, or those named in `backends`; save the results after every case.

    Args:
        command: the command line, for the results.
        out: file of results.
        peaks: measure the device's peaks and report each row's fraction of them.
        resume: keep earlier results in `out` of the same sources and device.
        tiny: the cases of the kernels are tiny.
        budget: seconds after which no case starts; the results are not complete then.

    Raises:
        InputError: nothing can be measured with these implementations.
    """
    start = time.monotonic()
    if tiny:
        peaks_module.GEMM_SIZES, peaks_module.CONVOLUTIONS, peaks_module.COPY_BYTES = (64,), ((8, 16, 3),), 1 << 16
    run = Run(Path(out), set_up(device), backends, command, quick, peaks, resume=resume)
    machine = Machine(run, tiny)
    if run.device.type == "cpu":
        run.skip("GPU", "none that torch can use" if not torch.cuda.is_available() else f"--device {device}")
    if PEAKS in suites and peaks:
        _measure_peaks(run, machine)
    for name in suites:
        for case in SUITES[name](machine) if name in SUITES else ():
            if time.monotonic() - start > budget:
                print(f"bench: {budget:.0f} s are over; {name} and what follows is left")
                return run.results
            run.measure(case)
    if quick or GROWTH in suites:
        _measure_growth(run, machine)
    if not (run.rows or run.results["growth"] or run.failed) and list(suites) != [PEAKS]:
        raise InputError(f"nothing to measure with {', '.join(backends or ())} in {', '.join(suites)} on this machine")
    run.finish()
    print(f"rows: {len(run.rows)}, in {run.results['seconds']:.0f} s")
    return run.results


def _measure_peaks(run: Run, machine: Machine) -> None:
    """The peaks of every kind of arithmetic before any case."""
    for dtype in sizes_of(machine).dtypes if run.device.type == "cuda" or machine.tiny else machine.dtypes:
        if dtype_name(dtype) not in run.results["peaks"]:
            run.measure_peaks(dtype_name(dtype))
            run.save()


def _measure_growth(run: Run, machine: Machine) -> None:
    """Growth of time and memory, and on a CPU the peak memory of a whole process."""
    if run.quick:
        run.skip(f"{GROWTH}, torch.compile, most shapes and nets", "--quick")
        return
    if run.selected and FAST not in run.selected:
        run.skip(GROWTH, f"it is measured with {FAST} alone")
        return
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
