"""Max over every size x size window at stride 1, of one map or a list of maps in one launch.

The backward pass is a gather: a cell adds up the gradients of the at most size x size windows that
chose it, in a fixed order, so that it is deterministic. Which cell a window chose is one byte.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.maps import MOST_MAPS, Kept, address_of

BLOCK = 1024
WARPS = 4


@triton.jit
def pool_kernel(
    maps,  # tuple of COUNT pointers: [N, C, H, W], any strides
    table,  # int64 [COUNT, 6]: pooled rows, columns; strides of N, C, H, W
    blocks,  # int32 or int64 [programs, 3]: map, first element in the map's result, elements of that result
    starts,  # int64 [programs]: where in the results the program's first element lies
    pooled,  # results, one map's behind the other: [N, h, w, C] where LAST, else [N, C, h, w]; dtype of maps
    winners,  # the same shape: the winner's place in its window, row * SIZE + column; uint8 or int16
    channels,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    LAST: tl.constexpr,
    VALUES: tl.constexpr,  # write pooled
    WINNERS: tl.constexpr,  # write winners
    BLOCK: tl.constexpr,
):
    i_block = tl.program_id(0).to(tl.int64)
    i_map = tl.load(blocks + 3 * i_block).to(tl.int32)
    # Divisions are the cost of this kernel: they are in int32 wherever a map's result has fewer than 2^31 elements.
    index = tl.load(blocks + 3 * i_block + 1) + tl.arange(0, BLOCK)
    inside = index < tl.load(blocks + 3 * i_block + 2)
    line = table + 6 * i_map
    height, width = tl.load(line).to(index.dtype), tl.load(line + 1).to(index.dtype)
    if LAST:
        c, rest = index % channels, index // channels
        x, rest = rest % width, rest // width
        y, n = rest % height, rest // height
    else:
        x, rest = index % width, index // width
        y, rest = rest % height, rest // height
        c, n = rest % channels, rest // channels
    stride_h, stride_w = tl.load(line + 4), tl.load(line + 5)
    o_corner = n * tl.load(line + 2) + c * tl.load(line + 3) + y * stride_h + x * stride_w  # int64
    p_corner = address_of(maps, i_map, COUNT).to(maps[0].dtype) + o_corner

    best = tl.full([BLOCK], -float("inf"), tl.float32)
    winner = tl.zeros([BLOCK], tl.int32)
    for place in range(SIZE * SIZE):
        value = tl.load(p_corner + place // SIZE * stride_h + place % SIZE * stride_w, mask=inside, other=0.0)
        value = value.to(tl.float32)
        # The first of equal values, and the first NaN, wins.
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        winner = tl.where(better, place, winner)
    o_result = tl.load(starts + i_block) + tl.arange(0, BLOCK)
    if VALUES:
        tl.store(pooled + o_result, best.to(pooled.dtype.element_ty), mask=inside)
    if WINNERS:
        tl.store(winners + o_result, winner.to(winners.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total", "height", "width", "stride_n"])
def pool_backward_kernel(
    grad,  # [N, C, h, w], any strides: gradient of the pooled map
    winners,  # [N, C, h, w] in memory as LAST says, from pool_kernel
    result,  # [N, C, H, W] in memory as LAST says: gradient of the map
    total,  # elements of result
    channels,
    height,  # of the pooled map
    width,
    stride_n,  # of grad
    stride_c,
    stride_h,
    stride_w,
    SIZE: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,  # 2^31 elements or more
    BLOCK: tl.constexpr,
):
    o_result = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = o_result < total
    index = o_result if WIDE else o_result.to(tl.int32)
    full_height, full_width = height + SIZE - 1, width + SIZE - 1
    if LAST:
        c, rest = index % channels, index // channels
        x, rest = rest % full_width, rest // full_width
        y, n = rest % full_height, rest // full_height
    else:
        x, rest = index % full_width, index // full_width
        y, rest = rest % full_height, rest // full_height
        c, n = rest % channels, rest // channels
    n, c = n.to(tl.int64), c.to(tl.int64)
    found = tl.zeros([BLOCK], tl.float32)
    for place in range(SIZE * SIZE):
        row, column = (y - place // SIZE).to(tl.int64), (x - place % SIZE).to(tl.int64)
        there = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        if LAST:
            o_winner = ((n * height + row) * width + column) * channels + c
        else:
            o_winner = ((n * channels + c) * height + row) * width + column
        chosen = there & (tl.load(winners + o_winner, mask=there, other=0).to(tl.int32) == place)
        o_grad = n * stride_n + c * stride_c + row * stride_h + column * stride_w
        found += tl.load(grad + o_grad, mask=chosen, other=0.0).to(tl.float32)
    tl.store(result + o_result, found.to(result.dtype.element_ty), mask=inside)


def forward(maps: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H-size+1, W-size+1], in the maps' memory format (see ops.offset_max_pool)."""
    last = is_last(maps)
    pooled = _empty(maps, size, last, maps.dtype)
    _launch([maps], size, last, pooled, None)
    return pooled


def forward_list(maps: Sequence[Tensor], size: int) -> Tensor:
    """Maps of one C and different N, H, W -> [cells, C]: their pooled maps, one behind the other, one launch."""
    cells = sum(m.shape[0] * (m.shape[2] - size + 1) * (m.shape[3] - size + 1) for m in maps)
    pooled, start = maps[0].new_empty(cells, maps[0].shape[1]), 0
    for i in range(0, len(maps), MOST_MAPS):
        part = maps[i : i + MOST_MAPS]
        stop = start + sum(m.shape[0] * (m.shape[2] - size + 1) * (m.shape[3] - size + 1) for m in part)
        _launch(part, size, True, pooled[start:stop], None)
        start = stop
    return pooled


def backward(grad: Tensor, maps: Tensor, size: int) -> Tensor:
    """Gradient of the maps, in their memory format, from that of the pooled maps."""
    last = is_last(maps)
    winners = _empty(maps, size, last, torch.uint8 if size <= 16 else torch.int32)
    _launch([maps], size, last, None, winners)
    result = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device, memory_format=_format(last))
    if result.numel():
        pool_backward_kernel[(triton.cdiv(result.numel(), BLOCK),)](
            grad, winners, result, result.numel(), maps.shape[1], *grad.shape[2:], *grad.stride(),
            SIZE=size, LAST=last, WIDE=result.numel() >= 2**31, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return result


def is_last(maps: Tensor) -> bool:
    """Whether results for these maps are channels-last; all else comes out contiguous, as in ops.py."""
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


def _format(last: bool) -> torch.memory_format:
    return torch.channels_last if last else torch.contiguous_format


def _empty(maps: Tensor, size: int, last: bool, dtype: torch.dtype) -> Tensor:
    n, c, h, w = maps.shape
    shape = (n, c, h - size + 1, w - size + 1)
    return torch.empty(shape, dtype=dtype, device=maps.device, memory_format=_format(last))


def _launch(maps: Sequence[Tensor], size: int, last: bool, pooled: Tensor | None, winners: Tensor | None) -> None:
    table, blocks, starts = _tables(tuple((*m.shape, *m.stride()) for m in maps), size, maps[0].device)
    if len(starts):
        unused = winners if pooled is None else pooled
        pool_kernel[(len(starts),)](
            tuple(maps), table, blocks, starts, unused if pooled is None else pooled,
            unused if winners is None else winners, maps[0].shape[1], COUNT=len(maps), SIZE=size, LAST=last,
            VALUES=pooled is not None, WINNERS=winners is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@Kept
def _tables(geometry: tuple[tuple[int, ...], ...], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """table, blocks and starts of pool_kernel, for maps of these shapes and strides."""
    table, blocks, starts, start = [], [], [], 0
    for i, (n, c, h, w, *strides) in enumerate(geometry):
        height, width = h - size + 1, w - size + 1
        elements = n * c * height * width
        table.append([height, width, *strides])
        first = torch.arange(0, elements, BLOCK, device="cpu")
        blocks.append(torch.stack([torch.full_like(first, i), first, torch.full_like(first, elements)], dim=1))
        starts.append(start + first)
        start += elements
    blocks, starts = torch.cat(blocks), torch.cat(starts)
    if not len(blocks) or int(blocks[:, 2].max()) < 2**31 - BLOCK:
        blocks = blocks.int()
    return torch.tensor(table, device="cpu").to(device), blocks.to(device), starts.to(device)
