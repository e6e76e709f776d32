"""Convolutions of the feature layers by minimal filtering, where it is estimated to pay."""

import torch.nn.functional as F
from torch import Tensor

from overfeat.kernels import cost_model, launch, minimal_filtering
from overfeat.kernels.cost_model import FILTER_SIZES
from overfeat.kernels.plan import Plan
from overfeat.kernels.problem import Problem

# Seconds that it must save: it has more launches, which take the host longer than a GPU with a small batch.
MIN_SAVING = 5e-5


def forward(maps: Tensor, weight: Tensor, bias: Tensor | None, pad: int, relu: bool, dilation: int) -> Tensor | None:
    """[N, C, H, W] -> [N, O, h, w], channels-last, at stride 1; None where the caller should run its own convolution.

    That is where minimal filtering does not pay, and at the first call with a weight: see minimal_filtering.is_ready.
    """
    (n, channels, height, width), (outputs, _, k_y, k_x) = maps.shape, weight.shape
    shape = n, height + 2 * pad, width + 2 * pad
    problem = Problem((shape,), channels, outputs, (k_y, k_x), dilation, 1, weight.dtype, maps.device)
    plan = choose(problem)
    if plan is None or not minimal_filtering.is_ready(weight, plan):
        return None
    padded = F.pad(maps, (pad,) * 4) if pad else maps
    flat = minimal_filtering.forward([padded], weight, bias, problem, plan, relu)
    reach_y, reach_x = problem.reach
    return flat.view(n, shape[1] - reach_y, shape[2] - reach_x, outputs).permute(0, 3, 1, 2)


def choose(problem: Problem) -> Plan | None:
    """The launch by minimal filtering, or None if it is not estimated to save MIN_SAVING, nor forced by an override."""
    (shape,), (reach_y, reach_x) = problem.shapes, problem.reach
    if min(shape[0], shape[1] - reach_y, shape[2] - reach_x, problem.channels, problem.outputs) <= 0:
        return None
    forced = launch.active_override().variant
    if forced is not None:
        possible = forced in FILTER_SIZES and not cost_model.unsupported_reason(forced, "forward", problem)
        return launch.choose("forward", problem) if possible else None
    plan = launch.choose("forward", problem)
    if plan.variant not in FILTER_SIZES:
        return None
    other = launch.choose("forward", problem, without=frozenset(FILTER_SIZES))
    saving = launch.seconds("forward", problem, other) - launch.seconds("forward", problem, plan)
    return plan if saving >= MIN_SAVING else None
