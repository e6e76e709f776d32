"""Offset pooling of maps of any strides: one element of the result a thread, found by integer divisions.

For maps that are not channels-last, and for large windows; others have the kernels in offset_pool.py. The backward
pass is a gather here too.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.maps import DeviceTableCache, address_of, pointers

BLOCK = 1024
WARPS = 4


@triton.jit
def _unravel(index, channels, height, width, LAST: tl.constexpr):
    """Image, channel, row and column of elements of [N, H, W, C] if LAST, else [N, C, H, W]."""
    if LAST:
        c, rest = index % channels, index // channels
        x, rest = rest % width, rest // width
        y, n = rest % height, rest // height
    else:
        x, rest = index % width, index // width
        y, rest = rest % height, rest // height
        c, n = rest % channels, rest // channels
    return n, c, y, x


@triton.jit
def pool_kernel(
    maps,  # tuple of COUNT pointers: [N, C, H, W] each, any strides; float16, bfloat16 or float32
    table,  # int64 [COUNT, 6], contiguous: height and width of the pooled map; strides of N, C, H, W
    blocks,  # int32 or int64 [programs, 3], contiguous: map, first element in its result, elements of its result
    starts,  # int64 [programs]: offset of the program's first element in the results
    result,  # one map's after the other: [N, h, w, C] if LAST, else [N, C, h, w], written: maxima, dtype of maps; if
    # ARGMAX uint8 or int32: their offsets in their windows, row * SIZE + column
    channels,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,  # distance of a window's values
    LAST: tl.constexpr,  # results are channels-last
    ARGMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The maxima of BLOCK windows of one map, or where they are; compared in float32, exact for every dtype."""
    i_block = tl.program_id(0).to(tl.int64)
    i_map = tl.load(blocks + 3 * i_block).to(tl.int32)
    # Integer divisions dominate the cost: in int32 if all results have fewer than 2^31 elements.
    index = tl.load(blocks + 3 * i_block + 1) + tl.arange(0, BLOCK)
    inside = index < tl.load(blocks + 3 * i_block + 2)
    p_row = table + 6 * i_map
    height, width = tl.load(p_row).to(index.dtype), tl.load(p_row + 1).to(index.dtype)
    n, c, y, x = _unravel(index, channels, height, width, LAST)
    stride_h, stride_w = tl.load(p_row + 4), tl.load(p_row + 5)
    o_corner = n * tl.load(p_row + 2) + c * tl.load(p_row + 3) + y * stride_h + x * stride_w  # int64
    p_corner = address_of(maps, i_map, COUNT).to(maps[0].dtype) + o_corner
    best, i_best = tl.full([BLOCK], -float("inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for offset in range(SIZE * SIZE):
        p_value = p_corner + offset // SIZE * DILATION * stride_h + offset % SIZE * DILATION * stride_w
        value = tl.load(p_value, mask=inside, other=0.0).to(tl.float32)
        # Of equal values the first wins, and the first NaN.
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        i_best = tl.where(better, offset, i_best)
    o_result = tl.load(starts + i_block) + tl.arange(0, BLOCK)
    tl.store(result + o_result, (i_best if ARGMAX else best).to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total", "height", "width", "stride_n"])
def pool_backward_kernel(
    grad,  # [N, C, h, w], any strides and float dtype: gradient of the pooled map
    argmax,  # uint8 or int32 [N, h, w, C] if LAST, else [N, C, h, w], contiguous: from pool_kernel
    result,  # [N, H, W, C] if LAST, else [N, C, H, W], contiguous, dtype of grad, written: gradient of the map
    total,  # elements of result
    channels,
    height,  # of the pooled map
    width,
    stride_n,  # of grad
    stride_c,
    stride_h,
    stride_w,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,  # 2^31 elements or more
    BLOCK: tl.constexpr,
):
    """The gradient of every position of a map, summed in float32."""
    o_result = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = o_result < total
    index = o_result if WIDE else o_result.to(tl.int32)
    reach = (SIZE - 1) * DILATION
    n, c, y, x = _unravel(index, channels, height + reach, width + reach, LAST)
    n, c = n.to(tl.int64), c.to(tl.int64)
    acc = tl.zeros([BLOCK], tl.float32)
    for offset in range(SIZE * SIZE):
        row, column = (y - offset // SIZE * DILATION).to(tl.int64), (x - offset % SIZE * DILATION).to(tl.int64)
        valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        if LAST:
            o_argmax = ((n * height + row) * width + column) * channels + c
        else:
            o_argmax = ((n * channels + c) * height + row) * width + column
        selected = valid & (tl.load(argmax + o_argmax, mask=valid, other=0).to(tl.int32) == offset)
        o_grad = n * stride_n + c * stride_c + row * stride_h + column * stride_w
        acc += tl.load(grad + o_grad, mask=selected, other=0.0).to(tl.float32)
    tl.store(result + o_result, acc.to(result.dtype.element_ty), mask=inside)


def forward(maps: Sequence[Tensor], size: int, dilation: int, result: Tensor, last: bool, argmax: bool = False) -> None:
    """Write the pooled maps, or their argmax, one after the other; each channels-last if `last`, else contiguous."""
    sources = pointers(maps)
    geometry = tuple((*m.shape, *m.stride()) for m in maps)
    table, blocks, starts = _tables(geometry, (size - 1) * dilation, result.device)
    if len(starts):
        pool_kernel[(len(starts),)](
            sources, table, blocks, starts, result, maps[0].shape[1], COUNT=len(sources), SIZE=size,
            DILATION=dilation, LAST=last, ARGMAX=argmax, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def backward(grad: Tensor, argmax: Tensor, result: Tensor, size: int, dilation: int, last: bool) -> None:
    """Write the gradient of a map to `result`, which and argmax are channels-last if `last`, else contiguous."""
    if result.numel():
        pool_backward_kernel[(triton.cdiv(result.numel(), BLOCK),)](
            grad, argmax, result, result.numel(), result.shape[1], *grad.shape[2:], *grad.stride(),
            SIZE=size, DILATION=dilation, LAST=last, WIDE=result.numel() >= 2**31, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@DeviceTableCache
def _tables(geometry: tuple[tuple[int, ...], ...], reach: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`table`, `blocks`, `starts` of pool_kernel, for maps of these shapes and strides; a window has reach + 1 rows."""
    table: list[list[int]] = []
    block_rows: list[Tensor] = []
    start_rows: list[Tensor] = []
    start = 0
    for i, (n, c, h, w, *strides) in enumerate(geometry):
        height, width = h - reach, w - reach
        elements = n * c * height * width
        table.append([height, width, *strides])
        first = torch.arange(0, elements, BLOCK, device="cpu")
        block_rows.append(torch.stack([torch.full_like(first, i), first, torch.full_like(first, elements)], dim=1))
        start_rows.append(start + first)
        start += elements
    blocks, starts = torch.cat(block_rows), torch.cat(start_rows)
    if not len(blocks) or int(blocks[:, 2].max()) < 2**31 - BLOCK:
        blocks = blocks.int()
    return torch.tensor(table, device="cpu").to(device), blocks.to(device), starts.to(device)
