"""Max pooling at stride 1 over every size x size window, of one map or a list of maps in one launch.

The values of a window lie `dilation` positions apart. The backward pass is a gather: a position sums the gradients of
the at most size x size windows whose maximum it is, in a fixed order, so that it is deterministic. The argmax of a
window is one byte.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.maps import MAX_MAPS, DeviceTableCache, address_of

BLOCK = 1024
WARPS = 4
ALIGNMENT = 16  # bytes: the GEMMs assume it of the addresses of maps


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
    pooled,  # results, one map's after the other: [N, h, w, C] if LAST, else [N, C, h, w]; dtype of maps
    argmax,  # uint8 or int32, the layout of pooled: the maximum's offset in its window, row * SIZE + column
    channels,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,  # distance of a window's values
    LAST: tl.constexpr,  # results are channels-last
    VALUES: tl.constexpr,  # write pooled
    ARGMAX: tl.constexpr,  # write argmax
    BLOCK: tl.constexpr,
):
    """The maxima of BLOCK windows of one map; compared in float32, which is exact for every dtype."""
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
    if VALUES:
        tl.store(pooled + o_result, best.to(pooled.dtype.element_ty), mask=inside)
    if ARGMAX:
        tl.store(argmax + o_result, i_best.to(argmax.dtype.element_ty), mask=inside)


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


def forward(maps: Tensor, size: int, dilation: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H-reach, W-reach], in the maps' memory format: see ops.offset_max_pool."""
    last = is_channels_last(maps)
    pooled = _empty(maps, (size - 1) * dilation, maps.dtype)
    _launch([maps], size, dilation, last, pooled, None)
    return pooled


def forward_list(maps: Sequence[Tensor], size: int) -> Tensor:
    """Maps of one C and different N, H, W -> [positions, C]: their pooled maps, one after the other, in one launch."""
    positions = [m.shape[0] * (m.shape[2] - size + 1) * (m.shape[3] - size + 1) for m in maps]
    pooled, start = maps[0].new_empty(sum(positions), maps[0].shape[1]), 0
    for i in range(0, len(maps), MAX_MAPS):
        stop = start + sum(positions[i : i + MAX_MAPS])
        _launch(maps[i : i + MAX_MAPS], size, 1, True, pooled[start:stop], None)
        start = stop
    return pooled


def pooled_buffer(maps: Sequence[Tensor], size: int) -> Tensor:
    """The pooled maps as one aligned buffer [positions, C]; not copied if the maps are that already."""
    last = maps[0].is_contiguous(memory_format=torch.channels_last)
    if size == 1 and len(maps) == 1 and last and maps[0].data_ptr() % ALIGNMENT == 0:
        return maps[0].permute(0, 2, 3, 1).flatten(0, 2)
    return forward_list(maps, size)


def backward(grad: Tensor, maps: Tensor, size: int, dilation: int) -> Tensor:
    """Gradient of the maps, in their memory format, from that of the pooled maps."""
    last = is_channels_last(maps)
    argmax = _empty(maps, (size - 1) * dilation, torch.uint8 if size <= 16 else torch.int32)
    _launch([maps], size, dilation, last, None, argmax)
    result = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device, memory_format=memory_format_of(maps))
    if result.numel():
        pool_backward_kernel[(triton.cdiv(result.numel(), BLOCK),)](
            grad, argmax, result, result.numel(), maps.shape[1], *grad.shape[2:], *grad.stride(),
            SIZE=size, DILATION=dilation, LAST=last, WIDE=result.numel() >= 2**31, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return result


def is_channels_last(maps: Tensor) -> bool:
    """Whether results for these maps are channels-last; otherwise they are contiguous, as in ops/layout.py."""
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


def memory_format_of(maps: Tensor) -> torch.memory_format:
    """The memory format of results for these maps."""
    return torch.channels_last if is_channels_last(maps) else torch.contiguous_format


def _empty(maps: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for the pooled maps, or one integer for each of their elements."""
    n, c, h, w = maps.shape
    shape = (n, c, h - reach, w - reach)
    return torch.empty(shape, dtype=dtype, device=maps.device, memory_format=memory_format_of(maps))


def _launch(
    maps: Sequence[Tensor], size: int, dilation: int, last: bool, pooled: Tensor | None, argmax: Tensor | None
) -> None:
    geometry = tuple((*m.shape, *m.stride()) for m in maps)
    table, blocks, starts = _tables(geometry, (size - 1) * dilation, maps[0].device)
    if len(starts):
        unused = argmax if pooled is None else pooled
        pool_kernel[(len(starts),)](
            tuple(maps), table, blocks, starts, unused if pooled is None else pooled,
            unused if argmax is None else argmax, maps[0].shape[1], COUNT=len(maps), SIZE=size,
            DILATION=dilation, LAST=last, VALUES=pooled is not None, ARGMAX=argmax is not None, BLOCK=BLOCK,
            num_warps=WARPS,
        )  # fmt: skip


@DeviceTableCache
def _tables(geometry: tuple[tuple[int, ...], ...], reach: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """table, blocks and starts of pool_kernel, for maps of these shapes and strides; a window has reach + 1 rows."""
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
