"""Several layers of an evaluation in one call, where a backend has it: maps between them may stay in the cache."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overfeat import regions
from overfeat.ops.registry import Backend, active_override, backends_of, select_backend
from overfeat.ops.transforms import is_transformed

OP = "chain"
SINGLE_OPS = ("convolution", "skip_classifier_flat")  # what a chain is in place of


class ChainedLayer(NamedTuple):
    """A convolution without padding, and what precedes and follows it."""

    weight: Tensor  # [O, C, k_y, k_x]
    bias: Tensor | None
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    pool: int = 1  # a max pooling of its outputs, which do not overlap
    offset_pool: int = 1  # a max pooling of its inputs at every offset


Outputs = tuple[Tensor, list[tuple[int, int, int]]]


def run_chain(maps: Sequence[Tensor], layers: Sequence[ChainedLayer]) -> Outputs | None:
    """Layers one after the other: flat outputs [positions, O], and (N, h, w) of each of the maps [N, C, H, W].

    None where the layers must be called one by one: no backend has it for them, gradients are enabled, regions are
    timed, or under autocast and in torch.func's transforms and compiled code.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not maps or regions.are_timed():
        return None
    x = maps[0]
    if x.device.type == "meta" or torch.is_autocast_enabled(x.device.type):
        return None
    if is_transformed(*maps, *(t for layer in layers for t in layer[:2])):
        return None
    override = active_override()
    if override is not None and all(backend.name != override for backend in backends_of(OP)):
        return None
    backend = select_backend(OP, x.device, x.dtype)
    if override is None and any(_precedes(other, op, x) for op in SINGLE_OPS for other in backends_of(op)):
        return None
    return backend.functions[OP](maps, layers)


def _precedes(other: Backend, op: str, x: Tensor) -> bool:
    """Whether a backend that has no chains would run a single op on such inputs."""
    return (
        OP not in other.functions and other.name != "reference" and other.supports(op, x.device, x.dtype, None) is None
    )
