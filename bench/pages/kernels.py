"""The Triton kernels without a GPU: what the compiler reports, and computed rooflines of the first layer."""

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
gfx942 use the configurations of sm_80; the code for gfx942 compiles and fits its 64 KB, and was not disassembled.

{table(["registers / spilled / shared", *chips], rows)}

{rooflines.section()}"""


def _cell(rows: list[dict]) -> str:
    """The maxima of registers, bytes spilled and KB of shared memory; the instructions."""
    registers, spills, shared = (
        max((row[key] for row in rows), default=0) for key in ("registers", "spills", "shared")
    )
    matrix = sorted({word for row in rows for word in _matrix(row).split() if not word.startswith("x")})
    return " ".join([f"{registers} / {spills} / {shared / 1024:.0f}", *matrix])


def _matrix(row: dict) -> str:
    return row["code"]["matrix"] if row.get("code") else row.get("matrix", "")
