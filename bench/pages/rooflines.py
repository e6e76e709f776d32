"""Rooflines of the classifier's first layer by each variant of the kernels: computed, nothing was measured."""

import torch

from bench.pages.tables import number, table
from overfeat.kernels.cost_model import Pass, passes
from overfeat.kernels.plan import Variant
from overfeat.kernels.problem import Problem
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.receptive_field import output_size

# By their vendor's figures: FLOP/s of bfloat16 and float16, dense; bytes/s of the memory.
GPUS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
VARIANTS: dict[str, Variant] = {"direct": "direct", "im2col": "im2col", "F(3,5)": "filter3", "F(4,5)": "filter4"}


def section() -> str:
    """The section of the kernels' page."""
    rates = "; ".join(
        f"{name} {flops / 1e12:.0f} TFLOP/s and {bandwidth / 1e12:.3g} TB/s"
        for name, (flops, bandwidth) in GPUS.items()
    )
    return f"""## First full layer: rooflines of its variants

Computed, not measured: the minimum time of the accurate net's first full layer in bfloat16 by the vendor's figures
({rates}).
Each variant is a list of passes, and each pass takes the longer of its arithmetic and of reading its inputs and writing
its outputs once. "direct" is the implicit GEMM, with the weight through pointers or through a tensor descriptor;
"im2col" gathers windows for a GEMM of the library; F(m,5) is minimal filtering with m x m outputs a tile. Launches,
idle programs and rounding up to whole tiles of a GEMM are not counted.

{_times()}

What the variants compute and move in all their passes:

{_amounts()}
"""


def problem_of(sizes: list[tuple[int, int]], images: int) -> Problem:
    """The accurate net's first full layer on so many images of each of these sizes."""
    net = ARCHITECTURES["accurate"]
    shapes = tuple((images, output_size(net.feature_steps, h), output_size(net.feature_steps, w)) for h, w in sizes)
    kernel = net.kernel, net.kernel
    return Problem(
        shapes, net.convs[-1].channels, net.hidden[0], kernel, net.pool, net.pool, torch.bfloat16, torch.device("meta")
    )


def _cases() -> dict[str, Problem]:
    scales = ARCHITECTURES["accurate"].scales
    cases = {f"scale {i}": problem_of([size], 1) for i, size in enumerate(scales, 1)}
    for images in (1, 8):
        cases[f"six scales, batch {images}"] = problem_of(list(scales), images)
    return {**cases, "six scales, batch 8, flips": problem_of(list(scales), 16)}


def _times() -> str:
    rows = []
    for gpu, rates in GPUS.items():
        for name, problem in _cases().items():
            of_variants = {key: _seconds(passes(v, problem), *rates) for key, v in VARIANTS.items()}
            cells = [
                f"{number(1e3 * seconds)} ({number(of_variants['direct'] / seconds)})"
                for seconds in of_variants.values()
            ]
            gemm = passes("direct", problem)[-1]
            bound = "memory" if gemm.bytes / rates[1] > gemm.flop / rates[0] else "arithmetic"
            rows.append([f"{gpu}, {name}", f"{problem.positions:,}", *cells, bound])
    head = ["computed: ms (times as fast as direct)", "positions", *VARIANTS, "direct is bound by"]
    return table(head, rows)


def _amounts() -> str:
    rows = []
    for name, problem in _cases().items():
        for key, variant in VARIANTS.items() if name.startswith("six") else ():
            steps = passes(variant, problem)
            flop, moved = sum(step.flop for step in steps), sum(step.bytes for step in steps)
            rows.append([f"{name}, {key}", number(flop / 1e9, 4), number(moved / 1e9), number(flop / moved)])
    return table(["computed", "GFLOP", "GB", "FLOP/byte"], rows)


def _seconds(steps: list[Pass], flops: float, bandwidth: float) -> float:
    return sum(step.seconds(flops, bandwidth) for step in steps)
