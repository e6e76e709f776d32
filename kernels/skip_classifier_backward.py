"""The gradients of the classifier's first layer: GEMMs over the positions of all maps, like the forward pass.

    of the pooled maps   rows: output positions,  columns: taps and channels, sum over outputs; then col2im.py
    of the weight        rows: outputs,           columns: taps and channels, sum over output positions

The second is our implicit GEMM or im2col.py's, as `launch.choose` selects. Sums are in float32, in a fixed order.
`backward` at the end launches the kernels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import cuda_capability_geq, is_cuda

from overfeat.kernels import col2im, im2col, launch, offset_pool
from overfeat.kernels.direct import tile_of
from overfeat.kernels.maps import DeviceTableCache, Shape, output_positions
from overfeat.kernels.plan import Plan
from overfeat.kernels.problem import Problem

GRAD_MULTIPLE = 16  # elements: rows of the transposed gradient are loaded 16 bytes at a time


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


@triton.jit(do_not_specialize=["positions", "num_programs"])
def skip_classifier_bwd_weight_kernel(
    grad,  # [O, pitch], contiguous, 16-byte aligned: gradient before the ReLU, transposed; 0 from column M on
    pooled,  # [R, C], contiguous, 16-byte aligned, dtype of grad: the pooled maps, one after the other
    row_offset,  # int64 [k_y, M], contiguous: the first position in `pooled` of each row of taps of an output's window
    result,  # [O, k_y, k_x, C], contiguous, dtype of grad, written: gradient of the weight
    rows,  # O
    columns,  # C
    positions,  # M
    pitch,  # of grad, M or more
    num_programs,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    STAGES: tl.constexpr,  # of a GEMM whose operands' addresses are not loaded
):
    """Sum over output positions: the gradient of the output times the tap's inputs, accumulated in float32."""
    # In TF32, wgmma wants neighbours along the sum in shared memory; in `pooled` neighbours are channels. Copied there
    # directly they would be loaded 4 bytes at a time, through registers it is 16.
    TRANSPOSED: tl.constexpr = PRECISION == "tf32" and BLOCK_M >= 64 and cuda_capability_geq(9, 0)
    # On NVIDIA's chips every other stage loads the table of positions, through which the next one loads an operand.
    INDIRECT_STAGES: tl.constexpr = 2 * STAGES - 1 if is_cuda() else STAGES
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for i_work in range(tl.program_id(0), tiles_m * tiles_n * KERNEL_Y * KERNEL_X, num_programs):
        tap = i_work // (tiles_m * tiles_n)
        p_offset, o_x = row_offset + (tap // KERNEL_X).to(tl.int64) * positions, tap % KERNEL_X * DILATION
        i_m, i_n = tile_of(i_work % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        m_m, m_n = o_m < rows, o_n < columns
        p_row = grad + o_m.to(tl.int64)[:, None] * pitch
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in tl.range(0, positions, BLOCK_K, num_stages=INDIRECT_STAGES):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = o_k < positions
            o_position = tl.load(p_offset + o_k, mask=m_k, other=0) + o_x  # past the end: a position that exists
            b_grad = tl.load(p_row + o_k[None, :], mask=m_m[:, None] & (o_k < pitch)[None, :], other=0.0)
            p_pooled = pooled + o_position[:, None] * columns + o_n[None, :]
            if TRANSPOSED:
                b_pooled = tl.where(m_k[:, None], tl.load(p_pooled, mask=m_n[None, :], other=0.0), 0.0)
            else:
                b_pooled = tl.load(p_pooled, mask=m_k[:, None] & m_n[None, :], other=0.0)
            acc = tl.dot(b_grad, b_pooled, acc, input_precision=PRECISION)
        p_result = result + (o_m.to(tl.int64)[:, None] * (KERNEL_Y * KERNEL_X) + tap) * columns + o_n[None, :]
        tl.store(p_result, acc.to(result.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int, tap: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of ops.skip_classifier_flat_backward: of the maps, then of the weight and the bias."""
    problem = Problem.of(maps, weight, size, tap)
    grad, grad_bias = _relu_backward(grad, output)
    gradients = _grad_maps(grad, maps, weight, problem) if need_maps else []
    if need_weight:
        gradients += [_grad_weight(grad, maps, weight, problem), grad_bias]
    return gradients


def _grad_maps(grad: Tensor, maps: Sequence[Tensor], weight: Tensor, problem: Problem) -> list[Tensor]:
    if problem.positions and problem.channels:
        grad_pooled = col2im.pooled_gradient(grad, weight, problem)
    else:
        grad_pooled = weight.new_empty(problem.pooled_positions, problem.channels)
    return offset_pool.backward_list(grad_pooled, maps, problem.size)


def _grad_weight(grad: Tensor, maps: Sequence[Tensor], weight: Tensor, problem: Problem) -> Tensor:
    if not grad.numel() or not weight.numel():
        return torch.zeros_like(weight)
    plan = launch.choose("weight", problem)
    if plan.variant == "im2col":
        result = im2col.weight_gradient(grad, maps, problem)
    else:
        result = _grad_weight_direct(grad, maps, problem, plan)
    return result.permute(0, 3, 1, 2).contiguous(memory_format=offset_pool.memory_format_of(weight))


def _grad_weight_direct(grad: Tensor, maps: Sequence[Tensor], problem: Problem, plan: Plan) -> Tensor:
    """[O, k_y, k_x, C] from the gradient before the ReLU, contiguous."""
    positions, outputs = grad.shape
    pitch = triton.cdiv(positions, GRAD_MULTIPLE) * GRAD_MULTIPLE
    transposed = grad.new_empty(outputs, pitch)
    transposed[:, :positions] = grad.t()
    transposed[:, positions:] = 0
    result = grad.new_empty(outputs, *problem.kernel, problem.channels)
    (offsets,) = _row_offsets(problem.pooled, problem.reach, problem.kernel[0], problem.tap, problem.device)
    skip_classifier_bwd_weight_kernel[(plan.num_programs,)](
        transposed, offset_pool.pooled_buffer(maps, problem.size), offsets, result, outputs, problem.channels,
        positions, pitch, plan.num_programs, KERNEL_Y=problem.kernel[0], KERNEL_X=problem.kernel[1],
        DILATION=problem.tap, PRECISION=plan.precision, STAGES=plan.tile.stages, **plan.tile.options(),
    )  # fmt: skip
    return result


@DeviceTableCache
def _row_offsets(
    shapes: tuple[Shape, ...], reach: tuple[int, int], kernel_y: int, tap: int, device: torch.device
) -> tuple[Tensor]:
    """Of pooled maps of these shapes, row_offset of the kernel."""
    table = output_positions(shapes, reach, True, torch.device("cpu"))
    rows = [table.base_offset + i_y * tap * table.row_pitch for i_y in range(kernel_y)]
    return (torch.stack(rows).to(device),)


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
