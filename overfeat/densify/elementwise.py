"""Rules of ops that act on each cell alone: activations, sums of branches, concatenated channels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Context, Sym
from overfeat.densify.values import Maps, Shared, View, as_maps, from_plain, is_plain, to_plain

ELEMENTWISE = frozenset((
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "tanh", "silu", "gelu", "elu",
    "celu", "selu", "leaky_relu", "softplus", "mish", "hardshrink", "softshrink", "threshold", "softsign", "clamp",
    "clamp_min", "clamp_max", "neg", "abs", "exp", "expm1", "log", "log1p", "log2", "square", "pow", "sqrt", "rsqrt",
    "reciprocal", "sign", "sin", "cos", "erf", "floor", "ceil", "round", "dropout", "feature_dropout", "alpha_dropout",
    "feature_alpha_dropout", "native_dropout", "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to",
    "_to_copy", "rsub", "nan_to_num", "gt", "lt", "ge", "le", "eq", "ne", "logical_not", "bitwise_not", "trunc",
))  # fmt: skip
BINARY = frozenset((
    "add", "sub", "mul", "div", "maximum", "minimum", "rsub", "pow", "atan2", "fmod", "remainder", "where", "addcmul",
    "gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or",
))  # fmt: skip


def elementwise(context: Context, node: Node, x: Maps | View, *args: Any, **kwargs: Any) -> Any:
    """Ops of each number alone."""
    if any(isinstance(a, (Tensor, Sym, *Shared)) for a in (*args, *kwargs.values())):
        return None
    kwargs.pop("device", None)  # the images are where the weights are
    target: Callable = node.target  # type: ignore[assignment]
    if isinstance(x, View):
        maps = elementwise(context, node, x.maps, *args, **kwargs)
        return None if maps is None else View(maps, x.index)
    return x.map(lambda t: target(t, *args, **kwargs))


def batch_norm(
    context: Context, node: Node, x: Maps, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
    *rest: Any,
) -> Any:  # fmt: skip
    """Batch normalization in evaluation; returns a tuple, as the op of the graph does."""
    if not isinstance(x, Maps):
        return None
    epsilon = rest[-1]
    return (x.map(lambda t: F.batch_norm(t, mean, var, weight, bias, False, 0.0, epsilon)),)


def of_channels(context: Context, node: Node, x: Maps, *args: Any, **kwargs: Any) -> Any:
    """PReLU: a parameter for each channel."""
    if not isinstance(x, Maps) or any(isinstance(a, Shared) for a in args):
        return None
    target: Callable = node.target  # type: ignore[assignment]
    return x.map(lambda t: target(t, *args, **kwargs))


def softmax(context: Context, node: Node, x: Maps, dim: int, *args: Any, **kwargs: Any) -> Any:
    """Over the channels."""
    if not isinstance(x, Maps) or dim % 4 != 1:
        return None
    target: Callable = node.target  # type: ignore[assignment]
    return x.map(lambda t: target(t, dim, *args, **kwargs))


def joined(context: Context, node: Node, *values: Any, **kwargs: Any) -> Any:
    """Ops of several maps, cell by cell, such as a residual sum."""
    target: Callable = node.target  # type: ignore[assignment]
    items = as_maps(values)
    maps = [v for v in items if isinstance(v, Maps)]
    if (len(maps) == 1 and len(items) == 1) or not maps or any(isinstance(v, View) for v in items):
        return None
    if not all(_same_for_all_cells(v) for v in items if isinstance(v, Tensor)):
        return None

    def function(parts: list[Tensor]) -> Tensor:
        remaining = iter(parts)
        return target(*(next(remaining) if isinstance(v, Maps) else v for v in items), **kwargs)

    return _combined(maps, function)


def _same_for_all_cells(tensor: Tensor) -> bool:
    """Whether a constant has a number for each channel at most."""
    if tensor.dim() == 0:
        return True
    batch = tensor.dim() < 4 or tensor.shape[0] == 1
    return 3 <= tensor.dim() <= 4 and batch and tuple(tensor.shape[-2:]) == (1, 1)


def cat(context: Context, node: Node, values: Sequence[Any], dim: int = 0) -> Any:
    """Concatenation of channels."""
    items = as_maps(values)
    if dim % 4 != 1 or not all(isinstance(v, Maps) for v in items):
        return None

    def function(parts: list[Tensor]) -> Tensor:
        if parts[0].dim() == 4:
            return torch.cat(parts, dim=1)
        # Channels last, as the parts are: several times as fast.
        return torch.cat([t.permute(0, 1, 2, 4, 5, 3) for t in parts], dim=5).permute(0, 1, 2, 5, 3, 4)

    return _combined(items, function)  # type: ignore[arg-type]


def _combined(maps: Sequence[Maps], function: Callable[[list[Tensor]], Tensor]) -> Maps | Tensor | None:
    """A function of maps whose cells are the same windows' cells; the widest border of them is each window's own."""
    axes = []
    for down_or_across in zip(*(m.axes for m in maps), strict=True):
        first = down_or_across[0]
        if len({(axis.cells, axis.unit, axis.tap) for axis in down_or_across}) > 1:
            return None
        low, high = (max(getattr(axis, name) for axis in down_or_across) for name in ("low", "high"))
        before, after = (max(getattr(axis, name) for axis in down_or_across) for name in ("before", "after"))
        if low + high >= first.cells:
            low, high = first.cells, 0
        offset = min(axis.offset for axis in down_or_across)
        axes.append(replace(first, low=low, high=high, offset=offset, before=before, after=after))
    parts = {}
    for kind_down, down in axes[0].kinds():
        for kind_across, across in axes[1].kinds():
            pieces = [m.take(down, across) for m in maps]
            for i, cells in enumerate((down, across)):
                if cells is None:
                    pieces = _aligned(pieces, 4 + i, [m.axes[i].offset - axes[i].offset for m in maps])
            plain = all(map(is_plain, pieces))
            result = function([to_plain(p) for p in pieces]) if plain else function(pieces)
            parts[kind_down, kind_across] = from_plain(result) if plain else result
    combined = Maps((axes[0], axes[1]), parts, maps[0].grid)
    return combined.windows() if axes[0].own and axes[1].own else combined


def _aligned(parts: list[Tensor], dim: int, offsets: list[int]) -> list[Tensor]:
    """Shared parts from the same cell on, as long as the shortest."""
    if not any(offsets) and all(part.shape[dim] == parts[0].shape[dim] for part in parts):
        return parts
    length = min(part.shape[dim] - offset for part, offset in zip(parts, offsets, strict=True))
    return [part.narrow(dim, offset, length) for part, offset in zip(parts, offsets, strict=True)]
