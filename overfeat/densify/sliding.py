"""Ops that slide over maps: what is computed once for all windows, and what at each window's border.

Output cell j of a window sees input cells stride*j - pad + dilation*t, t < kernel. Inside, that is one op over the
shared map with the dilation times `tap`; its stride is kept as far as the windows' distance allows it. With exact
borders, cells that see the border are computed from the window's own cells: strips per row or column of windows,
corners per window. With neighbours the shared map is padded as a whole, at the borders of the image alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Pair
from overfeat.densify.export import label
from overfeat.densify.values import Axis, Cells, Maps, on_maps
from overfeat.errors import ArgumentError

# An op without padding on maps [n, C, h, w], given its strides and dilations (down, across).
Op = Callable[[Tensor, Pair, Pair], Tensor]


@dataclass(frozen=True)
class Sliding:
    """Along one axis; a negative pad leaves cells out."""

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1


def slidings(kernel: Pair, stride: Pair, pad: Pair, dilation: Pair) -> tuple[Sliding, Sliding]:
    """For both axes."""
    down, across = (Sliding(*values) for values in zip(kernel, stride, pad, dilation, strict=True))
    return down, across


@dataclass(frozen=True)
class AxisPlan:
    """How an op runs along an axis."""

    old: Axis
    new: Axis
    sliding: Sliding
    shared_pad: Pair  # of the shared map: negative at the low end where the first cells are of no window

    def source(self, cells: Cells) -> tuple[Cells, Pair, int, int]:
        """For output cells: the input cells to take, their padding, and the op's stride and dilation."""
        if cells is None:
            return None, self.shared_pad, self.new.unit // self.old.unit, self.sliding.dilation * self.old.tap
        s = self.sliding
        first, stop = s.stride * cells[0] - s.pad, s.stride * (cells[1] - 1) - s.pad + (s.kernel - 1) * s.dilation + 1
        start = min(max(0, first), self.old.cells - 1)
        inner = start, max(min(self.old.cells, stop), start + 1)
        return inner, (inner[0] - first, stop - inner[1]), s.stride, s.dilation


@lru_cache(maxsize=4096)
def plan_axis(old: Axis, sliding: Sliding, cells: int, count: int, stride: int, neighbours: bool) -> AxisPlan:
    """How an op that gives `cells` output cells runs along an axis with `count` windows, `stride` pixels apart."""
    if cells == 1:  # its stride is of no meaning: only the windows' outputs are computed
        sliding = replace(sliding, stride=max(1, stride // old.unit))
    s, reach = sliding, (sliding.kernel - 1) * sliding.dilation
    beyond = max(0, s.stride * (cells - 1) - s.pad + reach - (old.cells - 1))
    low = high = 0
    grow, jump = (s.pad * old.tap, beyond * old.tap) if neighbours else (0, 0), old.unit * old.tap
    if not neighbours:
        low = sum(s.stride * j - s.pad < old.low for j in range(cells))
        high = sum(s.stride * j - s.pad + reach > old.cells - 1 - old.high for j in range(cells))
    step = math.gcd(s.stride, stride // old.unit)
    offset = old.offset + grow[0] - s.pad * old.tap
    crop = offset % step
    new = Axis(
        cells, old.unit * step, old.tap * s.stride // step, (offset - crop) // step, low, high,
        old.before + max(0, s.pad) * jump, old.after + beyond * jump,
    )  # fmt: skip
    if old.own or (not neighbours and _sharing_is_useless(new, count, stride)):
        new = replace(new, low=cells, high=0)
    return AxisPlan(old, new, sliding, (grow[0] - crop, grow[1]))


def _sharing_is_useless(axis: Axis, count: int, stride: int) -> bool:
    """Whether computing the shared cells needs as many as computing each window's."""
    inner = axis.cells - axis.low - axis.high
    if inner <= 0:
        return True
    shared = (count - 1) * (stride // axis.unit) + (inner - 1) * axis.tap + 1
    return shared >= count * inner if axis.low or axis.high else shared > count * inner


def slide(
    node: Node, maps: Maps, slidings: Sequence[Sliding], op: Op, *, borders: str, cells: Pair | None = None,
    fill: float = 0.0, scale: Sequence[Sequence[float]] | None = None,
) -> Maps | Tensor:  # fmt: skip
    """Run an op that slides; the result is a batch of windows where none of its cells is shared.

    Args:
        cells: Output cells of a window (down, across); None: as many as the node's value has.
        fill: The value of the padding.
        scale: For both axes, factors of the output cells that see the border.
    """
    plans = []
    cells, neighbours = cells or output_cells(node), borders == "neighbours"
    for i, (axis, sliding) in enumerate(zip(maps.axes, slidings, strict=True)):
        count = 1 if neighbours else maps.grid.counts[i]  # of which a plan with neighbours does not depend
        plan = plan_axis(axis, sliding, cells[i], count, maps.grid.stride, neighbours)
        seen = max(plan.new.before - axis.before, plan.new.after - axis.after) // (axis.unit * axis.tap)
        if borders == "refuse" and seen:
            problem = f"{label(node)} sees {seen} cell{'s' * (seen > 1)} beyond the window's border"
            raise ArgumentError("borders", "must be 'exact' or 'neighbours' for this module: " + problem)
        plans.append(plan)
    parts = {}
    down, across = plans
    for kind_down, cells_down in down.new.kinds():
        for kind_across, cells_across in across.new.kinds():
            part = _run(maps, (down, across), (cells_down, cells_across), op, fill)
            parts[kind_down, kind_across] = _scaled(part, (cells_down, cells_across), scale)
    result = Maps((down.new, across.new), parts, maps.grid)
    return result.windows() if down.new.own and across.new.own else result


def output_cells(node: Node) -> Pair:
    """Cells of a window (down, across) in a node's value [N, C, h, w], or in the first of several values."""
    value = node.meta["val"]
    height, width = (value if isinstance(value, Tensor) else value[0]).shape[2:]
    return int(height), int(width)


def _run(maps: Maps, plans: tuple[AxisPlan, AxisPlan], cells: tuple[Cells, Cells], op: Op, fill: float) -> Tensor:
    """These output cells."""
    (down, pad_down, step_down, tap_down) = plans[0].source(cells[0])
    (across, pad_across, step_across, tap_across) = plans[1].source(cells[1])
    part = maps.take(down, across, (*pad_across, *pad_down), fill)
    return on_maps(lambda t: op(t, (step_down, step_across), (tap_down, tap_across)), part)


def _scaled(part: Tensor, cells: tuple[Cells, Cells], scale: Sequence[Sequence[float]] | None) -> Tensor:
    for i, of_axis in enumerate(cells):
        if scale is not None and of_axis is not None:
            factors = part.new_tensor(list(scale[i][of_axis[0] : of_axis[1]]))
            part = part * factors.view([1] * 4 + ([-1, 1] if i == 0 else [1, -1]))
    return part
