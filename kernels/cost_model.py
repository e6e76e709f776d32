"""The estimated time of each variant of the classifier's first layer: a roofline divided by an efficiency.

A variant is a few passes over memory, each bound by the matrix units or by the memory:

    roofline = sum over passes of max(flop / peak, bytes / bandwidth) + launch
    seconds  = roofline / efficiency of the variant

The constants are a device's. The defaults are estimates from data sheets and compiled code; `tune` measures them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from overfeat.kernels.plan import Gemm, Plan, Tile, Variant, arithmetic
from overfeat.kernels.problem import Problem

OURS: tuple[Variant, ...] = ("direct", "descriptor")  # our implicit GEMM
FILTER_SIZES: dict[Variant, int] = {"filter3": 3, "filter4": 4}  # outputs of a tile in either direction
MIN_FILTERED_KERNEL = 3  # below, minimal filtering saves too little
MAX_FILTERED_SIDE = 8  # input positions along a side of a tile: larger ones round too much
FILTERED_DTYPE = torch.bfloat16  # its operands are float16, whose rounding the tolerance of bfloat16 allows
DESCRIPTOR_CAPABILITY = (9, 0)
DESCRIPTOR_ALIGNMENT = 16  # bytes, of a row of the weight
# By minimum capability: FLOP/s of a multiprocessor in large GEMMs, and bytes/s of a copy, read and written.
DEFAULTS: dict[tuple[int, int], tuple[dict[str, float], float]] = {
    (8, 0): ({"16 bit": 2.4e12, "tf32": 1.2e12, "ieee": 0.15e12}, 1.6e12),
    (9, 0): ({"16 bit": 6e12, "tf32": 3e12, "ieee": 0.35e12}, 4e12),
    (10, 0): ({"16 bit": 11e12, "tf32": 5.5e12, "ieee": 0.4e12}, 6.5e12),
}
LAUNCH = 3e-6  # seconds from the end of a kernel to the start of the next
# Of every variant of a GEMM, estimates. The library's GEMMs also leave multiprocessors idle; those of minimal filtering
# have few rows; our weight gradient has twice the instructions of a plain GEMM.
EFFICIENCY: dict[Gemm, dict[Variant, float]] = {
    "forward": {"direct": 0.8, "descriptor": 0.82, "im2col": 0.8, "filter3": 0.7, "filter4": 0.7},
    "weight": {"direct": 0.65, "im2col": 0.75},
}
VARIANTS: dict[Gemm, tuple[Variant, ...]] = {gemm: tuple(of_variants) for gemm, of_variants in EFFICIENCY.items()}


@dataclass(frozen=True)
class Constants:
    """What is known of a device.

    Attributes:
        multiprocessors: on which programs run at the same time.
        flops: FLOP/s of large GEMMs by kind of arithmetic: "16 bit", "tf32", "ieee".
        bandwidth: bytes/s of a copy, read and written.
        launch: seconds between two kernels.
        efficiency: what was measured: (gemm, kind, variant) -> {output positions: roofline / actual time}.
        tiles: the fastest tiles by kind, as in launch.TILES; those of launch.TILES where nothing was measured.
    """

    multiprocessors: int
    flops: Mapping[str, float]
    bandwidth: float
    launch: float = LAUNCH
    efficiency: Mapping[tuple[str, str, str], Mapping[int, float]] = field(default_factory=dict)
    tiles: Mapping[str, list[tuple[int, Tile]]] = field(default_factory=dict)

    def efficiency_of(self, gemm: Gemm, kind: str, variant: Variant, positions: int) -> float:
        """What was measured at the nearest number of positions, by their ratio, or else the estimate."""
        measured = self.efficiency.get((gemm, kind, variant))
        if not measured:
            return EFFICIENCY[gemm][variant]
        return measured[min(measured, key=lambda count: abs(math.log(count / positions)))]


def defaults(capability: tuple[int, int], multiprocessors: int) -> Constants:
    """Of a device on which nothing was measured."""
    flops, bandwidth = DEFAULTS[max((known for known in DEFAULTS if known <= capability), default=min(DEFAULTS))]
    return Constants(multiprocessors, {kind: multiprocessors * rate for kind, rate in flops.items()}, bandwidth)


def unsupported_reason(
    variant: Variant, gemm: Gemm, problem: Problem, capability: tuple[int, int] = DESCRIPTOR_CAPABILITY
) -> str | None:
    """Why a variant does not compute a GEMM, or None if it does.

    Capability and the dtypes of minimal filtering do not matter under the interpreter (device "cpu").
    """
    on_gpu = problem.device.type != "cpu"
    if variant not in VARIANTS[gemm]:
        return f"{variant} does not compute the gradient of the {gemm}"
    if variant == "descriptor":
        if on_gpu and capability < DESCRIPTOR_CAPABILITY:
            return "tensor descriptors need capability {}.{}".format(*DESCRIPTOR_CAPABILITY)
        if problem.channels * problem.dtype.itemsize % DESCRIPTOR_ALIGNMENT:
            return f"tensor descriptors need a multiple of {DESCRIPTOR_ALIGNMENT} bytes of channels"
    if variant in FILTER_SIZES:
        k_y, k_x = problem.kernel
        max_kernel = MAX_FILTERED_SIDE - FILTER_SIZES[variant] + 1
        if k_y != k_x or not MIN_FILTERED_KERNEL <= k_y <= max_kernel:
            sides = f"from {MIN_FILTERED_KERNEL} x {MIN_FILTERED_KERNEL} to {max_kernel} x {max_kernel}"
            return f"{variant} is for square kernels {sides}"
        if on_gpu and problem.dtype != FILTERED_DTYPE:
            return "minimal filtering rounds more than the tolerance of other dtypes than bfloat16 allows"
    return None


def only_by_override(variant: Variant, problem: Problem) -> bool:
    """Whether the rounding errors of a variant come close to the tolerance for some maps, see minimal_filtering.py."""
    return variant in FILTER_SIZES and FILTER_SIZES[variant] + problem.kernel[0] - 1 >= MAX_FILTERED_SIDE


@dataclass(frozen=True)
class Pass:
    """What a kernel computes, and what it reads and writes at least."""

    name: str
    flop: float
    bytes: float

    def seconds(self, flops: float, bandwidth: float) -> float:
        """Its roofline."""
        return max(self.flop / flops, self.bytes / bandwidth)


def passes(variant: Variant, problem: Problem, fused: bool = False) -> list[Pass]:
    """The passes of a variant, one a launch, for the output or the weight's gradient alike.

    fused: the GEMM pools as it loads.
    """
    item, positions, summands = problem.dtype.itemsize, problem.positions, problem.channels * problem.taps
    maps = item * problem.channels * sum(n * h * w for n, h, w in problem.shapes)
    pooled = item * problem.channels * problem.pooled_positions
    weight, output = item * problem.outputs * summands, item * positions * problem.outputs
    flop = 2 * positions * problem.outputs * summands
    pooling = [] if fused or problem.size == 1 else [Pass("pooling", 0, maps + pooled)]
    if variant == "im2col":
        windows = item * positions * summands
        gather = Pass("gather", 0, pooled + windows)
        return [*pooling, gather, Pass("GEMM", flop, windows + weight + output)]
    if variant in FILTER_SIZES:
        size = FILTER_SIZES[variant]
        points, tiles = (size + problem.kernel[0] - 1) ** 2, filter_tiles(problem, size)
        inputs, weights, products = (
            item * points * a * b
            for a, b in ((tiles, problem.channels), (problem.channels, problem.outputs), (tiles, problem.outputs))
        )
        return [
            *pooling,
            Pass("extrema", 0, pooled),
            Pass("check of the weight", 0, 0),
            Pass("input transform", 0, pooled + inputs),
            Pass("GEMM", 2 * points * tiles * problem.channels * problem.outputs, inputs + weights + products),
            Pass("output transform", 0, products + output),
            Pass("direct, if a value is not finite", 0, 0),
        ]
    return [*pooling, Pass("GEMM", flop, (maps if fused else pooled) + weight + output)]


def filter_tiles(problem: Problem, size: int) -> int:
    """Tiles of size x size outputs: the positions `tap` apart form one of the tap * tap phases of a map."""

    def along(positions: int) -> int:
        return sum(-(-len(range(phase, positions, problem.tap)) // size) for phase in range(problem.tap))

    reach_y, reach_x = problem.reach
    return sum(n * along(h - reach_y) * along(w - reach_x) for n, h, w in problem.pooled)


def seconds(gemm: Gemm, problem: Problem, plan: Plan, constants: Constants) -> float:
    """The estimated time of a launch."""
    kind = arithmetic(problem.dtype, plan.precision)
    efficiency = constants.efficiency_of(gemm, kind, plan.variant, problem.positions)
    return roofline(gemm, problem, plan, constants) / efficiency


def roofline(gemm: Gemm, problem: Problem, plan: Plan, constants: Constants) -> float:
    """The time of a launch whose kernels reach the device's peaks, except while programs of our GEMM are idle."""
    peak, bandwidth = constants.flops[arithmetic(problem.dtype, plan.precision)], constants.bandwidth
    steps = passes(plan.variant, problem, plan.pool == "fused")
    total = sum(step.seconds(peak, bandwidth) for step in steps) + len(steps) * constants.launch
    if plan.variant in OURS:
        ours, waves = steps[-1], Waves.of(gemm, problem, plan, constants.multiprocessors)
        padded = Pass(ours.name, ours.flop * waves.padding, ours.bytes)
        total += padded.seconds(peak, bandwidth) / waves.busy - ours.seconds(peak, bandwidth)
        if plan.split_k > 1:  # the partial sums are written and read, by a kernel more
            total += 2 * waves.partial_bytes / bandwidth + constants.launch
    return total


@dataclass(frozen=True)
class Waves:
    """How the tiles of our implicit GEMM fill a device.

    As long as there is a tile for every program, each computes a whole one; the tiles of the last wave are split.

    Attributes:
        padding: outputs of all tiles by outputs that exist.
        busy: the fraction of their time that programs compute.
        partial_bytes: partial sums of split tiles.
    """

    padding: float
    busy: float
    partial_bytes: int

    @classmethod
    def of(cls, gemm: Gemm, problem: Problem, plan: Plan, multiprocessors: int) -> "Waves":
        rows, columns, summands = gemm_sizes(gemm, problem)
        tile, programs = plan.tile, multiprocessors * plan.tile.programs
        tiles, steps = -(-rows // tile.m) * -(-columns // tile.n), -(-summands // tile.k)
        padding = tiles * tile.m * tile.n / (rows * columns)
        tiles, steps = (tiles * problem.taps, steps) if gemm == "weight" else (tiles, steps * problem.taps)
        whole, last = divmod(tiles, programs)
        waves = -(-last * plan.split_k // programs) * -(-steps // plan.split_k) / steps
        partial = 4 * plan.split_k * last * tile.m * tile.n if plan.split_k > 1 else 0
        return cls(padding, tiles / programs / (whole + waves), partial)


def gemm_sizes(gemm: Gemm, problem: Problem) -> tuple[int, int, int]:
    """Rows, columns and summands a tap (for "weight": in all) of our implicit GEMM."""
    return {
        "forward": (problem.positions, problem.outputs, problem.channels),
        "weight": (problem.outputs, problem.channels, problem.positions),
    }[gemm]
