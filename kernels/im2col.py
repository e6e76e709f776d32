"""The classifier's first layer as im2col and a GEMM of the library, and the gradient of the weight likewise.

The windows of the pooled maps are gathered into a buffer, a row each, which a plain GEMM reads. The buffer holds a
chunk at a time: of rows in the forward pass, of columns in the gradient, so that every sum is that of one GEMM. How
the library sums is its own choice, but the same at every call on a device (see torch.use_deterministic_algorithms).
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import library_gemm, offset_pool
from overfeat.kernels.direct import channels_last
from overfeat.kernels.maps import OutputPositions, output_positions
from overfeat.kernels.problem import Problem

ROW_MULTIPLE, COLUMN_MULTIPLE = 128, 64  # of chunks: full tiles of the library's kernels
BLOCK_M, BLOCK_N, WARPS = 16, 128, 4


@triton.jit(do_not_specialize=["rows", "first_tap"])
def gather_windows_kernel(
    pooled,  # [R, C], contiguous, 16-byte aligned: the pooled maps, one after the other
    base_offset,  # int64 [rows]: the first position in `pooled` of an output's window
    row_pitch,  # int32 [rows]: positions in a row of its map
    windows,  # [rows, taps, width], contiguous, dtype of pooled, written
    rows,
    channels,  # C
    first_tap,
    first_channel,
    width,  # channels that are gathered, of each tap
    taps,  # that are gathered, in the order [k_y, k_x]
    KERNEL_X: tl.constexpr,  # k_x
    DILATION: tl.constexpr,  # positions between taps
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N channels of one tap of BLOCK_M windows, copied."""
    blocks_c = tl.cdiv(width, BLOCK_N)
    i_tap, o_c = tl.program_id(1) // blocks_c, tl.program_id(1) % blocks_c * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = first_tap + i_tap
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    b_pitch = tl.load(row_pitch + o_m, mask=m_m, other=0).to(tl.int64)
    o_position = tl.load(base_offset + o_m, mask=m_m, other=0)
    o_position += tap // KERNEL_X * DILATION * b_pitch + tap % KERNEL_X * DILATION
    inside = m_m[:, None] & (o_c < width)[None, :]
    b_window = tl.load(pooled + (o_position * channels + first_channel)[:, None] + o_c[None, :], mask=inside)
    o_window = (o_m.to(tl.int64) * taps + i_tap) * width
    tl.store(windows + o_window[:, None] + o_c[None, :], b_window, mask=inside)


def forward(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, problem: Problem, relu: bool) -> Tensor:
    """[positions, O] in a result that has elements: see skip_classifier.forward."""
    pooled, table = _pooled(maps, problem)
    matrix, output = channels_last(weight).flatten(1).t(), weight.new_empty(problem.positions, problem.outputs)
    columns = len(matrix)
    limit = library_gemm.MAX_BUFFER // (columns * weight.element_size())
    rows = library_gemm.chunks(problem.positions, limit, ROW_MULTIPLE)
    buffer = weight.new_empty(rows[0][1] * columns)
    with library_gemm.float32_sums():
        for start, stop in rows:
            windows = buffer[: (stop - start) * columns].view(stop - start, columns)
            chunk = OutputPositions._make(column[start:stop] for column in table)
            _gather_windows(windows, pooled, chunk, problem, (0, problem.taps), (0, problem.channels))
            if bias is None:
                torch.mm(windows, matrix, out=output[start:stop])
            else:
                torch.addmm(bias, windows, matrix, out=output[start:stop])
    return output.relu_() if relu else output


def weight_gradient(grad: Tensor, maps: Sequence[Tensor], problem: Problem) -> Tensor:
    """[O, k_y, k_x, C] from grad [positions, O], the gradient before the ReLU, contiguous; both have elements."""
    pooled, table = _pooled(maps, problem)
    result = grad.new_empty(problem.outputs, *problem.kernel, problem.channels)
    columns = list(_column_chunks(problem))
    buffer = grad.new_empty(max((t[1] - t[0]) * (c[1] - c[0]) for t, c in columns) * len(grad))
    with library_gemm.float32_sums():
        for taps, channels in columns:
            width = (taps[1] - taps[0]) * (channels[1] - channels[0])
            windows = buffer[: len(grad) * width].view(len(grad), width)
            _gather_windows(windows, pooled, table, problem, taps, channels)
            first = taps[0] * problem.channels + channels[0]
            torch.mm(grad.t(), windows, out=result.flatten(1)[:, first : first + width])
    return result


def _pooled(maps: Sequence[Tensor], problem: Problem) -> tuple[Tensor, OutputPositions]:
    """The pooled maps as one buffer, and where the windows start in it."""
    table = output_positions(problem.pooled, problem.reach, True, problem.device)
    return offset_pool.pooled_buffer(maps, problem.size), table


def _column_chunks(problem: Problem) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Taps and channels of each chunk of columns: several taps, or channels of one tap, as start and stop."""
    limit = library_gemm.MAX_BUFFER // (problem.positions * problem.dtype.itemsize)
    for taps in library_gemm.chunks(problem.taps, limit // problem.channels, 1):
        of_tap = library_gemm.chunks(problem.channels, limit, COLUMN_MULTIPLE)
        for channels in [(0, problem.channels)] if taps[1] - taps[0] > 1 else of_tap:
            yield taps, channels


def _gather_windows(
    windows: Tensor, pooled: Tensor, table: OutputPositions, problem: Problem, taps: tuple[int, int],
    channels: tuple[int, int],
) -> None:  # fmt: skip
    """Write these taps and channels of the windows in a table into `windows` [rows, taps * channels]."""
    rows, count, width = len(windows), taps[1] - taps[0], channels[1] - channels[0]
    gather_windows_kernel[(triton.cdiv(rows, BLOCK_M), count * triton.cdiv(width, BLOCK_N))](
        pooled, table.base_offset, table.row_pitch, windows, rows, problem.channels, taps[0], channels[0], width, count,
        KERNEL_X=problem.kernel[1], DILATION=problem.tap, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=WARPS,
    )  # fmt: skip
