"""The bench suite: python -m bench [suite ...]

Times every op with every implementation that this machine can run, in turns, each checked against its reference
before it is timed, beside the peaks of GEMM, convolution and copy that are measured in the same run.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

try:
    from bench.suite.cases import SUITES
    from bench.suite.compare import compare
    from bench.suite.machine import IMPLEMENTATIONS
    from bench.suite.measure import GROWTH, measure
except ModuleNotFoundError as error:
    if (error.name or "").startswith("bench"):
        raise
    sys.exit(f"bench: the suite needs {error.name}: pip install -e '.[bench]'")

from overfeat.errors import InputError
from overfeat.files import check_result

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
    suites = ", ".join([*SUITES, GROWTH])
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
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", default=Path("overfeat-bench.json"),
        help="file of results, saved after every case (default: %(default)s)",
    )  # fmt: skip
    return parser


def run(argv: Sequence[str]) -> None:
    """Run the suites that the command line names.

    Raises:
        InputError: a name is unknown, the file of results is another file, or nothing can be measured.
    """
    args = build_parser().parse_args(argv)
    suites = _known_names(args.suites, [*SUITES, GROWTH], "suite")
    backends = _known_names(args.backends, IMPLEMENTATIONS, "backend") if args.backends else None
    check_result(args.out, RESULT_KEYS)
    options = {"suites": suites, "backends": backends, "quick": args.quick, "device": args.device}
    command = shlex.join(["python", "-m", "bench", *argv])
    if args.compare:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C, so that the worktree is removed
        compare(args.compare, options, command, args.out)
    else:
        measure(**options, command=command, out=args.out)
    print(f"written to {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with a message where the caller can put something right."""
    try:
        run(sys.argv[1:] if argv is None else list(argv))
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; finished cases are kept", file=sys.stderr)
        return 130
    return 0


def _known_names(names: list[str] | None, known: Collection[str], what: str) -> list[str]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"no {what} is called {unknown[0]!r}; available: {', '.join(known)}")
    return list(dict.fromkeys(names)) if names else list(known)


if __name__ == "__main__":
    sys.exit(main())
