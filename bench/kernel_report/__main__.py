"""Compile every kernel and report its resources, without a GPU: python -m bench.kernel_report

The report has registers, spills, shared memory, and what the machine code of the hot loops does (sass.py), and fails
where a kernel breaks a bound (bounds.py). Nothing runs; of time, only the host's part of calls is measured (calls.py).
"""

import argparse
import shlex
import sys
from dataclasses import asdict

from bench.common import write_results
from bench.kernel_report import bounds

try:
    import triton

    from bench.kernel_report import calls
    from bench.kernel_report.absent_gpu import CHIPS, KINDS
    from bench.kernel_report.compiled import Compiled, compile_all
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise SystemExit("the kernels' compiler is missing: pip install 'overfeat[bench]'") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=CHIPS, action="append", help="only this one; repeatable")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this arithmetic; repeatable")
    parser.add_argument("--save", action="store_true", help="write bench/results as for all chips")
    args = parser.parse_args()
    rows = compile_all(args.chip or tuple(CHIPS), args.kind or tuple(KINDS))
    for row in rows:
        print(_line(row))
    complaints = bounds.broken(rows)
    print(*(f"broken: {complaint}" for complaint in complaints), sep="\n")
    if args.save or not (args.chip or args.kind):
        host = [asdict(call) for call in calls.measure()]
        results = {"triton": triton.__version__, "kernels": [asdict(row) for row in rows], "calls": host}
        write_results("kernel-report", shlex.join(["python", "-m", "bench.kernel_report", *sys.argv[1:]]), results)
    raise SystemExit(bool(complaints))


def _line(row: Compiled) -> str:
    """A row as text: resources, then what a step of the hot loop does, then the launch's constants."""
    text = (
        f"{row.chip:7} {row.kind:9} {row.kernel:28} {row.registers:3} registers, {row.spills:4} B spilled, "
        f"{row.shared:6} B shared"
    )
    if row.code:
        step, loads = row.code.step, ", ".join(f"{name} x{count}" for name, count in row.code.step.loads)
        text += (
            f", {row.buffers} buffers, {row.code.matrix or 'no matrix instructions'}, {row.code.instructions} "
            f"instructions, {step.instructions} a step: {loads or 'no loads'}, {step.in_flight} in flight, "
            f"{step.full_waits} full waits, {step.local} local, {step.divisions} divisions; {row.code.barriers} "
            f"barriers, {row.code.shuffles} shuffles"
        )
    return f"{text} | {row.options}"


if __name__ == "__main__":
    main()
