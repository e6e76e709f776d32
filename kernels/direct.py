"""The classifier's first layer as an implicit GEMM, for maps of different sizes in one launch.

One output position is one row, out[position] = W . window(position), where the window's k_y x k_x taps lie `tap`
positions apart in the pooled map. The positions of all maps, images and scales form one GEMM that reads the weights
once. A table holds where each row's window starts (maps.OutputPositions), so that nothing is shifted, gathered or
interleaved in memory. Sums are in float32. Pooling is a "separate" pass or "fused" into the loads of the GEMM.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import launch, offset_pool
from overfeat.kernels.launch import Plan
from overfeat.kernels.maps import OutputPositions, address_of, output_positions, pointers
from overfeat.kernels.problem import Problem


@triton.jit
def tile_of(i_tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile; GROUP_M rows of tiles run together, so that their operands stay in the L2 cache."""
    in_group = GROUP_M * tiles_n
    first = i_tile // in_group * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    return first + i_tile % in_group % rows, i_tile % in_group // rows


@triton.jit(do_not_specialize=["rows", "num_programs"])
def skip_classifier_fwd_kernel(
    maps,  # tuple of COUNT pointers: [positions, C] each, contiguous, 16-byte aligned; pooled maps if POOL is 1
    map_index,  # int32 [M]: the map of an output position
    base_offset,  # int64 [M]: the first position of its window in that map
    row_pitch,  # int32 [M]: positions in a row of that map
    weight,  # [O, k_y, k_x, C], contiguous, dtype of the maps
    bias,  # [O], dtype of the maps; unused unless BIAS
    guard,  # int32 [1]: nothing is computed or written if it is 0; unused unless GUARD
    output,  # [M, O], dtype of the maps; if SPLIT_K > 1 float32 [SPLIT_K, M, O] without bias and ReLU
    rows,  # M
    columns,  # O
    channels,  # C
    num_programs,
    COUNT: tl.constexpr,
    KERNEL_Y: tl.constexpr,  # k_y
    KERNEL_X: tl.constexpr,  # k_x
    DILATION: tl.constexpr,  # positions between taps
    POOL: tl.constexpr,  # size of the pooling if it is fused, else 1
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GUARD: tl.constexpr,
    SPLIT_K: tl.constexpr,  # programs that share one tile, each with a slice of the taps and channels
    EVEN_K: tl.constexpr,  # C is a multiple of BLOCK_K
    PRECISION: tl.constexpr,  # of float32 GEMMs: ieee or tf32
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """The output of every position: bias and ReLU in the epilogue, accumulated in float32."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    blocks_c = tl.cdiv(channels, BLOCK_K)
    steps = KERNEL_Y * KERNEL_X * blocks_c
    works = tiles_m * tiles_n * SPLIT_K
    if GUARD:
        works = tl.where(tl.load(guard) == 0, 0, works)
    for i_work in range(tl.program_id(0), works, num_programs):
        i_split, i_tile = i_work % SPLIT_K, i_work // SPLIT_K
        i_m, i_n = tile_of(i_tile, tiles_m, tiles_n, GROUP_M)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rows and columns past the end read the last one, and are not stored. Masks are used instead where neighbours
        # in a block are neighbours in memory, so that the compiler can vectorise the loads.
        row, column = tl.minimum(o_m, rows - 1), tl.minimum(o_n, columns - 1)
        b_base, b_pitch = tl.load(base_offset + row), tl.load(row_pitch + row).to(tl.int64)
        o_k = tl.arange(0, BLOCK_K)
        p_map = address_of(maps, tl.load(map_index + row), COUNT).to(maps[0].dtype)
        p_map = tl.multiple_of(p_map, 16)[:, None] + o_k[None, :]
        p_weight = weight + column.to(tl.int64)[None, :] * (KERNEL_Y * KERNEL_X * channels) + o_k[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(steps * i_split // SPLIT_K, steps * (i_split + 1) // SPLIT_K):
            tap, c = step // blocks_c, step % blocks_c * BLOCK_K
            m_k = c + o_k < channels
            o_position = b_base + tap // KERNEL_X * DILATION * b_pitch + tap % KERNEL_X * DILATION
            b_map = _window(p_map, o_position, b_pitch, c, channels, m_k, POOL, EVEN_K)
            if EVEN_K:
                b_weight = tl.load(p_weight + tap * channels + c)
            else:
                b_weight = tl.load(p_weight + tap * channels + c, mask=m_k[:, None], other=0.0)
            acc = tl.dot(b_map, b_weight, acc, input_precision=PRECISION)
        if SPLIT_K > 1:
            o_row = i_split * (tl.zeros_like(row).to(tl.int64) + rows) + row
            p_output = output + o_row[:, None] * columns + o_n[None, :]
        else:
            p_output = output + row.to(tl.int64)[:, None] * columns + o_n[None, :]
            if BIAS:
                acc += tl.load(bias + o_n, mask=o_n < columns, other=0.0).to(tl.float32)[None, :]
            if RELU:
                acc = tl.where(acc < 0, 0.0, acc)  # NaN stays
        m_output = (o_m < rows)[:, None] & (o_n < columns)[None, :]
        tl.store(p_output, acc.to(output.dtype.element_ty), mask=m_output)


@triton.jit
def _window(p_map, o_position, b_pitch, c, channels, m_k, POOL: tl.constexpr, EVEN_K: tl.constexpr):
    """[BLOCK_M, BLOCK_K]: one tap of every row's window, BLOCK_K channels from c; pooled if POOL > 1."""
    p_first = p_map + (o_position * channels + c)[:, None]
    if EVEN_K:
        best = tl.load(p_first)
    else:
        best = tl.load(p_first, mask=m_k[None, :], other=0.0)
    for offset in tl.static_range(1, POOL * POOL):
        p_tap = p_first + ((offset // POOL) * b_pitch * channels + (offset % POOL) * channels)[:, None]
        if EVEN_K:
            value = tl.load(p_tap)
        else:
            value = tl.load(p_tap, mask=m_k[None, :], other=0.0)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL).to(value.dtype)  # bfloat16 is promoted
    return best


@triton.jit(do_not_specialize=["total"])
def split_k_reduce_kernel(
    partial,  # float32 [SPLIT_K, M * O], contiguous
    bias,  # [O], dtype of the output; unused unless BIAS
    guard,  # int32 [1]: nothing is written if it is 0; unused unless GUARD
    output,  # [M * O], contiguous; any float dtype
    total,  # M * O
    columns,  # O
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GUARD: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of the splits in float32, bias and ReLU: the epilogue if several programs share a tile."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    if GUARD:
        inside &= tl.load(guard) != 0
    value = tl.zeros([BLOCK], tl.float32)
    for i_split in range(SPLIT_K):
        value += tl.load(partial + tl.full([], i_split, tl.int64) * total + index, mask=inside, other=0.0)
    if BIAS:
        value += tl.load(bias + index % columns, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(output + index, value.to(output.dtype.element_ty), mask=inside)


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
    count, outputs, device = problem.positions, problem.outputs, problem.device
    output = weight.new_empty(count, outputs) if output is None else output
    sources, table, pool = _sources(maps, problem, plan.pool)
    split = plan.split_k > 1
    target = torch.empty(plan.split_k, *output.shape, dtype=torch.float32, device=device) if split else output
    bias_or_any = output if bias is None else bias.contiguous()
    guard_or_any = output if guard is None else guard
    skip_classifier_fwd_kernel[(plan.num_programs,)](
        sources, *table, channels_last(weight), bias_or_any, guard_or_any, target, count, outputs, problem.channels,
        plan.num_programs, COUNT=len(sources), KERNEL_Y=problem.kernel[0], KERNEL_X=problem.kernel[1],
        DILATION=problem.tap, POOL=pool, BIAS=bias is not None, RELU=relu, GUARD=guard is not None,
        SPLIT_K=plan.split_k, EVEN_K=plan.even_k,
        PRECISION=plan.precision, **plan.tile.options(),
    )  # fmt: skip
    if split:
        split_k_reduce_kernel[(triton.cdiv(output.numel(), launch.ELEMENTWISE_BLOCK),)](
            target, bias_or_any, guard_or_any, output, output.numel(), outputs, BIAS=bias is not None, RELU=relu,
            GUARD=guard is not None, SPLIT_K=plan.split_k, BLOCK=launch.ELEMENTWISE_BLOCK,
        )  # fmt: skip
    return output


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
