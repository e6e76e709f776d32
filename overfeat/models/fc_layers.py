"""Fully connected layers as convolutions, over maps and over single windows of them (section 3.3)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import ops
from overfeat.models.net import Shape
from overfeat.ops import layout
from overfeat.ops.chain import ChainedLayer, run_chain
from overfeat.ops.transforms import is_transformed
from overfeat.regions import FIRST_FC, REMAINING_FC, region

ROWS_AT_ONCE = 4096  # positions whose context stays in the cache

if TYPE_CHECKING:

    class ConvList(nn.ModuleList):
        """A `ModuleList` of convolutions."""

        @overload
        def __getitem__(self, index: slice) -> "ConvList": ...
        @overload
        def __getitem__(self, index: int) -> nn.Conv2d: ...
        def __getitem__(self, index: int | slice) -> "nn.Conv2d | ConvList": ...
        def __iter__(self) -> Iterator[nn.Conv2d]: ...

else:
    ConvList = nn.ModuleList


class ContextLogits(NamedTuple):
    """What context adds to the first fully connected layer."""

    logits: Tensor  # [n, hidden]
    positions: Tensor  # int64 [positions]: the row of each


def fc_flat(
    layers: ConvList, maps: Sequence[Tensor], pool: int, step: int, *, dropout: float = 0.0,
    context: ContextLogits | None = None, last_relu: bool = False, regions: tuple[str, str] = (FIRST_FC, REMAINING_FC),
) -> tuple[Tensor, list[Shape]]:  # fmt: skip
    """Fully connected layers over unpooled maps (section 3.3): flat outputs, and (N, h', w') of each map.

    Args:
        layers: As convolutions; a ReLU and dropout follow all but the last, with `last_relu` a ReLU the last as well.
        maps: [N, C, h, w] each.
        pool: Size of the pooling before the first layer.
        step: Cells of the maps between outputs: 1 pools at every offset (fine stride), `pool` at the first (coarse).
        dropout: Its probability; 0 in evaluation.
        context: Added before the first ReLU.
        regions: Names of the first layer's region and of the others'.
    """
    chained = None if dropout or context is not None else _chained(layers, maps, pool, step, last_relu)
    if chained is not None:
        return chained
    relu = len(layers) > 1 or last_relu
    with region(regions[0]):
        x, shapes = first_fc(layers[0], maps, pool, step, relu and context is None)
        if context is not None:
            x = _add_context(x, context, relu)
    with region(regions[1]):
        return remaining_fc(layers, x, dropout, last_relu), shapes


def _add_context(x: Tensor, context: ContextLogits, relu: bool) -> Tensor:
    """x [positions, hidden] with context and ReLU; on a CPU without gradients in place, in parts that fit the cache."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or is_transformed(x, *context):
        x = x + context.logits[context.positions]
        return x.relu_() if relu else x
    for part, positions in zip(x.split(ROWS_AT_ONCE), context.positions.split(ROWS_AT_ONCE), strict=True):
        part.add_(context.logits[positions])
        if relu:
            part.relu_()
    return x


def first_fc(
    layer: nn.Conv2d, maps: Sequence[Tensor], pool: int, step: int, relu: bool = False
) -> tuple[Tensor, list[Shape]]:
    """`fc_flat` of the first layer: from here on every position is independent, a row of one matrix."""
    maps, pool = _pooled(layer, maps, pool, step)
    flat = ops.skip_classifier_flat(maps, layer.weight, layer.bias, pool, relu=relu)
    return flat, layout.output_shapes(maps, layer.weight, pool)


def _pooled(layer: nn.Conv2d, maps: Sequence[Tensor], pool: int, step: int) -> tuple[Sequence[Tensor], int]:
    """The maps, pooled at coarse stride, and the size of the pooling that is left."""
    window = pool * layer.kernel_size[0]
    for m in maps:
        if min(m.shape[2:]) < window:
            raise ValueError(f"maps of {m.shape[2]}x{m.shape[3]} are smaller than a window's {window}x{window}")
    if step == 1:
        return maps, pool
    assert step == pool, (step, pool)
    return [F.max_pool2d(m, pool) for m in maps], 1


def _chained(
    layers: ConvList, maps: Sequence[Tensor], pool: int, step: int, last_relu: bool
) -> tuple[Tensor, list[Shape]] | None:
    """`fc_flat` in one call of a backend, if one has it."""
    if torch.is_grad_enabled():
        return None
    maps, pool = _pooled(layers[0], maps, pool, step)
    if all(m.shape[2:] == layers[0].weight.shape[2:] for m in maps):
        return None  # single windows are rows of a linear layer
    last = len(layers) - 1
    chain = [
        ChainedLayer(layer.weight, layer.bias, relu=number < last or last_relu) for number, layer in enumerate(layers)
    ]
    chain[0] = chain[0]._replace(dilation=pool, offset_pool=pool)
    return run_chain(maps, chain)


def remaining_fc(layers: ConvList, x: Tensor, dropout: float, last_relu: bool = False) -> Tensor:
    """The fully connected layers after the first, whose output is x [positions, channels]."""
    for layer in layers[1:]:
        x = F.dropout(x, dropout, training=dropout > 0)
        x = ops.linear(x, layer.weight, layer.bias, relu=last_relu or layer is not layers[-1])
    return x


def gather_windows(maps: Tensor, side: int, step: int, positions: Tensor, tap: int = 1) -> Tensor:
    """The contents of windows of maps [N, C, H, W], as maps [positions, C, side, side] of their own.

    Args:
        side: Cells along a window's side.
        step: Cells between windows.
        positions: int64, numbers of windows, row by row, image by image.
        tap: Cells between the cells of a window.
    """
    (height, width), extent = maps.shape[2:], (side - 1) * tap + 1
    rows, columns = ((length - extent) // step + 1 for length in (height, width))
    image, row, column = positions // (rows * columns), positions // columns % rows, positions % columns
    start = (image * height + row * step) * width + column * step
    offsets = torch.arange(0, extent, tap, device=maps.device)
    cells = (start[:, None] + (offsets[:, None] * width + offsets).flatten()).flatten()
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return flat.index_select(0, cells).view(-1, side, side, maps.shape[1]).permute(0, 3, 1, 2)
