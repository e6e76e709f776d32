"""The classifier's first layer as an implicit GEMM, for maps of different sizes in one launch.

One output position is one row, out[position] = W . window(position), where the window's k_y x k_x taps lie `tap`
positions apart in the pooled map. The positions of all maps, images and scales form one GEMM that reads the weights
once. A table holds where each row's window starts (maps.OutputPositions), so that nothing is shifted, gathered or
interleaved in memory. Sums are in float32. Pooling is a "separate" pass or "fused" into the loads of the GEMM.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from overfeat.kernels import launch, offset_pool
from overfeat.kernels.maps import OutputPositions, address_of, output_positions, pointers
from overfeat.kernels.plan import Plan
from overfeat.kernels.problem import Problem


@triton.jit
def tile_of(i_tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile; GROUP_M rows of tiles run together, so that their operands stay in the L2 cache."""
    in_group = GROUP_M * tiles_n
    first = i_tile // in_group * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    return first + i_tile % in_group % rows, i_tile % in_group // rows


@triton.jit
def _work_of(i_work, whole, steps, split_k, SPLIT: tl.constexpr):
    """The tile of a work item, and its first step and the one after its last.

    The first `whole` items are a tile each; the tiles after those are split_k items each, with a part of the steps.
    """
    if not SPLIT:
        return i_work, 0, steps
    i_part = tl.maximum(i_work - whole, 0)
    is_whole, i_split = i_work < whole, i_part % split_k
    i_tile = tl.where(is_whole, i_work, whole + i_part // split_k)
    first = tl.where(is_whole, 0, steps * i_split // split_k)
    return i_tile, first, tl.where(is_whole, steps, steps * (i_split + 1) // split_k)


@triton.jit(do_not_specialize=["rows", "whole", "split_k", "num_programs"])
def skip_classifier_fwd_kernel(
    maps,  # tuple of COUNT pointers: [positions, C] each, contiguous, 16-byte aligned; pooled maps if POOL is 1
    map_index,  # int32 [M]: the map of an output position
    base_offset,  # int64 [M]: the first position of its window in that map
    row_pitch,  # int32 [M]: positions in a row of that map
    weight,  # [O, k_y * k_x * C], contiguous, dtype of the maps; its descriptor if DESCRIPTOR
    bias,  # [O], dtype of the maps; unused unless BIAS
    guard,  # int32 [1]: nothing is computed or written if it is 0; unused unless GUARD
    output,  # [M, O], contiguous, dtype of the maps: the whole tiles are written
    partial,  # float32 [tiles - whole, split_k, BLOCK_M, BLOCK_N], written: partial sums; unused unless SPLIT
    rows,  # M
    columns,  # O
    groups,  # C / GROUP
    whole,  # tiles that one program computes
    split_k,  # programs that share each of the other tiles
    num_programs,
    GROUP: tl.constexpr,  # divides C, so that the compiler knows how many channels it may load at a time
    COUNT: tl.constexpr,
    KERNEL_Y: tl.constexpr,  # k_y
    KERNEL_X: tl.constexpr,  # k_x
    DILATION: tl.constexpr,  # positions between taps
    POOL: tl.constexpr,  # size of the pooling if it is fused, else 1
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GUARD: tl.constexpr,
    DESCRIPTOR: tl.constexpr,  # needs EVEN_K
    SPLIT: tl.constexpr,  # there are tiles after `whole`
    EVEN_K: tl.constexpr,  # C is a multiple of BLOCK_K
    WIDE: tl.constexpr,  # a window reaches over 2^31 elements or more of a map
    PRECISION: tl.constexpr,  # of float32 GEMMs: ieee or tf32
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """The output of every position: bias and ReLU in the epilogue, accumulated in float32."""
    channels = groups * GROUP
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    blocks_c = tl.cdiv(channels, BLOCK_K)
    steps = KERNEL_Y * KERNEL_X * blocks_c
    works = whole + (tiles_m * tiles_n - whole) * split_k
    if GUARD:
        works = tl.where(tl.load(guard) == 0, 0, works)
    for i_work in range(tl.program_id(0), works, num_programs):
        i_tile, first, last = _work_of(i_work, whole, steps, split_k, SPLIT)
        i_m, i_n = tile_of(i_tile, tiles_m, tiles_n, GROUP_M)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rows and columns past the end read the last one, and are not stored. Masks are used instead where neighbours
        # in a block are neighbours in memory, so that the compiler can vectorise the loads.
        row, column = tl.minimum(o_m, rows - 1), tl.minimum(o_n, columns - 1)
        o_k = tl.arange(0, BLOCK_K)
        # The next step reads channel c of tap column x, in the tap row o_row elements after the window's first; the
        # tap's weights begin at o_tap. These are counted up: divisions by run-time values would cost more than the
        # rest of the loop.
        c, i_tap = first % blocks_c * BLOCK_K, first // blocks_c
        x, y, o_tap = i_tap % KERNEL_X, i_tap // KERNEL_X, i_tap * channels
        b_line = tl.load(row_pitch + row).to(tl.int64) * channels  # elements in a row of the map
        b_step = (DILATION * b_line).to(tl.int64 if WIDE else tl.int32)
        o_row = y * b_step
        p_map = address_of(maps, tl.load(map_index + row), COUNT).to(maps[0].dtype)
        p_map = tl.multiple_of(p_map, 16) + tl.load(base_offset + row) * channels
        if not DESCRIPTOR:
            p_weight = weight + column.to(tl.int64)[None, :] * (KERNEL_Y * KERNEL_X * channels) + o_k[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(first, last):
            m_k = c + o_k < channels
            b_map = _window(p_map, o_row + (x * (DILATION * channels) + c), b_line, channels, o_k, m_k, POOL, EVEN_K)
            if DESCRIPTOR:
                b_weight = weight.load([i_n * BLOCK_N, step * BLOCK_K]).T
            elif EVEN_K:
                b_weight = tl.load(p_weight + step * BLOCK_K)
            else:
                b_weight = tl.load(p_weight + (o_tap + c), mask=m_k[:, None], other=0.0)
            acc = tl.dot(b_map, b_weight, acc, input_precision=PRECISION)
            c += BLOCK_K
            x += (c >= channels).to(tl.int32)
            o_tap += tl.where(c >= channels, channels, 0)
            c = tl.where(c >= channels, 0, c)
            o_row += tl.where(x == KERNEL_X, b_step, 0)
            x = tl.where(x == KERNEL_X, 0, x)
        m_row = (o_m < rows)[:, None]
        if SPLIT and i_work >= whole:
            o_part = (i_work - whole).to(tl.int64) * (BLOCK_M * BLOCK_N)
            p_part = partial + o_part + tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            tl.store(p_part, acc, mask=m_row)
        else:
            _store(acc, output, bias, row, o_n, m_row, columns, BIAS, RELU)


@triton.jit
def _window(p_map, o_tap, b_line, channels, o_k, m_k, POOL: tl.constexpr, EVEN_K: tl.constexpr):
    """[BLOCK_M, BLOCK_K]: channels of one tap of every row's window, pooled if POOL > 1.

    p_map: where the windows begin; o_tap: of the tap's first channel; b_line: elements in a row of the map.
    """
    best = _channels(p_map, o_tap, o_k, m_k, EVEN_K)
    for offset in tl.static_range(1, POOL * POOL):
        p_pool = p_map + ((offset // POOL) * b_line + (offset % POOL) * channels)
        value = _channels(p_pool, o_tap, o_k, m_k, EVEN_K)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL).to(value.dtype)  # bfloat16 is promoted
    return best


@triton.jit
def _channels(p_map, o_tap, o_k, m_k, EVEN_K: tl.constexpr):
    """[BLOCK_M, BLOCK_K]: zero where m_k is false."""
    p_channel = p_map[:, None] + (o_tap[:, None] + o_k[None, :])
    if EVEN_K:
        return tl.load(p_channel)
    else:
        return tl.load(p_channel, mask=m_k[None, :], other=0.0)


@triton.jit
def _store(acc, output, bias, row, o_n, m_row, columns, BIAS: tl.constexpr, RELU: tl.constexpr):
    """Writes sums [rows, columns] with bias and ReLU into rows `row` of the output [M, O], where m_row is true."""
    m_n = o_n < columns
    if BIAS:
        acc += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # NaN stays
    p_output = output + row.to(tl.int64)[:, None] * columns + o_n[None, :]
    tl.store(p_output, acc.to(output.dtype.element_ty), mask=m_row & m_n[None, :])


@triton.jit(do_not_specialize=["rows", "whole", "split_k"])
def split_k_reduce_kernel(
    partial,  # float32 [tiles - whole, split_k, BLOCK_M, BLOCK_N], contiguous
    bias,  # [O], dtype of the output; unused unless BIAS
    guard,  # int32 [1]: nothing is written if it is 0; unused unless GUARD
    output,  # [M, O], contiguous, any float dtype: the tiles after `whole` are written
    rows,  # M
    columns,  # O
    whole,
    split_k,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GUARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    REDUCE_M: tl.constexpr,  # rows of a program
):
    """The epilogue of split tiles: add the partial sums in float32 and in order, then bias and ReLU."""
    i_part, i_block = tl.program_id(0), tl.program_id(1)
    i_m, i_n = tile_of(whole + i_part, tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), GROUP_M)
    o_row, o_column = i_block * REDUCE_M + tl.arange(0, REDUCE_M), tl.arange(0, BLOCK_N)
    row = i_m * BLOCK_M + o_row
    m_row = (row < rows)[:, None]
    if GUARD:
        m_row &= tl.load(guard) != 0
    p_part = partial + i_part.to(tl.int64) * split_k * (BLOCK_M * BLOCK_N)
    p_part += o_row[:, None] * BLOCK_N + o_column[None, :]
    acc = tl.zeros([REDUCE_M, BLOCK_N], tl.float32)
    for _ in range(split_k):
        acc += tl.load(p_part, mask=m_row, other=0.0)
        p_part += BLOCK_M * BLOCK_N
    _store(acc, output, bias, row, i_n * BLOCK_N + o_column, m_row, columns, BIAS, RELU)


def forward(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, problem: Problem, plan: Plan, relu: bool, *,
    guard: Tensor | None = None, output: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[positions, O] in a result that has elements; at most MAX_MAPS maps: see skip_classifier.forward.

    Args:
        guard: int32 [1] on the maps' device: where it is 0, the GEMM is not computed and the output not written. The
            host does not wait for it.
        output: [positions, O], contiguous, dtype of the maps: written and returned in place of a new one.
    """
    tile, rows, columns = plan.tile, problem.positions, problem.outputs
    output = weight.new_empty(rows, columns) if output is None else output
    sources, table, pool = _sources(maps, problem, plan.pool)
    whole, split = whole_and_split(problem, plan)
    partial = output
    if split:
        partial = torch.empty(split, plan.split_k, tile.m, tile.n, dtype=torch.float32, device=output.device)
    bias_or_any = output if bias is None else bias.contiguous()
    guard_or_any = output if guard is None else guard
    epilogue = {"BIAS": bias is not None, "RELU": relu, "GUARD": guard is not None}
    group = math.gcd(problem.channels, 16)
    rows_of_weight, descriptor = _weight(weight, plan)
    skip_classifier_fwd_kernel[(plan.num_programs,)](
        sources, *table, rows_of_weight, bias_or_any, guard_or_any, output, partial, rows, columns,
        problem.channels // group, whole, plan.split_k, plan.num_programs, GROUP=group, COUNT=len(sources),
        KERNEL_Y=problem.kernel[0], KERNEL_X=problem.kernel[1], DILATION=problem.tap, POOL=pool,
        DESCRIPTOR=descriptor, SPLIT=split > 0, EVEN_K=plan.even_k, WIDE=_is_wide(problem),
        PRECISION=plan.precision, **epilogue, **tile.options(),
    )  # fmt: skip
    if split:
        reduce_m = min(tile.m, max(1, launch.REDUCE_BLOCK // tile.n))
        split_k_reduce_kernel[(split, tile.m // reduce_m)](
            partial, bias_or_any, guard_or_any, output, rows, columns, whole, plan.split_k, BLOCK_M=tile.m,
            BLOCK_N=tile.n, GROUP_M=tile.group_m, REDUCE_M=reduce_m, **epilogue,
        )  # fmt: skip
    return output


def whole_and_split(problem: Problem, plan: Plan) -> tuple[int, int]:
    """The tiles that a program computes alone, and those after them that plan.split_k programs share.

    Split are the tiles of the last wave, unless they fill it: each of the other waves keeps every program busy.
    """
    tiles = -(-problem.positions // plan.tile.m) * -(-problem.outputs // plan.tile.n)
    split = tiles % plan.num_programs if plan.split_k > 1 else 0
    return tiles - split, split


def _is_wide(problem: Problem) -> bool:
    """Whether an offset in a window may need 64 bits."""
    return (problem.reach[0] + 1) * max(width for *_, width in problem.shapes) * problem.channels >= 2**31


def _weight(weight: Tensor, plan: Plan) -> tuple[Any, bool]:
    """The weight as [O, k_y * k_x * C], and whether it is a descriptor: those need aligned addresses and no masks."""
    flat = channels_last(weight).flatten(1)
    if plan.variant != "descriptor" or not plan.even_k or flat.data_ptr() % offset_pool.ALIGNMENT:
        return flat, False
    return TensorDescriptor.from_tensor(flat, [plan.tile.n, plan.tile.k]), True


def _sources(maps: Sequence[Tensor], problem: Problem, pool: str) -> tuple[tuple[Tensor, ...], OutputPositions, int]:
    """The buffers that the forward kernel reads, the table of its rows, and the size that it pools by."""
    size, reach, device = problem.size, problem.reach, problem.device
    if pool == "separate" or size == 1:
        pooled = offset_pool.pooled_buffer(maps, size)
        return (pooled,), output_positions(problem.pooled, reach, True, device), 1
    sources = pointers([_aligned(m.contiguous(memory_format=torch.channels_last)) for m in maps])
    unpooled_reach = reach[0] + size - 1, reach[1] + size - 1
    return sources, output_positions(problem.shapes, unpooled_reach, False, device), size


def _aligned(maps: Tensor) -> Tensor:
    """The maps at an address of which 16 bytes can be loaded at a time."""
    return maps if maps.data_ptr() % offset_pool.ALIGNMENT == 0 else maps.clone()


def channels_last(weight: Tensor) -> Tensor:
    """The weight in the kernels' layout, [O, k_y, k_x, C]; a copy unless it is channels-last."""
    return weight.permute(0, 2, 3, 1).contiguous()
