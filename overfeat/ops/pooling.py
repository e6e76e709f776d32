"""Max pooling at every offset (section 3.3, step b)."""

from typing import Any

import torch
from torch import Tensor

from overfeat.errors import ArgumentError
from overfeat.ops import reference, transforms
from overfeat.ops.layout import empty_in_format
from overfeat.ops.library import operator
from overfeat.ops.registry import active_override, backend, implementation


def offset_max_pool(maps: Tensor, size: int, dilation: int = 1) -> Tensor:
    """Max over every size x size window, at stride 1: the poolings at all offsets at once (section 3.3, b).

    NaN propagates. Of equal values the first, row by row, receives the gradient.

    Args:
        maps: [N, C, H, W].
        dilation: distance of a window's values, on maps that are themselves interleaved.

    Returns:
        [N, C, H-reach, W-reach] in the maps' memory format, where reach = (size-1)*dilation.

    Raises:
        ValueError: for shapes that do not fit.
    """
    check_positive(size=size, dilation=dilation)
    reach = (size - 1) * dilation
    check_maps(maps, (reach + 1, reach + 1))
    if active_override() == "reference":  # its gradients are autograd's
        return reference.offset_max_pool(maps, size, dilation)
    if transforms.is_transformed(maps):
        return transforms.offset_max_pool(maps, size, dilation)
    return torch.ops.overfeat.offset_max_pool(maps, size, dilation)


def check_positive(**arguments: int) -> None:
    """Raises ValueError unless all arguments are integers of at least 1."""
    for name, value in arguments.items():
        allowed = isinstance(value, torch.SymInt) or (isinstance(value, int) and value < 1 << 31)
        if not allowed or value < 1:
            raise ArgumentError(name, f"must be an integer of at least 1, not {value!r}")


def check_tensors(**arguments: object) -> None:
    """Raises TypeError unless all arguments are tensors."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")


def check_maps(maps: Tensor, window: tuple[int, int]) -> None:
    """Raises ValueError unless maps are [N, C, H, W] of at least one window (height, width), TypeError for others."""
    check_tensors(maps=maps)
    if maps.dim() != 4:
        raise ValueError(f"maps must be [N, C, H, W]; these have shape {tuple(maps.shape)}")
    if maps.shape[2] < window[0] or maps.shape[3] < window[1]:
        raise ValueError(
            f"maps of {maps.shape[2]}x{maps.shape[3]} are smaller than the {window[0]}x{window[1]} that an output needs"
        )


@operator("overfeat::offset_max_pool")
def _pool(maps: Tensor, size: int, dilation: int = 1) -> Tensor:
    return implementation("offset_max_pool", maps)(maps, size, dilation)


@_pool.register_fake
def _(maps: Tensor, size: int, dilation: int = 1) -> Tensor:
    n, c, h, w = maps.shape
    reach = (size - 1) * dilation
    return empty_in_format(maps, n, c, h - reach, w - reach)


@operator("overfeat::offset_max_pool_backward")
def _pool_backward(grad: Tensor, maps: Tensor, size: int, dilation: int) -> Tensor:
    return implementation("offset_max_pool_backward", maps)(grad, maps, size, dilation)


@_pool_backward.register_fake
def _(grad: Tensor, maps: Tensor, size: int, dilation: int) -> Tensor:
    return empty_in_format(maps, *maps.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, *ctx.window = inputs  # size and dilation
    ctx.backend = active_override()  # autograd's threads for GPUs do not see the caller's block
    ctx.save_for_backward(maps)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    with backend(ctx.backend):
        return torch.ops.overfeat.offset_max_pool_backward(grad, ctx.saved_tensors[0], *ctx.window), None, None


_pool.register_autograd(_gradient, setup_context=_setup)
