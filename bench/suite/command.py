"""What `overfeat bench` does: the suites that are asked for, on the device that is asked for."""

import argparse
import time
from collections.abc import Collection

import torch

import overfeat.fast  # noqa: F401
from bench.suite.against import compare
from bench.suite.cases import FAST, OURS, SUITES, WAYS, Machine
from bench.suite.growth import sweeps
from bench.suite.memory import process_memory
from bench.suite.run import Run
from overfeat.files import InputError, check_result
from overfeat.processes import choose_device

KEYS = ("command", "machine", "rows")


def main(args: argparse.Namespace) -> int:
    """Run the suites; see overfeat/cli/bench.py for the arguments."""
    suites = _chosen(args.suites, SUITES, "suite")
    wanted = _chosen(args.backends, WAYS, "backend") if args.backends else None
    if args.out:
        check_result(args.out, KEYS)
    if args.against:
        compare(args.against, _arguments(args), args.line, args.out)
        return 0
    device = choose_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in every way, or they could not be compared
    run = Run(args.out, device, wanted, args.line, args.quick)
    machine = Machine(run, args.quick)
    if device.type == "cpu":
        run.leave_out("GPU", "none that torch can use" if not torch.cuda.is_available() else "--device cpu")
    start = time.monotonic()
    for name in suites:
        for case in SUITES[name](machine):
            run.measure(case)
    if args.quick:
        run.leave_out("growth, torch.compile and most shapes", "--quick")
    elif not args.suites and not args.backends:
        for sweep in sweeps(machine):
            run.grow(*sweep)
        if device.type == "cpu":
            run.results["process memory"] = {OURS: process_memory(False), FAST: process_memory(True)}
    run.finish()
    print(
        f"{len(run.rows)} rows in {time.monotonic() - start:.0f} s" + (f", written to {args.out}" if args.out else "")
    )
    return 0


def _arguments(args: argparse.Namespace) -> list[str]:
    """The command line, but for where results go and with what they are compared."""
    parts = [*(["--quick"] if args.quick else []), *(["--device", args.device] if args.device != "auto" else [])]
    for flag, values in (("--suites", args.suites), ("--backends", args.backends)):
        parts += [flag, *values] if values else []
    return parts


def _chosen(names: list[str] | None, known: Collection[str], what: str) -> list[str]:
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise InputError(f"no {what} is called {wrong[0]!r}; there are: {', '.join(known)}")
    return list(dict.fromkeys(names)) if names else list(known)
