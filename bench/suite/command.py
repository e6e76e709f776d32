"""What `overfeat bench` does: the suites that are asked for, on the device that is asked for."""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

import overfeat.fast  # noqa: F401
from bench.suite.against import compare
from bench.suite.cases import FAST, OURS, SUITES, WAYS, Machine
from bench.suite.growth import sweeps
from bench.suite.memory import process_memory
from bench.suite.run import Run
from overfeat.errors import InputError
from overfeat.files import check_result
from overfeat.training.distributed import choose_device

KEYS = ("command", "machine", "rows")
GROWTH = "growth"


def main(args: argparse.Namespace) -> int:
    """Run the suites; see overfeat/cli/bench.py for the arguments."""
    suites = _chosen(args.suites, [*SUITES, GROWTH], "suite")
    backends = _chosen(args.backends, WAYS, "backend") if args.backends else None
    check_result(args.out, KEYS)
    if args.against:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the worktree goes
        compare(args.against, {"suites": suites, "backends": backends, "quick": args.quick, "device": args.device},
                args.line, args.out)  # fmt: skip
    else:
        measure(suites, backends, args.quick, args.device, args.line, args.out)
    print(f"written to {args.out}")
    return 0


def set_up(device: str) -> torch.device:
    """The device, told to compute float32 in float32, so that all ways can be compared, and to try what is fastest."""
    found = choose_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return found


def measure(
    suites: Sequence[str], backends: Sequence[str] | None, quick: bool, device: str, line: str, out: str | Path
) -> None:
    """Run suites by all ways, or those of `backends`. line: the command; out: where results go, after every case."""
    run = Run(Path(out), set_up(device), backends, line, quick)
    machine = Machine(run)
    if run.device.type == "cpu":
        run.leave_out("GPU", "none that torch can use" if not torch.cuda.is_available() else f"--device {device}")
    for name in suites:
        if name in SUITES:
            for case in SUITES[name](machine):
                run.measure(case)
    if quick:
        run.leave_out(f"{GROWTH}, torch.compile, most shapes and nets", "--quick")
    elif GROWTH in suites and backends and FAST not in backends:
        run.leave_out(GROWTH, f"it is measured with {FAST} alone")
    elif GROWTH in suites:
        for sweep in sweeps(machine):
            run.grow(*sweep)
        if run.device.type == "cpu":
            try:
                run.results["process memory"] = {OURS: process_memory(False), FAST: process_memory(True)}
            except subprocess.CalledProcessError as error:
                run.leave_out("memory of a process", (error.stderr.strip().splitlines() or ["it was killed"])[-1])
    if not run.rows and not run.results["growth"]:
        raise InputError(f"nothing is measured by {', '.join(backends or ())} in {', '.join(suites)} here")
    run.finish()
    print(f"rows: {len(run.rows)}, in {run.results['seconds']:.0f} s")


def _chosen(names: list[str] | None, known: Collection[str], what: str) -> list[str]:
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise InputError(f"no {what} is called {wrong[0]!r}; there are: {', '.join(known)}")
    return list(dict.fromkeys(names)) if names else list(known)


if __name__ == "__main__":  # as `compare` starts it, with the library of some commit
    try:
        measure(**json.loads(sys.argv[1]))
    except InputError as error:
        sys.exit(f"overfeat bench: {error}")
