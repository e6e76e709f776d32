"""The Triton kernels without a GPU: what the compiler reports, and computed rooflines of the first layer."""

from types import SimpleNamespace

from bench.kernel_report import bounds, sass
from bench.pages import rooflines
from bench.pages.tables import measured_on, table


def page(results: dict) -> str:
    chips = list(dict.fromkeys(row["chip"] for row in results["kernels"]))
    with_matrix = {row["kernel"] for row in results["kernels"] if _matrix(row)}
    groups: dict[str, dict[str, list[dict]]] = {}
    for row in results["kernels"]:
        name = row["kernel"]
        if name in with_matrix:
            name += {"float16": ", 16 bit", "bfloat16": ", 16 bit"}.get(row["kind"], f", {row['kind']}")
        groups.setdefault(name, {}).setdefault(row["chip"], []).append(row)
    rows = [[name, *(_cell(of_chips.get(chip, [])) for chip in chips)] for name, of_chips in sorted(groups.items())]
    return f"""# The kernels without a GPU

## Compiler report

{measured_on(results, "Compiled")} Triton {results["triton"]}.

{len(results["kernels"])} kernels, one for every launch configuration and dtype, compiled through the functions that
launch them for GPUs that were not at hand. Each cell has the maximum over them: registers per thread, bytes spilled per
thread, KB of shared memory per program, and the matrix instructions used. None of this is a measurement of speed. Tiles
of fewer than 64 rows use HMMA on every GPU; full float32 ("ieee") uses no matrix unit by intent. sm_86, sm_120 and
gfx942 use the configurations of sm_80; the code for gfx942 is not disassembled.

{table(["registers / spilled / shared", *chips], rows)}

## Machine code

Limits that `tests/kernels/test_offline_compile.py` asserts, and the worst of the launches that each is for. A step is
one pass through the innermost loop with matrix instructions, or through the longest; instructions are what a warp
issues. Buffers are the steps of a GEMM whose operands fit the shared memory that the kernel has; narrow loads are those
of less than 16 bytes from global memory; a full wait in the loop would mean that asynchronous matrix instructions run
one by one; barriers and shuffles are per merge.

{_bounds(results["kernels"])}

## Launches and host time of a call

The accurate net at its six scales in bfloat16, compiled for sm_90, with a driver that launches nothing and tensors
without memory; from the fourth call on. Kernels of torch are operations that launch at least one. Host time is the
minimum of 30 calls in Python on the CPU above; it contains neither torch's dispatch of the operation nor the driver.

{_calls(results["calls"])}

{rooflines.section()}"""


def _cell(rows: list[dict]) -> str:
    """The maxima of registers, bytes spilled and KB of shared memory; the instructions."""
    registers, spills, shared = (
        max((row[key] for row in rows), default=0) for key in ("registers", "spills", "shared")
    )
    matrix = sorted({word for row in rows for word in _matrix(row).split() if not word.startswith("x")})
    return " ".join([f"{registers} / {spills} / {shared / 1024:.0f}", *matrix])


def _matrix(row: dict) -> str:
    return row["code"]["matrix"] if row["code"] else ""


def _bounds(results: list[dict]) -> str:
    """Every bound beside the worst of its kernels."""
    compiled = [SimpleNamespace(**row | {"code": _code(row["code"])}) for row in results if row["code"]]
    rows = []
    for bound in bounds.BOUNDS:
        matching = [row for row in compiled if bound.matches(row)]
        limits = [(name, "≤", limit, max) for name, limit in bound.at_most.items()]
        limits += [(name, "≥", limit, min) for name, limit in bound.at_least.items()]
        text = ", ".join(f"{name} {sign} {limit}" for name, sign, limit, _ in limits)
        worst = [str(pick(map(bounds.MEASURES[name], matching), default="")) for name, *_, pick in limits]
        launches = " ".join(pattern.replace("|", ", ") for pattern in (bound.kinds, bound.constants))
        chips = ", ".join(dict.fromkeys(row.chip for row in matching))
        rows.append([bound.kernel.replace("|", ", "), chips, launches, text, ", ".join(worst), str(len(matching))])
    return table(["kernel", "chips", "launches", "limits", "worst", "compiled"], rows)


def _code(code: dict) -> sass.Code:
    return sass.Code(**code | {"step": sass.Loop(**code["step"])})


def _calls(calls: list[dict]) -> str:
    rows = [
        [call["name"], call["variant"], str(call["kernels"]), str(call["torch_kernels"]),
         "" if call["microseconds"] is None else f"{call['microseconds']:,.0f}"] for call in calls
    ]  # fmt: skip
    return table(["call", "variant", "kernels", "kernels of torch", "host µs"], rows)
