"""Max pooling at every offset (section 3.3, step b)."""

from typing import Any

import torch
from torch import Tensor

from overfeat.ops import reference
from overfeat.ops.layout import empty_in_format
from overfeat.ops.registry import CUDAGRAPH_UNSAFE, active_override, backend, implementation


def offset_max_pool(maps: Tensor, size: int) -> Tensor:
    """Max over every size x size window, at stride 1: the poolings at all offsets at once (section 3.3, b).

    NaN propagates. Of equal values the first, row by row, receives the gradient.

    Maps [N, C, H, W] give [N, C, H-size+1, W-size+1] in their memory format; ValueError for shapes that do not fit.
    """
    check_maps(maps, size, size)
    if active_override() == "reference":  # its gradients are autograd's
        return reference.offset_max_pool(maps, size)
    return torch.ops.overfeat.offset_max_pool(maps, size)


def check_maps(maps: Tensor, size: int, min_side: int) -> None:
    """Raises ValueError unless maps are [N, C, H, W] of at least min_side x min_side and the pool size is valid."""
    if maps.dim() != 4:
        raise ValueError(f"maps must be [N, C, H, W]; these have shape {tuple(maps.shape)}")
    if not isinstance(size, (int, torch.SymInt)) or size < 1:
        raise ValueError(f"size must be at least 1, not {size!r}")
    if min(maps.shape[2:]) < min_side:
        raise ValueError(
            f"maps of {maps.shape[2]}x{maps.shape[3]} are smaller than the {min_side}x{min_side} that an output needs"
        )


@torch.library.custom_op("overfeat::offset_max_pool", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _pool(maps: Tensor, size: int) -> Tensor:
    return implementation("offset_max_pool", maps)(maps, size)


@_pool.register_fake
def _(maps: Tensor, size: int) -> Tensor:
    n, c, h, w = maps.shape
    return empty_in_format(maps, n, c, h - size + 1, w - size + 1)


@torch.library.custom_op("overfeat::offset_max_pool_backward", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _pool_backward(grad: Tensor, maps: Tensor, size: int) -> Tensor:
    return implementation("offset_max_pool_backward", maps)(grad, maps, size)


@_pool_backward.register_fake
def _(grad: Tensor, maps: Tensor, size: int) -> Tensor:
    return empty_in_format(maps, *maps.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, ctx.size = inputs
    ctx.backend = active_override()  # autograd's threads for GPUs do not see the caller's block
    ctx.save_for_backward(maps)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    with backend(ctx.backend):
        return torch.ops.overfeat.offset_max_pool_backward(grad, ctx.saved_tensors[0], ctx.size), None


_pool.register_autograd(_gradient, setup_context=_setup)
