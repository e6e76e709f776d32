"""The bench suite: python -m bench [suite ...]

Times every op with every implementation that this machine can run, in turns, each checked against its reference
before it is timed, beside the peaks of GEMM, convolution and copy that are measured in the same run.
"""

import argparse
import math
import shlex
import shutil
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

try:
    from bench.suite.compare import compare
    from bench.suite.measure import ALL, measure
    from bench.suite.names import IMPLEMENTATIONS
    from bench.suite.runner import DeviceLost
except ModuleNotFoundError as error:
    if (error.name or "").startswith("bench"):
        raise
    sys.exit(f"bench: the suite needs {error.name}: pip install -e '.[bench]'")

from bench.common import LOST_STATUS, UNFINISHED_STATUS
from overfeat.errors import InputError
from overfeat.files import check_result
from overfeat.training.distributed import choose_device

TUNING_SECONDS = 150.0
RESULT_KEYS = ("command", "machine", "rows")  # of a file that may be overwritten


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m bench",
        description="Time every op with every implementation that this machine can run, in turns, each checked "
        "against its reference before it is timed, beside the peaks of GEMM, convolution and copy measured in the "
        "same run. What is skipped is reported with the reason.",
        epilog="examples: python -m bench --quick -o bench.json; python -m bench merge --compare HEAD~1",
    )
    suites = ", ".join(ALL)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {suites} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and baselines; two minutes on two cores")
    parser.add_argument(
        "--backends", nargs="+", metavar="NAME",
        help=f"only some of {', '.join(IMPLEMENTATIONS)} (default: all that can run)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if there is one")
    parser.add_argument(
        "--compare", metavar="REF",
        help="measure the library of another commit and of this clone in turns, three times, and print the ratios",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true",
                        help="keep the rows in the file of results if of these sources and this device")  # fmt: skip
    parser.add_argument("--budget", type=_seconds, default=math.inf, metavar="S", help="start no case after S seconds")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny cases of the kernels, for TRITON_INTERPRET=1: times have no meaning"
    )
    parser.add_argument(
        "--tune", action="store_true", help="measure the kernels' variants and tiles on this GPU, and store the best"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE",
        help="file of results, saved after every case (default: overfeat-bench.json); with --tune: a copy",
    )  # fmt: skip
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the suites that the command line names; 1 if a result of the library was wrong, 3 if time ran out, or 0.

    Raises:
        InputError: a name is unknown, the file of results is another file, or nothing can be measured.
    """
    args = build_parser().parse_args(argv)
    suites = _known_names(args.suites, ALL, "suite")
    backends = _known_names(args.backends, IMPLEMENTATIONS, "backend") if args.backends else None
    if args.tune:
        return _tune(args.device, args.budget, args.out)
    args.out = args.out or Path("overfeat-bench.json")
    check_result(args.out, RESULT_KEYS)
    options = {"suites": suites, "backends": backends, "quick": args.quick, "device": args.device}
    command = shlex.join(["python", "-m", "bench", *argv])
    if args.compare:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C, so that the worktree is removed
        compare(args.compare, options, command, args.out)
        return 0
    more = {"resume": args.resume, "tiny": args.tiny, "budget": args.budget}
    results = measure(**options, **more, command=command, out=args.out)
    print(f"written to {args.out}")
    for entry in results["failed"]:
        print(f"FAILED: {entry['what']}: {entry['why'].splitlines()[0]}")
    return 1 if results["failed"] else 0 if results["complete"] else UNFINISHED_STATUS


def _tune(device: str, budget: float, out: Path | None) -> int:
    """Tune the kernels for this GPU; `out`: a copy of what is stored. 1 if a variant's result was wrong, or 0."""
    from overfeat.kernels.tune import tune

    lines: list[str] = []

    def progress(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    path = tune(choose_device(device), min(budget, TUNING_SECONDS), progress)
    if out:
        shutil.copy(path, out)
    print(f"written to {path}")
    return 1 if any("WRONG" in line for line in lines) else 0


def _seconds(text: str) -> float:
    """An argparse type: a positive number."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 with a message where the caller can put something right or a result was wrong; LOST_STATUS."""
    try:
        return run(sys.argv[1:] if argv is None else list(argv))
    except DeviceLost as error:
        print(f"bench: {error}", file=sys.stderr)
        return LOST_STATUS
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; finished cases are kept", file=sys.stderr)
        return 130


def _known_names(names: list[str] | None, known: Collection[str], what: str) -> list[str]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"no {what} is called {unknown[0]!r}; available: {', '.join(known)}")
    return list(dict.fromkeys(names)) if names else list(known)


if __name__ == "__main__":
    sys.exit(main())
