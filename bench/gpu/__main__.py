"""Check and time every op on this machine's GPU: python -m bench.gpu, the first step of make gpu

The most important sections come first: short checks, measured peaks, six scales in one call, whole classifications,
the choice of tiles. What does not fit into the time budget is skipped and reported. Results are saved after every
section to OUT/<device>.json. Exit status: 0; 1 if a check failed; 2 without a GPU.
"""

import argparse
import importlib.util
import math
import os
import sys
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    print(f"{sys.executable} has no torch; name a Python that has it: make gpu GPU_PYTHON=/path/to/python3")
    sys.exit(2)

from overfeat.errors import InputError

DRY = Path(__file__).resolve().parents[2] / "build" / "dry-run"
OUT = Path(__file__).resolve().parents[1] / "results" / "gpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: bench/results/gpu; for a dry run, build/dry-run)"
    )
    parser.add_argument("--budget", type=_seconds, default=450, help="seconds after which no new measurement starts")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes on the CPU, kernels interpreted; times have no meaning"
    )
    parser.add_argument("--cudnn-benchmark", action=argparse.BooleanOptionalAction, default=True,
                        help="cuDNN benchmarks its algorithms and uses the fastest (default: yes)")  # fmt: skip
    args = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        print(f"{sys.executable} has no triton: no kernels to check")
        if args.dry_run:
            return 2
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read as the kernels are first imported
    elif not torch.cuda.is_available():
        print("no GPU that torch can use on this machine; --dry-run runs everything on the CPU")
        return 2
    from bench.gpu import checks, targets, timings
    from bench.gpu.run import DeviceLost, Run
    from overfeat import fast

    run = Run(args.out or (DRY if args.dry_run else OUT), args.budget, args.dry_run)
    run.results["status"] = [str(status) for status in fast.status()]
    run.results["cudnn benchmark"] = torch.backends.cudnn.benchmark = args.cudnn_benchmark
    torch.manual_seed(0)
    try:
        run.section("short checks", checks.short)
        run.section("measured peaks", timings.measure_peaks)
        run.section("packed", timings.packed)
        run.section("classification", timings.classification)
        run.section("tuning", timings.tuning)
        run.section("scales", timings.scales)
        run.section("overlapping pools", timings.overlapping)
        run.section("training", timings.training)
        run.section("merging", timings.merging)
        run.section("thorough checks", checks.thorough)
        run.section("other kinds", timings.other_kinds)
        run.section("naive windows", timings.naive)
        run.section("fragile checks", checks.fragile)
    except DeviceLost:
        print("the device no longer responds; the remaining sections are skipped")
    run.results["targets"] = targets.table(run)
    run.save()
    passed = sum(check["result"] == "passed" for check in run.checks)
    print(f"{passed} checks passed, {len(run.failed)} failed; written to {run.path}")
    for check in run.failed:
        print(f"FAILED {check['name']}: {check['message'].splitlines()[0]}")
    return 1 if run.failed else 0


def _seconds(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return float(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bench.gpu: interrupted; finished sections are kept", file=sys.stderr)
        sys.exit(130)
