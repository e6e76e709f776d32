"""The gradient of the pooled maps as a GEMM of the library and col2im.

The GEMM gives, for every output position and every tap of its window, the gradient of that tap's input. An input
position then gathers the at most k_y * k_x gradients that are its own, in a fixed order and in float32: no atomics. The
GEMM runs in chunks of output positions. A position whose outputs are in several chunks carries its sum over.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import library_gemm
from overfeat.kernels.direct import channels_last
from overfeat.kernels.maps import input_positions
from overfeat.kernels.problem import Problem

ROW_MULTIPLE = 128  # of chunks: full tiles of the library's kernels
BLOCK_M, BLOCK_N, WARPS = 8, 128, 4


@triton.jit(do_not_specialize=["first", "last", "start", "stop"])
def gather_gradient_kernel(
    products,  # [stop - start, k_y, k_x, C], contiguous, float dtype: gradients of the taps' inputs
    carry,  # float32 [R, C], contiguous, read and written: sums of earlier chunks; unused unless CARRY
    result,  # [R, C], contiguous, any float dtype, written: gradient of the pooled maps
    input_y,  # int32 [R]: row of an input position
    input_x,  # int32 [R]: its column
    output_height,  # int32 [R]: rows of its map's output
    output_width,  # int32 [R]: columns of its map's output
    first_output,  # int64 [R]: the first output position of its image
    first,  # input positions from first to last are those that use outputs from start to stop
    last,
    start,
    stop,
    channels,  # C
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION: tl.constexpr,
    CARRY: tl.constexpr,  # the chunk is one of several
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum over taps of BLOCK_M input positions, of the outputs in this chunk."""
    row = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row, m_c = row < last, o_c < channels
    b_y, b_x = tl.load(input_y + row, mask=m_row, other=0), tl.load(input_x + row, mask=m_row, other=0)
    b_height = tl.load(output_height + row, mask=m_row, other=0)
    b_width = tl.load(output_width + row, mask=m_row, other=0)
    b_first = tl.load(first_output + row, mask=m_row, other=0)
    o_result = row.to(tl.int64)[:, None] * channels + o_c[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if CARRY:  # the rows of outputs that the position may use begin in an earlier chunk
        begins = b_first + tl.maximum(b_y - (KERNEL_Y - 1) * DILATION, 0).to(tl.int64) * b_width
        acc += tl.load(carry + o_result, mask=(m_row & (begins < start))[:, None] & m_c[None, :], other=0.0)
    # Taps that no position of the block has are left out.
    first_y = (tl.maximum(b_y - b_height + 1, 0) + DILATION - 1) // DILATION
    last_y = tl.minimum(b_y // DILATION, KERNEL_Y - 1)
    for i_y in range(tl.min(first_y, axis=0), tl.max(last_y, axis=0) + 1):
        y = b_y - i_y * DILATION
        m_y = m_row & (y >= 0) & (y < b_height)
        o_row = b_first + y.to(tl.int64) * b_width
        for i_x in tl.static_range(KERNEL_X):
            x = b_x - i_x * DILATION
            o_output = o_row + x
            used = m_y & (x >= 0) & (x < b_width)
            if CARRY:
                used = used & (o_output >= start) & (o_output < stop)
            o_product = ((o_output - start) * (KERNEL_Y * KERNEL_X) + i_y * KERNEL_X + i_x) * channels
            p_product = products + o_product[:, None] + o_c[None, :]
            acc += tl.load(p_product, mask=used[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    if CARRY:
        complete = b_first + (tl.minimum(b_y, b_height - 1) + 1).to(tl.int64) * b_width <= stop
        tl.store(carry + o_result, acc, mask=(m_row & ~complete)[:, None] & m_c[None, :])
        m_row = m_row & complete
    tl.store(result + o_result, acc.to(result.dtype.element_ty), mask=m_row[:, None] & m_c[None, :])


def pooled_gradient(grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """[R, C] from grad [positions, O], the gradient before the ReLU, contiguous; the result has elements."""
    matrix, result = channels_last(weight).flatten(1), grad.new_empty(problem.pooled_positions, problem.channels)
    columns = matrix.shape[1]
    rows = library_gemm.chunks(
        problem.positions, library_gemm.MAX_BUFFER // (columns * grad.element_size()), ROW_MULTIPLE
    )
    buffer, carries = grad.new_empty(rows[0][1] * columns), len(rows) > 1
    carry = torch.empty_like(result, dtype=torch.float32) if carries else result
    table = input_positions(problem.pooled, problem.reach, problem.device)
    with library_gemm.float32_sums():
        for start, stop in rows:
            products = torch.mm(
                grad[start:stop], matrix, out=buffer[: (stop - start) * columns].view(stop - start, columns)
            )
            first, last = input_range(problem, start, stop)
            gather_gradient_kernel[
                (triton.cdiv(last - first, BLOCK_M), triton.cdiv(problem.channels, BLOCK_N))
            ](
                products, carry, result, *table, first, last, start, stop, problem.channels,
                KERNEL_Y=problem.kernel[0], KERNEL_X=problem.kernel[1], DILATION=problem.tap, CARRY=carries,
                BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=WARPS,
            )  # fmt: skip
    return result


def input_range(problem: Problem, start: int, stop: int) -> tuple[int, int]:
    """The input positions, from first to last, in whose rows output positions from start to stop have taps."""
    first, _ = _input_row(problem, start)
    last, width = _input_row(problem, stop - 1)
    return first, last + (problem.reach[0] + 1) * width


def _input_row(problem: Problem, output: int) -> tuple[int, int]:
    """The input position at which the row of an output position starts, and the positions in a row."""
    position = 0
    for n, height, width in problem.pooled:
        rows, columns = height - problem.reach[0], width - problem.reach[1]
        if output < n * rows * columns:
            image, rest = divmod(output, rows * columns)
            return position + (image * height + rest // columns) * width, width
        output -= n * rows * columns
        position += n * height * width
    raise AssertionError("an output position of none of the maps")
