"""The gradients of the classifier's first layer: GEMMs over the positions of all maps, like the forward pass.

    of the pooled maps   rows: input positions,   sum over taps and outputs
    of the weight        rows: outputs,           columns: taps and channels, sum over output positions

Sums are in float32, in a fixed order. `backward` at the end launches the kernels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import launch, offset_pool
from overfeat.kernels.direct import channels_last, tile_of
from overfeat.kernels.maps import input_positions, output_positions
from overfeat.kernels.problem import Problem, num_positions, pooled_shapes, reach_of


@triton.jit(do_not_specialize=["rows"])
def relu_backward_kernel(
    grad,  # [M, O], any strides and float dtype: gradient of the output
    output,  # [M, O], contiguous, dtype of grad: the forward pass's; unused unless RELU
    masked,  # [M, O], contiguous, dtype of grad: gradient before the ReLU, written if RELU
    sums,  # float32 [cdiv(M, ROWS), O], contiguous, written: column sums over ROWS rows
    rows,  # M
    columns,  # O
    stride_m,  # of grad
    stride_n,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradient before the ReLU, and its column sums in float32, which add up to the gradient of the bias."""
    i_m = tl.program_id(0)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(i_m * ROWS, min(rows, (i_m + 1) * ROWS), BLOCK_M):
        o_m = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (o_m < rows)[:, None] & (o_n < columns)[None, :]
        b_grad = tl.load(grad + o_m[:, None] * stride_m + o_n.to(tl.int64)[None, :] * stride_n, mask=inside, other=0.0)
        if RELU:
            o_element = o_m[:, None] * columns + o_n[None, :]
            b_output = tl.load(output + o_element, mask=inside, other=0.0)
            b_grad = tl.where(b_output <= 0, 0.0, b_grad)
            tl.store(masked + o_element, b_grad, mask=inside)
        total += tl.sum(b_grad.to(tl.float32), axis=0)
    tl.store(sums + i_m.to(tl.int64) * columns + o_n, total, mask=o_n < columns)


@triton.jit(do_not_specialize=["rows", "num_programs"])
def skip_classifier_bwd_input_kernel(
    grad,  # [M, O], contiguous: gradient before the ReLU
    weight,  # [O, k_y, k_x, C], contiguous, dtype of grad
    result,  # [R, C], contiguous, dtype of grad, written: gradient of the pooled maps
    input_y,  # int32 [R]: row of an input position
    input_x,  # int32 [R]: its column
    output_height,  # int32 [R]: rows of its map's output
    output_width,  # int32 [R]: columns of its map's output
    first_output,  # int64 [R]: the first output position of its image
    rows,  # R
    columns,  # C
    outputs,  # O
    num_programs,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION: tl.constexpr,
    EVEN_K: tl.constexpr,  # O is a multiple of BLOCK_K
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Sum over taps: gradients of the outputs that use the position through that tap, times the tap's weights.

    Accumulated in float32.
    """
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    blocks_o = tl.cdiv(outputs, BLOCK_K)
    for i_tile in range(tl.program_id(0), tiles_m * tiles_n, num_programs):
        i_m, i_n = tile_of(i_tile, tiles_m, tiles_n, GROUP_M)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        row, m_n = tl.minimum(o_m, rows - 1), o_n < columns
        b_y, b_x = tl.load(input_y + row), tl.load(input_x + row)
        b_height, b_width = tl.load(output_height + row), tl.load(output_width + row)
        b_first = tl.load(first_output + row)
        o_k = tl.arange(0, BLOCK_K)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(KERNEL_Y * KERNEL_X * blocks_o):
            tap, o = step // blocks_o, step % blocks_o * BLOCK_K + o_k
            y, x = b_y - tap // KERNEL_X * DILATION, b_x - tap % KERNEL_X * DILATION
            m_row = (y >= 0) & (y < b_height) & (x >= 0) & (x < b_width)
            o_output = b_first + y.to(tl.int64) * b_width + x
            p_grad = grad + o_output[:, None] * outputs + o[None, :]
            p_weight = weight + (o.to(tl.int64)[:, None] * (KERNEL_Y * KERNEL_X) + tap) * columns + o_n[None, :]
            if EVEN_K:
                b_grad = tl.load(p_grad, mask=m_row[:, None], other=0.0)
                b_weight = tl.load(p_weight, mask=m_n[None, :], other=0.0)
            else:
                b_grad = tl.load(p_grad, mask=m_row[:, None] & (o < outputs)[None, :], other=0.0)
                b_weight = tl.load(p_weight, mask=(o < outputs)[:, None] & m_n[None, :], other=0.0)
            acc = tl.dot(b_grad, b_weight, acc, input_precision=PRECISION)
        p_result = result + row.to(tl.int64)[:, None] * columns + o_n[None, :]
        m_result = (o_m < rows)[:, None] & m_n[None, :]
        tl.store(p_result, acc.to(result.dtype.element_ty), mask=m_result)


@triton.jit(do_not_specialize=["positions", "num_programs"])
def skip_classifier_bwd_weight_kernel(
    grad,  # [M, O], contiguous: gradient before the ReLU
    pooled,  # [R, C], contiguous, dtype of grad: the pooled maps, one after the other
    base_offset,  # int64 [M]: the first position in `pooled` of an output's window
    row_pitch,  # int32 [M]: positions in a row of its map
    result,  # [O, k_y, k_x, C], contiguous, dtype of grad, written: gradient of the weight
    rows,  # O
    columns,  # C
    positions,  # M
    num_programs,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Sum over output positions: the gradient of the output times the tap's inputs, accumulated in float32."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for i_work in range(tl.program_id(0), tiles_m * tiles_n * KERNEL_Y * KERNEL_X, num_programs):
        tap = i_work // (tiles_m * tiles_n)
        i_m, i_n = tile_of(i_work % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        m_m, m_n = o_m < rows, o_n < columns
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, positions, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = o_k < positions
            o_position = tl.load(base_offset + o_k, mask=m_k, other=0)
            b_pitch = tl.load(row_pitch + o_k, mask=m_k, other=0).to(tl.int64)
            o_position += tap // KERNEL_X * DILATION * b_pitch + tap % KERNEL_X * DILATION
            p_grad = grad + o_k.to(tl.int64)[:, None] * rows + o_m[None, :]
            b_grad = tl.load(p_grad, mask=m_k[:, None] & m_m[None, :], other=0.0)
            p_pooled = pooled + o_position[:, None] * columns + o_n[None, :]
            b_pooled = tl.load(p_pooled, mask=m_k[:, None] & m_n[None, :], other=0.0)
            acc = tl.dot(tl.trans(b_grad), b_pooled, acc, input_precision=PRECISION)
        p_result = result + (o_m.to(tl.int64)[:, None] * (KERNEL_Y * KERNEL_X) + tap) * columns + o_n[None, :]
        tl.store(p_result, acc.to(result.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int, tap: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of ops.skip_classifier_flat_backward: of the maps, then of the weight and the bias."""
    grad, grad_bias = _relu_backward(grad, output)
    gradients = _grad_maps(grad, maps, weight, size, tap) if need_maps else []
    if need_weight:
        gradients += [_grad_weight(grad, maps, weight, size, tap), grad_bias]
    return gradients


def _grad_maps(grad: Tensor, maps: Sequence[Tensor], weight: Tensor, size: int, tap: int) -> list[Tensor]:
    (outputs, channels, k_y, k_x), device, shapes = weight.shape, grad.device, pooled_shapes(maps, size)
    grad_pooled = weight.new_empty(num_positions(shapes, (0, 0)), channels)
    if grad_pooled.numel():
        plan = launch.choose("input", Problem.of(maps, weight, size, tap))
        skip_classifier_bwd_input_kernel[(plan.num_programs,)](
            grad, channels_last(weight), grad_pooled, *input_positions(shapes, reach_of(weight, tap), device),
            len(grad_pooled), channels, outputs, plan.num_programs, KERNEL_Y=k_y, KERNEL_X=k_x, DILATION=tap,
            EVEN_K=plan.even_k, PRECISION=plan.precision, **plan.tile.options(),
        )  # fmt: skip
    return offset_pool.backward_list(grad_pooled, maps, size)


def _grad_weight(grad: Tensor, maps: Sequence[Tensor], weight: Tensor, size: int, tap: int) -> Tensor:
    (outputs, channels, k_y, k_x), device = weight.shape, grad.device
    grad_weight = torch.zeros(outputs, k_y, k_x, channels, dtype=weight.dtype, device=device)
    if len(grad) and grad_weight.numel():
        pooled = offset_pool.pooled_buffer(maps, size)
        plan = launch.choose("weight", Problem.of(maps, weight, size, tap))
        table = output_positions(pooled_shapes(maps, size), reach_of(weight, tap), True, device)
        skip_classifier_bwd_weight_kernel[(plan.num_programs,)](
            grad, pooled, table.base_offset, table.row_pitch, grad_weight, outputs, channels, len(grad),
            plan.num_programs, KERNEL_Y=k_y, KERNEL_X=k_x, DILATION=tap, PRECISION=plan.precision,
            **plan.tile.options(),
        )  # fmt: skip
    return grad_weight.permute(0, 3, 1, 2).contiguous(memory_format=offset_pool.memory_format_of(weight))


def _relu_backward(grad: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient before the ReLU (`output` None: there was none), contiguous, and that of the bias."""
    rows, columns = grad.shape
    chunks = triton.cdiv(rows, launch.SUM_ROWS)
    sums = torch.empty(chunks, columns, dtype=torch.float32, device=grad.device)
    masked = grad.contiguous() if output is None else torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    if grad.numel():
        relu_backward_kernel[(chunks, triton.cdiv(columns, launch.SUM_BLOCK_N))](
            grad, grad if output is None else output, masked, sums, rows, columns, *grad.stride(),
            RELU=output is not None, ROWS=launch.SUM_ROWS, BLOCK_M=launch.SUM_BLOCK_M, BLOCK_N=launch.SUM_BLOCK_N,
        )  # fmt: skip
    return masked, sums.sum(dim=0).to(grad.dtype)
