"""The Triton kernels without a GPU: what the compiler reports, and a computed lower bound of the first layer's time."""

from bench.pages.tables import measured_on, table
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import stage_macs
from overfeat.models.receptive_field import output_size

FLOPS_PER_S, BYTES_PER_S = 989e12, 4.8e12  # an H200 by its vendor's figures: bfloat16 dense, memory


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

## First full layer: a lower bound of its time

Computed, not measured: the minimum time of the accurate net's first full layer in bfloat16 on an H200 by its vendor's
figures ({FLOPS_PER_S / 1e12:.0f} TFLOP/s dense, {BYTES_PER_S / 1e12:.1f} TB/s), with each input read once and each
output written once. Scale by scale at batch size 1, three of the six are bound by reading the 210 MB of weights; all
six in one launch read the weights once.

{_lower_bounds()}
"""


def _cell(rows: list[dict]) -> str:
    """The maxima of registers, bytes spilled and KB of shared memory; the instructions."""
    registers, spills, shared = (
        max((row[key] for row in rows), default=0) for key in ("registers", "spills", "shared")
    )
    matrix = sorted({word for row in rows for word in _matrix(row).split() if not word.startswith("x")})
    return " ".join([f"{registers} / {spills} / {shared / 1024:.0f}", *matrix])


def _matrix(row: dict) -> str:
    return row["code"]["matrix"] if row.get("code") else row.get("matrix", "")


def _lower_bounds() -> str:
    net = ARCHITECTURES["accurate"]
    cases = [(f"scale {i}", [size], 1) for i, size in enumerate(net.scales, 1)]
    cases += [("all six, batch 1", net.scales, 1), ("all six with flip, batch 8", net.scales, 16)]
    rows = []
    for name, sizes, images in cases:
        counts = [stage_macs(net, *size, 1000, "fine") for size in sizes]
        positions = images * sum(c["positions"] for c in counts)
        flops = 2 * images * sum(c["first"] for c in counts)
        channels, outputs, taps = net.convs[-1].channels, net.hidden[0], net.kernel**2
        inputs = images * sum(
            output_size(net.feature_steps, height) * output_size(net.feature_steps, width) for height, width in sizes
        )
        moved = 2 * (inputs * channels + outputs * channels * taps + positions * outputs)
        computing, moving = flops / FLOPS_PER_S, moved / BYTES_PER_S
        rows.append([
            name, str(positions), f"{flops / 1e9:.0f}", f"{moved / 1e6:.0f}", f"{flops / moved:.0f}",
            f"{max(computing, moving) * 1e6:.0f}", "memory" if moving > computing else "matrix units",
        ])  # fmt: skip
    head = ["computed, not measured", "positions", "GFLOP", "minimum MB", "FLOP/byte", "minimum time, µs", "bound by"]
    return table(head, rows)
