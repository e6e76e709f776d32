"""Max pooling at stride 1 over every size x size window, of one map or a list of maps in one launch.

The values of a window lie `dilation` positions apart. The kernels here are for channels-last maps: one position has
its channels in a row, and 16 bytes are loaded at a time. strided_pool.py has those for other layouts. The backward
pass is a gather: a position sums the gradients of the at most size x size windows whose maximum it is, in a fixed
order, so that it is deterministic. The argmax of a window is one byte.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import strided_pool
from overfeat.kernels.maps import MAX_MAPS, address_of, output_positions, pointers, pool_inputs
from overfeat.kernels.problem import num_positions, pooled_shapes, shapes_of

BLOCK, BLOCK_C = 1024, 128  # elements of a program; the most channels
WARPS = 4
MAX_GROUP = 16  # channels: 16 bytes of argmax, 32 or 64 of maps
MAX_SIZE = 4  # every load of a window is unrolled
ALIGNMENT = 16  # bytes: the GEMMs assume it of the addresses of maps


@triton.jit(do_not_specialize=["rows"])
def pool_rows_kernel(
    maps,  # tuple of COUNT pointers: [positions, C] each, contiguous, 16-byte aligned; float16, bfloat16 or float32
    map_index,  # int32 [R]: the map of a pooled position
    base_offset,  # int64 [R]: the first position of its window in that map
    row_pitch,  # int32 [R]: positions in a row of that map
    result,  # [R, C], contiguous, written: maxima, dtype of maps; if ARGMAX uint8: their offsets, row * SIZE + column
    rows,  # R
    groups,  # C / GROUP
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,  # distance of a window's values
    ARGMAX: tl.constexpr,
    GROUP: tl.constexpr,  # divides C: so many channels are aligned as one
    EVEN_C: tl.constexpr,  # C is a multiple of BLOCK_C
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The maxima of BLOCK_M windows in BLOCK_C channels, or where they are."""
    channels = groups * GROUP
    blocks_c = tl.cdiv(channels, BLOCK_C)
    o_m = tl.program_id(0) // blocks_c * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    # Rows past the end read the last one; a mask of channels alone leaves the loads vectors.
    row, m_c = tl.minimum(o_m, rows - 1), None if EVEN_C else (o_c < channels)[None, :]
    p_map = tl.multiple_of(address_of(maps, tl.load(map_index + row), COUNT).to(maps[0].dtype), 16)
    p_first = (p_map + tl.load(base_offset + row) * channels)[:, None] + o_c[None, :]
    stride_y = (tl.load(row_pitch + row).to(tl.int64) * channels * DILATION)[:, None]
    best = tl.load(p_first, mask=m_c)
    i_best = tl.zeros([BLOCK_M, BLOCK_C], tl.int32)
    for offset in tl.static_range(1, SIZE * SIZE):
        value = tl.load(p_first + offset // SIZE * stride_y + offset % SIZE * DILATION * channels, mask=m_c)
        if ARGMAX:
            # Of equal values the first wins, and the first NaN. In float32, which is exact for every dtype.
            high, new = best.to(tl.float32), value.to(tl.float32)
            better = (high == high) & ~(new <= high)
            best, i_best = tl.where(better, value, best), tl.where(better, offset, i_best)
        else:
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL).to(value.dtype)  # bfloat16 is promoted
    p_result = result + row.to(tl.int64)[:, None] * channels + o_c[None, :]
    tl.store(
        p_result,
        (i_best if ARGMAX else best).to(result.dtype.element_ty),
        mask=(o_m < rows)[:, None] & (o_c < channels)[None, :],
    )


@triton.jit(do_not_specialize=["rows"])
def pool_rows_backward_kernel(
    grad,  # [R, C], contiguous, any float dtype: gradient of the pooled maps, one after the other
    argmax,  # uint8 [R, C], contiguous: from pool_rows_kernel
    results,  # tuple of COUNT pointers: [positions, C] each, contiguous, 16-byte aligned, written: gradient of the maps
    map_index,  # int32 [P]: the map of a position
    position,  # int64 [P]: its number in that map
    window,  # int64 [P]: the pooled position of the window that starts there
    row_pitch,  # int32 [P]: pooled positions in a row of that map
    offsets,  # int32 [P]: a bit for each offset in a window, set if some window has the position there
    rows,  # P
    groups,  # C / GROUP
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    GROUP: tl.constexpr,  # divides C: so many channels are aligned as one
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of BLOCK_M positions in BLOCK_C channels, summed in float32."""
    channels = groups * GROUP
    blocks_c = tl.cdiv(channels, BLOCK_C)
    o_m = tl.program_id(0) // blocks_c * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    row, m_c = tl.minimum(o_m, rows - 1), (o_c < channels)[None, :]
    o_first = (tl.load(window + row) * channels)[:, None] + o_c[None, :]
    stride_y = (tl.load(row_pitch + row).to(tl.int64) * channels * DILATION)[:, None]
    b_offsets = tl.load(offsets + row)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for offset in tl.static_range(SIZE * SIZE):
        m_window = ((b_offsets >> offset) & 1 != 0)[:, None] & m_c
        o_window = o_first - offset // SIZE * stride_y - offset % SIZE * DILATION * channels
        i_best = tl.load(argmax + o_window, mask=m_window).to(tl.int32)
        b_grad = tl.load(grad + o_window, mask=m_window, other=0.0).to(tl.float32)
        acc += tl.where(i_best == offset, b_grad, 0.0)
    p_map = tl.multiple_of(address_of(results, tl.load(map_index + row), COUNT).to(results[0].dtype), 16)
    p_result = (p_map + tl.load(position + row) * channels)[:, None] + o_c[None, :]
    tl.store(p_result, acc.to(results[0].dtype.element_ty), mask=(o_m < rows)[:, None] & m_c)


def forward(maps: Tensor, size: int, dilation: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H-reach, W-reach], in the maps' memory format: see ops.offset_max_pool."""
    pooled = _empty_like(maps, (size - 1) * dilation, maps.dtype)
    _pool([maps], size, dilation, pooled, is_channels_last(maps))
    return pooled


def forward_list(maps: Sequence[Tensor], size: int) -> Tensor:
    """Maps of one C and different N, H, W -> [positions, C]: their pooled maps, one after the other, in one launch."""
    positions = [n * h * w for n, h, w in pooled_shapes(maps, size)]
    pooled, start = maps[0].new_empty(sum(positions), maps[0].shape[1]), 0
    for i in range(0, len(maps), MAX_MAPS):
        stop = start + sum(positions[i : i + MAX_MAPS])
        _pool(maps[i : i + MAX_MAPS], size, 1, pooled[start:stop], True)
        start = stop
    return pooled


def pooled_buffer(maps: Sequence[Tensor], size: int) -> Tensor:
    """The pooled maps as one aligned buffer [positions, C]; not copied if the maps are that already."""
    if size == 1 and len(maps) == 1 and _has_rows(maps[0]):
        return maps[0].permute(0, 2, 3, 1).flatten(0, 2)
    return forward_list(maps, size)


def backward(grad: Tensor, maps: Tensor, size: int, dilation: int) -> Tensor:
    """Gradient of the maps, in their memory format, from that of the pooled maps."""
    if size <= MAX_SIZE and _has_rows(maps):
        return _backward_rows(grad.permute(0, 2, 3, 1).flatten(0, 2), [maps], size, dilation)[0]
    last = is_channels_last(maps)
    argmax = _empty_like(maps, (size - 1) * dilation, torch.uint8 if size <= 16 else torch.int32)
    strided_pool.forward([maps], size, dilation, argmax, last, True)
    result = _empty_like(maps)
    strided_pool.backward(grad, argmax, result, size, dilation, last)
    return result


def backward_list(grad: Tensor, maps: Sequence[Tensor], size: int) -> list[Tensor]:
    """Gradients of the maps, each in its memory format, from that of forward_list's result, [positions, C].

    Channels-last maps have two launches together, MAX_MAPS at a time; others have two launches each.
    """
    shapes, channels = pooled_shapes(maps, size), maps[0].shape[1]
    if len(maps) > MAX_MAPS:
        first = num_positions(shapes[:MAX_MAPS], (0, 0))
        parts = (grad[:first], maps[:MAX_MAPS]), (grad[first:], maps[MAX_MAPS:])
        return [result for part in parts for result in backward_list(*part, size)]
    if size <= MAX_SIZE and all(map(_has_rows, maps)):
        return _backward_rows(grad, maps, size, 1)
    chunks = grad.split([n * h * w for n, h, w in shapes])
    return [
        backward(chunk.reshape(*shape, channels).permute(0, 3, 1, 2), m, size, 1)
        for m, chunk, shape in zip(maps, chunks, shapes, strict=True)
    ]


def is_channels_last(maps: Tensor) -> bool:
    """Whether results for these maps are channels-last; otherwise they are contiguous, as in ops/layout.py."""
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


def memory_format_of(maps: Tensor) -> torch.memory_format:
    """The memory format of results for these maps."""
    return torch.channels_last if is_channels_last(maps) else torch.contiguous_format


def _has_rows(maps: Tensor) -> bool:
    """Whether the kernels of this file can read the maps, or write maps like these."""
    return maps.is_contiguous(memory_format=torch.channels_last) and maps.data_ptr() % ALIGNMENT == 0


def _empty_like(maps: Tensor, reach: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory for maps of that shape, less `reach` rows and columns, in their memory format."""
    n, c, h, w = maps.shape
    shape, dtype = (n, c, h - reach, w - reach), dtype or maps.dtype
    return torch.empty(shape, dtype=dtype, device=maps.device, memory_format=memory_format_of(maps))


def _pool(maps: Sequence[Tensor], size: int, dilation: int, result: Tensor, last: bool, argmax: bool = False) -> None:
    """Write the pooled maps, or their argmax, one after the other; each channels-last if `last`, else contiguous."""
    if size > MAX_SIZE or not all(map(_has_rows, maps)):
        strided_pool.forward(maps, size, dilation, result, last, argmax)
    elif result.numel():
        reach, channels = (size - 1) * dilation, maps[0].shape[1]
        table = output_positions(shapes_of(maps), (reach, reach), False, result.device)
        sources, rows = pointers(maps), result.numel() // channels
        programs, groups, options = _grid(rows, channels)
        pool_rows_kernel[(programs,)](
            sources, *table, result, rows, groups, COUNT=len(sources), SIZE=size, DILATION=dilation, ARGMAX=argmax,
            EVEN_C=channels % options["BLOCK_C"] == 0, **options,
        )  # fmt: skip


def _backward_rows(grad: Tensor, maps: Sequence[Tensor], size: int, dilation: int) -> list[Tensor]:
    """Gradients of at most MAX_MAPS channels-last maps from grad [R, C] of their pooled maps."""
    channels, results = maps[0].shape[1], [_empty_like(m) for m in maps]
    rows = num_positions(shapes_of(maps), (0, 0))
    if rows and channels:
        grad = grad.contiguous()
        argmax = torch.empty(grad.shape, dtype=torch.uint8, device=grad.device)
        _pool(maps, size, dilation, argmax, True, argmax=True)
        targets = pointers(results)
        programs, groups, options = _grid(rows, channels)
        pool_rows_backward_kernel[(programs,)](
            grad, argmax, targets, *pool_inputs(shapes_of(maps), size, dilation, grad.device), rows, groups,
            COUNT=len(targets), SIZE=size, DILATION=dilation, **options,
        )  # fmt: skip
    return results


@lru_cache(maxsize=1024)
def _grid(rows: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """Programs, groups of channels, and a program's constants: eight rows of BLOCK_C channels, or more of fewer."""
    block_c, group = min(BLOCK_C, triton.next_power_of_2(channels)), math.gcd(channels, MAX_GROUP)
    block_m = BLOCK // block_c
    constants = {"GROUP": group, "BLOCK_M": block_m, "BLOCK_C": block_c, "num_warps": WARPS}
    programs = triton.cdiv(rows, block_m) * triton.cdiv(channels, block_c)
    return programs, channels // group, constants
