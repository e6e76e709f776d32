"""Rooflines of the classifier's first layer by each variant of the kernels: computed, nothing is measured."""

from collections.abc import Iterator

import torch

from overfeat.kernels.cost_model import Pass, passes
from overfeat.kernels.plan import Variant
from overfeat.kernels.problem import Problem
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.receptive_field import output_size

# By their vendor's figures: FLOP/s of bfloat16 and float16, dense; bytes/s of the memory.
GPUS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
VARIANTS: dict[str, Variant] = {"direct": "direct", "im2col": "im2col", "F(3,5)": "filter3", "F(4,5)": "filter4"}


def problem_of(sizes: list[tuple[int, int]], images: int) -> Problem:
    """The accurate net's first full layer on so many images of each of these sizes."""
    net = ARCHITECTURES["accurate"]
    shapes = tuple((images, output_size(net.feature_steps, h), output_size(net.feature_steps, w)) for h, w in sizes)
    kernel = net.kernel, net.kernel
    return Problem(
        shapes, net.convs[-1].channels, net.hidden[0], kernel, net.pool, net.pool, torch.bfloat16, torch.device("meta")
    )


def problems() -> dict[str, Problem]:
    """Each scale, and six scales of one image, of eight, and of eight with their mirror images."""
    scales = ARCHITECTURES["accurate"].scales
    cases = {f"scale {i}": problem_of([size], 1) for i, size in enumerate(scales, 1)}
    for images in (1, 8):
        cases[f"six scales, batch {images}"] = problem_of(list(scales), images)
    return {**cases, "six scales, batch 8, flips": problem_of(list(scales), 16)}


def times() -> Iterator[tuple[str, Problem, dict[str, float], str]]:
    """(GPU and case, problem, seconds by variant, what bounds the direct variant)."""
    for gpu, rates in GPUS.items():
        for name, problem in problems().items():
            seconds = {key: sum(step.seconds(*rates) for step in passes(v, problem)) for key, v in VARIANTS.items()}
            gemm = passes("direct", problem)[-1]
            bound = "memory" if gemm.bytes / rates[1] > gemm.flop / rates[0] else "arithmetic"
            yield f"{gpu}, {name}", problem, seconds, bound


def amounts() -> Iterator[tuple[str, float, float]]:
    """(case and variant, floating-point operations, bytes moved) of all passes, at six scales."""
    for name, problem in problems().items():
        for key, variant in VARIANTS.items() if name.startswith("six") else ():
            steps: list[Pass] = passes(variant, problem)
            yield f"{name}, {key}", sum(step.flop for step in steps), sum(step.bytes for step in steps)
