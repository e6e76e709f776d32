"""Rules of reductions over all cells of every window, computed one axis after the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Context
from overfeat.densify.values import Kind, Maps

Combine = Callable[[Tensor, Tensor], Tensor]


def mean(context: Context, node: Node, x: Maps, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """A mean over all cells; others have no rule."""
    if dim is None or sorted(d % 4 for d in dim) != [2, 3] or dtype is not None:
        return None
    total = reduce_cells(x, torch.add) / (x.axes[0].cells * x.axes[1].cells)
    result = total.to(next(iter(x.parts.values())).dtype)
    return result[..., None, None] if keepdim else result


def maximum_of_cells(context: Context, node: Node, x: Maps, dim: Any = (), keepdim: bool = False) -> Any:
    """A maximum over all cells; others have no rule."""
    if sorted(d % 4 for d in dim) != [2, 3]:
        return None
    result = reduce_cells(x, torch.maximum)
    return result[..., None, None] if keepdim else result


def reduce_cells(maps: Maps, combine: Combine) -> Tensor:
    """torch.add (in float32 at least) or torch.maximum over all cells of every window: [windows, C]."""
    columns: dict[tuple[Kind, Kind], Tensor] = {}
    for kind_across, _ in maps.axes[1].kinds():
        of_kind = {kinds[0]: part for kinds, part in maps.parts.items() if kinds[1] == kind_across}
        columns["shared", kind_across] = _over_axis(maps, 0, of_kind, combine)
    return _over_axis(maps, 1, {kinds[1]: part for kinds, part in columns.items()}, combine)[..., 0, 0].flatten(0, 2)


def _over_axis(maps: Maps, i: int, parts: dict[Kind, Tensor], combine: Combine) -> Tensor:
    """Over the cells of axis i: parts of one cell, for each window of that axis."""
    axis, total = maps.axes[i], None
    for kind, part in parts.items():
        if kind == "shared":
            reduced = _over_shared(maps, i, part, combine)
        else:
            reduced = part.sum(4 + i, True, dtype=_sum_dtype(part)) if combine is torch.add else part.amax(4 + i, True)
        total = reduced if total is None else combine(total, reduced)
    assert total is not None, axis
    return total


def _over_shared(maps: Maps, i: int, part: Tensor, combine: Combine) -> Tensor:
    axis, count = maps.axes[i], maps.grid.counts[i]
    step, total = maps.grid.stride // axis.unit, None
    for k in range(axis.low, axis.cells - axis.high):
        cell = part.narrow(4 + i, k * axis.tap + axis.offset, (count - 1) * step + 1)
        cell = cell[..., ::step] if i else cell[..., ::step, :]
        if total is None:
            total = cell.to(_sum_dtype(part)) if combine is torch.add else cell
        else:
            total = combine(total, cell)
    assert total is not None
    return total.transpose(1 + i, 4 + i)


def _sum_dtype(part: Tensor) -> torch.dtype:
    """The dtype of sums: float16 would overflow, and bfloat16 round at every cell."""
    return torch.promote_types(part.dtype, torch.float32)
