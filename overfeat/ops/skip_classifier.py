"""Offset pooling and the classifier's first layer in one op (section 3.3, steps a-e)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops import reference, transforms
from overfeat.ops.layout import (
    concat,
    empty_in_format,
    flatten_maps,
    output_shapes,
    unflatten_positions,
    window_size,
)
from overfeat.ops.library import operator
from overfeat.ops.pooling import check_maps, check_positive, check_tensors
from overfeat.ops.registry import active_override, backend, implementation


def skip_classifier(
    maps: Tensor, weight: Tensor, bias: Tensor | None, size: int, relu: bool = True, tap: int | None = None
) -> Tensor:
    """Pool at every offset, apply the classifier's first layer, interleave (section 3.3, a-e).

    Args:
        maps: [N, C, H, W], before the pooling by `size`.
        weight, bias: [O, C, k_y, k_x], and [O] or None.
        tap: stride of the pooling, the distance of the window's taps in the maps; None: `size`, as in the paper.

    Returns:
        [N, O, H-reach, W-reach], where reach = size-1 + (k-1)*tap along each axis: one output for every offset of the
        pooling, in the maps' memory format.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit.
    """
    return skip_classifier_scales([maps], weight, bias, size, relu, tap)[0]


def skip_classifier_scales(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool = True, tap: int | None = None
) -> list[Tensor]:
    """`skip_classifier` on maps of different N, H, W (scales, flips, images); the weights are read once."""
    flat = skip_classifier_flat(maps, weight, bias, size, relu, tap)
    return unflatten_positions(flat, maps, output_shapes(maps, weight, size, tap))


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool = True, tap: int | None = None
) -> Tensor:
    """`skip_classifier_scales` as flat features [positions, O], ordered by map, image, row and column."""
    if not isinstance(maps, Iterable):
        raise TypeError(f"maps must be a list of tensors, not {type(maps).__name__}")
    maps, tap = list(maps), size if tap is None else tap
    for m in maps:
        check_tensors(maps=m)
    check_tensors(weight=weight, **({} if bias is None else {"bias": bias}))
    if maps and weight.device.type != "meta" and torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
        inputs = [*maps, weight, *([] if bias is None else [bias])]
        cast = [t if t.dtype == torch.float64 else t.to(dtype) for t in inputs]  # as in torch's own autocast
        maps, weight, bias = cast[: len(maps)], cast[len(maps)], None if bias is None else cast[-1]
    _check(maps, weight, bias, size, tap)
    if not maps:
        return weight.new_empty(0, weight.shape[0])
    if transforms.is_transformed(*maps, weight, bias):
        return transforms.skip_classifier_flat(maps, weight, bias, size, relu, tap)
    override = active_override()
    if override == "reference":  # its gradients are autograd's
        return reference.skip_classifier_flat(maps, weight, bias, size, relu, tap)
    if override in (None, "torch") and size == 1 and all(m.shape[2:] == weight.shape[2:] for m in maps):
        # One position a map, as on training crops: a linear layer like any other.
        flat = F.linear(concat([flatten_maps(m) for m in maps]), flatten_maps(weight), bias)
        return flat.relu_() if relu else flat
    return torch.ops.overfeat.skip_classifier_flat(maps, weight, bias, size, relu, tap)


def _check(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, tap: int) -> None:
    if weight.dim() != 4:
        raise ValueError(f"weight must be [O, C, k_y, k_x]; it has shape {tuple(weight.shape)}")
    if 0 in weight.shape:
        raise ValueError(f"the weight is empty: {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}] to fit the weight; it is {list(bias.shape)}")
    check_positive(size=size, tap=tap)
    for m in maps:
        check_maps(m, window_size(weight, size, tap))
        if m.shape[1] != weight.shape[1]:
            raise ValueError(f"maps have {m.shape[1]} channels, the weight has {weight.shape[1]} input channels")
        for name, other in (("weight", weight), ("bias", bias)):
            if other is not None and (other.dtype != m.dtype or other.device != m.device):
                dtypes = f"maps are {m.dtype} on {m.device}, the {name} {other.dtype} on {other.device}"
                raise ValueError(f"{dtypes}; move one")


@operator("overfeat::skip_classifier_flat")
def _flat(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int) -> Tensor:
    return implementation("skip_classifier_flat", maps[0])(maps, weight, bias, size, relu, tap)


@_flat.register_fake
def _(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int) -> Tensor:
    positions = sum(n * height * width for n, height, width in output_shapes(maps, weight, size, tap))
    return weight.new_empty(positions, weight.shape[0])


@operator("overfeat::skip_classifier_flat_backward")
def _flat_backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int, tap: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the maps, then of the weight and the bias, each if needed. output: None if there was no ReLU."""
    run = implementation("skip_classifier_flat_backward", maps[0])
    return run(grad, maps, weight, output, size, tap, need_maps, need_weight)


@_flat_backward.register_fake
def _(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int, tap: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    gradients = [empty_in_format(m, *m.shape) for m in maps] if need_maps else []
    if need_weight:
        gradients += [empty_in_format(weight, *weight.shape), weight.new_empty(weight.shape[0])]
    return gradients


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, weight, bias, ctx.size, ctx.relu, ctx.tap = inputs
    ctx.num_maps, ctx.has_bias = len(maps), bias is not None
    ctx.backend = active_override()  # autograd's threads for GPUs do not see the caller's block
    ctx.save_for_backward(weight, *maps, *([output] if ctx.relu else []))


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, *rest = ctx.saved_tensors
    maps, output = rest[: ctx.num_maps], rest[ctx.num_maps] if ctx.relu else None
    need_maps = any(ctx.needs_input_grad[0])
    need_weight = ctx.needs_input_grad[1] or (ctx.has_bias and ctx.needs_input_grad[2])
    with backend(ctx.backend):
        gradients = torch.ops.overfeat.skip_classifier_flat_backward(
            grad, maps, weight, output, ctx.size, ctx.tap, need_maps, need_weight
        )
    grad_maps = gradients[: ctx.num_maps] if need_maps else [None] * ctx.num_maps
    grad_weight, grad_bias = gradients[-2:] if need_weight else (None, None)
    return grad_maps, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


_flat.register_autograd(_gradients, setup_context=_setup)
# The other two decompose into the op above, gradients included.
_PARAMETERS = "Tensor weight, Tensor? bias, int size, bool relu, int? tap=None"
torch.library.define("overfeat::skip_classifier", f"(Tensor maps, {_PARAMETERS}) -> Tensor")
torch.library.define("overfeat::skip_classifier_scales", f"(Tensor[] maps, {_PARAMETERS}) -> Tensor[]")
torch.library.impl("overfeat::skip_classifier", "CompositeImplicitAutograd")(skip_classifier)
torch.library.impl("overfeat::skip_classifier_scales", "CompositeImplicitAutograd")(skip_classifier_scales)
