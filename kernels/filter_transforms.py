"""The kernels of minimal filtering (see minimal_filtering.py): its transforms, and a check of the weight.

A tile of t x t positions of the pooled maps gives m x m outputs. A transform multiplies the tile, a vector for each
channel, by one matrix of float16 for both axes, or by two that add up to one of 22 bits. The matrix and the values are
exact in float16, products are summed in float32, and the result is rounded once.
"""

import triton
import triton.language as tl


@triton.jit
def exponent_of_scale(low, high, TARGET: tl.constexpr):
    """The exponent of the power of two that brings the maps' values, from low to high, below 2^TARGET."""
    largest = tl.maximum(tl.abs(tl.load(low).to(tl.float32)), tl.abs(tl.load(high).to(tl.float32)))
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 126  # largest < 2^exponent
    return tl.minimum(TARGET - exponent, 127)


@triton.jit
def power_of_two(exponent):
    """2^exponent in float32, from 2^-126 to 2^127."""
    exponent = tl.minimum(tl.maximum(exponent, -126), 127)
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["count"])
def check_weight_kernel(
    weight,  # integers of the weight's size, any layout: its bits
    index,  # int64 [S]: offsets in the weight
    expected,  # [S], dtype of weight: the bits there when it was transformed
    flag,  # int32 [1], written: 1 if the weight has changed since, else 0
    count,  # S
    BLOCK: tl.constexpr,
):
    """Whether a sample of the weight is as it was; one program."""
    changed = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        o_sample = start + tl.arange(0, BLOCK)
        m_sample = o_sample < count
        value = tl.load(weight + tl.load(index + o_sample, mask=m_sample, other=0), mask=m_sample, other=0)
        changed |= (value != tl.load(expected + o_sample, mask=m_sample, other=0)).to(tl.int32)
    tl.store(flag, tl.max(changed, axis=0))


@triton.jit(do_not_specialize=["first_tile", "tiles"])
def filter_input_kernel(
    pooled,  # [R, C], contiguous, 16-byte aligned; float16, bfloat16 or float32
    first,  # int64 [all tiles]: the first position of a tile in pooled
    pitch,  # int32 [all tiles]: positions in a row of its map
    rows,  # int32 [all tiles]: its rows of outputs
    columns,  # int32 [all tiles]: its columns of outputs
    low,  # [1], dtype of pooled: its smallest value
    high,  # [1], dtype of pooled: its largest value
    matrix,  # float16 [PARTS, BLOCK_T, BLOCK_T], contiguous: the transform is their sum
    result,  # float16 [SIDE * SIDE, tiles, C], contiguous, written: the transformed tiles, scaled
    first_tile,  # the tile of the tables that is the result's first
    tiles,
    channels,  # C
    TARGET: tl.constexpr,  # scaled maps are below 2^TARGET
    SIDE: tl.constexpr,  # t, input positions along a side of a tile
    KERNEL: tl.constexpr,  # k
    DILATION: tl.constexpr,  # positions between taps, and between a tile's positions
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,  # at least SIDE * SIDE
    BLOCK_C: tl.constexpr,
):
    """BLOCK_C channels of a transformed tile; positions outside of its map are 0."""
    i_result = tl.program_id(0).to(tl.int64)
    i_tile = i_result + first_tile
    o_c, o_t = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    y, x = o_t // SIDE, o_t % SIDE
    m_map = (y < tl.load(rows + i_tile) + (KERNEL - 1)) & (x < tl.load(columns + i_tile) + (KERNEL - 1))
    o_map = tl.load(first + i_tile) + y * DILATION * tl.load(pitch + i_tile).to(tl.int64) + x * DILATION
    m_c = (o_c < channels)[None, :]
    p_map = pooled + o_map[:, None] * channels + o_c[None, :]
    b_map = tl.load(p_map, mask=(m_map & (o_t < SIDE * SIDE))[:, None] & m_c, other=0.0).to(tl.float32)
    b_map = (b_map * power_of_two(exponent_of_scale(low, high, TARGET))).to(tl.float16)
    p_matrix = matrix + o_t[:, None] * BLOCK_T + o_t[None, :]
    acc = tl.dot(tl.load(p_matrix), b_map)
    if PARTS == 2:
        acc = tl.dot(tl.load(p_matrix + BLOCK_T * BLOCK_T), b_map, acc)
    p_result = result + (o_t.to(tl.int64)[:, None] * tiles + i_result) * channels + o_c[None, :]
    tl.store(p_result, acc.to(tl.float16), mask=(o_t < SIDE * SIDE)[:, None] & m_c)


@triton.jit(do_not_specialize=["first_tile", "tiles"])
def filter_output_kernel(
    gemms,  # float16 [SIDE * SIDE, tiles, O], contiguous: transformed weight by transformed tiles
    first,  # int64 [all tiles]: the first output of a tile
    pitch,  # int32 [all tiles]: outputs in a row of its map
    rows,  # int32 [all tiles]: its rows of outputs
    columns,  # int32 [all tiles]: its columns of outputs
    low,  # [1], dtype of the maps: their smallest value
    high,  # [1], dtype of the maps: their largest value
    weight_exponent,  # int32 [1]: the weight was scaled by 2 to this power
    bias,  # [O], dtype of the output; unused unless BIAS
    matrix,  # float16 [PARTS, BLOCK_M, BLOCK_T], contiguous: the transform is their sum
    flag,  # int32 [1]: set to 1 if a value of gemms is not finite
    output,  # [M, O], contiguous, dtype of the maps, written
    first_tile,  # the tile of the tables that is the first in gemms
    tiles,
    outputs,  # O
    TARGET: tl.constexpr,  # of filter_input_kernel
    SIDE: tl.constexpr,  # t
    OUTPUT_SIDE: tl.constexpr,  # m
    DILATION: tl.constexpr,  # outputs between those of a tile
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # at least OUTPUT_SIDE * OUTPUT_SIDE
    BLOCK_T: tl.constexpr,  # at least SIDE * SIDE
    BLOCK_O: tl.constexpr,
):
    """BLOCK_O channels of a tile's outputs, scaled back, with bias and ReLU, in the rows where they belong."""
    i_gemm = tl.program_id(0).to(tl.int64)
    i_tile = i_gemm + first_tile
    o_o, o_t, o_m = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_M)
    m_o = (o_o < outputs)[None, :]
    p_gemm = gemms + (o_t.to(tl.int64)[:, None] * tiles + i_gemm) * outputs + o_o[None, :]
    b_gemm = tl.load(p_gemm, mask=(o_t < SIDE * SIDE)[:, None] & m_o, other=0.0)
    p_matrix = matrix + o_m[:, None] * BLOCK_T + o_t[None, :]
    acc = tl.dot(tl.load(p_matrix), b_gemm)
    if PARTS == 2:
        acc = tl.dot(tl.load(p_matrix + BLOCK_M * BLOCK_T), b_gemm, acc)
    # What is not finite spreads to all outputs, since the transform multiplies it by 0 at least.
    tl.store(flag, 1, mask=tl.min((tl.abs(acc) < float("inf")).to(tl.int32)) == 0)
    # In two steps, as the power may lie outside of float32's.
    exponent = -exponent_of_scale(low, high, TARGET) - tl.load(weight_exponent)
    acc = acc * power_of_two(exponent >> 1) * power_of_two(exponent - (exponent >> 1))
    if BIAS:
        acc += tl.load(bias + o_o, mask=o_o < outputs, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    y, x = o_m // OUTPUT_SIDE, o_m % OUTPUT_SIDE
    m_row = (o_m < OUTPUT_SIDE * OUTPUT_SIDE) & (y < tl.load(rows + i_tile)) & (x < tl.load(columns + i_tile))
    o_row = tl.load(first + i_tile) + y * DILATION * tl.load(pitch + i_tile).to(tl.int64) + x * DILATION
    p_output = output + o_row[:, None] * outputs + o_o[None, :]
    tl.store(p_output, acc.to(output.dtype.element_ty), mask=m_row[:, None] & m_o)
