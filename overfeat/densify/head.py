"""The head of a module that ends in (pool,) flatten, Linear, ...: the first layer runs as `ops.skip_classifier_flat`.

So a converted net passes the tiles of several scales through its large layers together, on the same kernels as the
built-in nets. Where a window's border is left in the maps, the whole graph runs tile by tile instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import pair
from overfeat.densify.export import Program, arguments, is_number, op_name
from overfeat.densify.sliding import Sliding, plan_axis
from overfeat.densify.values import Axis, Index, Maps
from overfeat.densify.views import COPIES, LAYOUT


@dataclass(frozen=True)
class Head:
    """Where a module's head begins.

    Attributes:
        source: The maps that go in.
        pool: The max pooling that the first layer's op runs as well, or None.
        linear: The first layer, over all elements of a window.
        index: Which element of the window's pooled maps each of its inputs is.
        body: The nodes before the head.
        layout: The nodes between the pooled maps and the first layer.
        tail: The nodes after the first layer, on a batch of windows.
    """

    source: Node
    pool: Node | None
    linear: Node
    index: Index
    body: Sequence[Node]
    layout: Sequence[Node]
    tail: Sequence[Node]


@dataclass(frozen=True)
class HeadInput:
    """Maps for `ops.skip_classifier_flat`, and its `size` and `tap`."""

    maps: Tensor
    size: int
    tap: int


def find_head(program: Program, constants: Iterable[Node], indices: dict[Node, list[Index | None]]) -> Head | None:
    """The head of a program if it has one. constants: nodes of weights alone; indices: of the program's views."""
    ignored, alive = set(constants), {program.image}
    for position, node in enumerate(program.nodes):
        if node in ignored:
            continue
        used_up = set(program.dead[node])
        if op_name(node) == "linear" and all(is_number(other) for other in alive - used_up):
            return _head_at(program, position, indices)
        alive = (alive | {node}) - used_up
    return None


def _head_at(program: Program, position: int, indices: dict[Node, list[Index | None]]) -> Head | None:
    """The head whose first layer is this node, if it sees each element of a window's maps once at most."""
    linear, chain = program.nodes[position], set()
    node = linear.args[0]
    last = node
    while isinstance(node, Node) and op_name(node) in LAYOUT | set(COPIES) and len(node.users) == 1:
        chain.add(node)
        node = node.args[0]
    index = indices.get(last, [None])[0] if isinstance(last, Node) else None
    if not isinstance(node, Node) or index is None or index.elements.dim() != 1 or node.meta["val"].dim() != 4:
        return None
    if not index.unique:
        return None
    pool = node if _is_plain_pool(node) else None
    source = node if pool is None else node.args[0]
    assert isinstance(source, Node)
    middle = chain | ({pool} if pool else set())
    before, after = program.nodes[:position], program.nodes[position + 1 :]
    return Head(
        source, pool, linear, index,
        body=[n for n in before if n not in middle],
        layout=[n for n in before if n in chain],
        tail=[n for n in before if is_number(n)] + after,
    )  # fmt: skip


def _is_plain_pool(node: Node) -> bool:
    """Whether this is a max pooling of squares that nothing else uses, without padding."""
    if op_name(node) != "max_pool2d" or len(node.users) > 1:
        return False
    a = arguments(node)
    kernel, stride, dilation = (pair(a[name] or a["kernel_size"]) for name in ("kernel_size", "stride", "dilation"))
    return kernel[0] == kernel[1] and stride[0] == stride[1] and not any(pair(a["padding"])) and dilation == (1, 1)


def _kernel_and_stride(pool: Node) -> tuple[int, int]:
    """The kernel and the stride of a plain max pooling."""
    a = arguments(pool)
    return pair(a["kernel_size"])[0], pair(a["stride"] or a["kernel_size"])[0]


def head_input(maps: object, pool: Node | None, *, borders: str) -> HeadInput | None:
    """What a head's first layer runs on, with the pooling; None where it cannot: see `skip_classifier`.

    It runs on maps without borders, whose cells are as far apart as the windows.
    """
    if not isinstance(maps, Maps) or not maps.all_shared:
        return None
    axes, size = maps.axes, 1
    if pool is not None:
        size, stride = _kernel_and_stride(pool)
        sliding = Sliding(size, stride)
        plans = [
            plan_axis(axis, sliding, cells, count, maps.grid.stride, borders == "neighbours")
            for axis, cells, count in zip(maps.axes, pool.meta["val"].shape[2:], maps.grid.counts, strict=True)
        ]
        dense = all(p.old.tap == 1 and p.new.unit == p.old.unit for p in plans)
        if not dense or any(p.new.low or p.new.high or p.new.after != p.old.after for p in plans):
            return None
        axes = (plans[0].new, plans[1].new)
    if any(axis.unit != maps.grid.stride for axis in axes) or axes[0].tap != axes[1].tap:
        return None
    down, across = (_extent(axis, count, size) for axis, count in zip(axes, maps.grid.counts, strict=True))
    return HeadInput(maps.parts["shared", "shared"][:, 0, 0, :, down, across], size, axes[0].tap)


def _extent(axis: Axis, count: int, size: int) -> slice:
    """The shared cells that `count` windows see."""
    return slice(axis.offset, axis.offset + count - 1 + (axis.cells - 1) * axis.tap + size)
