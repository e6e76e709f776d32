"""Offset pooling and the classifier's first layer; `launch.choose` selects how the GEMM is computed.

Each variant is a file with a function `forward`. The gradients are in skip_classifier_backward.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.kernels import direct, im2col, launch, minimal_filtering
from overfeat.kernels.cost_model import FILTER_SIZES
from overfeat.kernels.maps import MAX_MAPS
from overfeat.kernels.problem import Problem


def forward(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int) -> Tensor:
    """[positions, O] from unpooled maps [N, C, H, W], weight [O, C, k_y, k_x]: see ops.skip_classifier_flat."""
    if len(maps) > MAX_MAPS:
        chunks = (maps[i : i + MAX_MAPS] for i in range(0, len(maps), MAX_MAPS))
        return torch.cat([forward(chunk, weight, bias, size, relu, tap) for chunk in chunks])
    problem = Problem.of(maps, weight, size, tap)
    if not problem.positions or not problem.outputs:
        return weight.new_empty(problem.positions, problem.outputs)
    plan = launch.choose("forward", problem)
    if plan.variant in FILTER_SIZES:
        if minimal_filtering.is_ready(weight, plan):
            return minimal_filtering.forward(maps, weight, bias, problem, plan, relu)
        plan = launch.choose("forward", problem, without=frozenset(FILTER_SIZES))
    if plan.variant == "im2col":
        return im2col.forward(maps, weight, bias, problem, relu)
    return direct.forward(maps, weight, bias, problem, plan, relu)
