"""Rules of ops that only move elements: view, flatten, permute, slices."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Context, filled, pair, resolve
from overfeat.densify.sliding import slide, slidings
from overfeat.densify.trees import leaves
from overfeat.densify.values import Index, Maps, Shared, View

LAYOUT = frozenset((
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "_unsafe_view", "chunk",
    "split", "split_with_sizes", "tensor_split", "unbind", "slice", "select", "narrow", "t", "mT", "numpy_T", "movedim",
    "swapaxes", "alias", "channel_shuffle", "pixel_unshuffle", "pixel_shuffle", "flip", "roll", "index_select", "index",
))  # fmt: skip
COPIES = ("contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "lift_fresh_copy")


def layout(context: Context, node: Node, x: Maps | View, *args: Any, **kwargs: Any) -> Any:
    """view, permute, slice, ...: moves elements of a window."""
    if any(isinstance(a, (Tensor, *Shared)) for a in leaves((args, kwargs))):
        return None
    if isinstance(x, Maps):
        elements = torch.arange(math.prod(x.shape)).view(x.shape)
        x = View(x, Index(elements, x.shape))
    if node not in context.indices:
        context.indices[node] = _indices(node, x.index, args, kwargs)
    views = [View(x.maps, index) if index is not None else None for index in context.indices[node]]
    if any(view is None for view in views):
        return None
    return views if isinstance(node.meta["val"], (tuple, list)) else views[0]


def _indices(node: Node, index: Index, args: Any, kwargs: Any) -> list[Index | None]:
    """The op on the elements of two windows; None where it mixes the windows."""
    size = math.prod(index.shape)
    elements = torch.stack([index.elements, index.elements + size])
    target: Callable = node.target  # type: ignore[assignment]
    results = target(elements, *resolve(args, 2), **resolve(kwargs, 2))
    indices: list[Index | None] = []
    for of_windows in results if isinstance(results, (tuple, list)) else [results]:
        apart = of_windows.dim() > 0 and len(of_windows) == 2 and torch.equal(of_windows[1], of_windows[0] + size)
        indices.append(Index(of_windows[0].contiguous(), index.shape) if apart else None)
    return indices


def slice_cells(context: Context, node: Node, x: Maps | View, dim: int = 0, *args: Any) -> Any:
    """A slice: of windows there is only the whole, of maps the cells stay shared, of others see `layout`."""
    rank = node.meta["val"].dim()
    if dim % rank == 0:
        start, stop, step = filled(args, None, None, 1)
        return x if start in (None, 0) and (stop is None or stop > 1 << 60) and step == 1 else None
    shared = (x.as_maps() or x) if isinstance(x, View) else x
    if not isinstance(shared, Maps) or dim % rank < 2:
        return layout(context, node, x, dim, *args)
    start, stop, step = filled(args, None, None, 1)
    starts, steps = [0, 0], [1, 1]
    i = dim % 4 - 2
    starts[i], steps[i] = range(shared.axes[i].cells)[start:stop:step].start, step
    sliding = slidings((1, 1), pair(steps), (-starts[0], -starts[1]), (1, 1))
    return slide(node, shared, sliding, lambda t, s, _: t[..., :: s[0], :: s[1]], borders=context.borders)
