"""Offset pooling and the classifier's first layer, for maps of different sizes in one launch.

An implicit GEMM: one output position is one row, out[position] = W . window(position), where the window's k_y x k_x
taps lie `tap` positions apart in the pooled map. The positions of all maps, images and scales form one GEMM that reads
the weights once. A table holds where each row's window starts (maps.OutputPositions), so that nothing is shifted,
gathered or interleaved in memory. The gradients are GEMMs of the same form:

    of the pooled maps   rows: input positions,   sum over taps and outputs
    of the weight        rows: outputs,           columns: taps and channels, sum over output positions

All accumulate in float32. The public functions at the end launch them; `launch.choose` gives tile sizes, and whether
pooling is a "separate" pass or "fused" into the loads of the GEMM.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import launch, offset_pool
from overfeat.kernels.maps import MAX_MAPS, OutputPositions, Shape, address_of, input_positions, output_positions

ALIGNMENT = 16  # bytes: the forward kernel assumes it of the maps' addresses


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
    for i_work in range(tl.program_id(0), tiles_m * tiles_n * SPLIT_K, num_programs):
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
    output,  # [M * O], contiguous; any float dtype
    total,  # M * O
    columns,  # O
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of the splits in float32, bias and ReLU: the epilogue if several programs share a tile."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    value = tl.zeros([BLOCK], tl.float32)
    for i_split in range(SPLIT_K):
        value += tl.load(partial + tl.full([], i_split, tl.int64) * total + index, mask=inside, other=0.0)
    if BIAS:
        value += tl.load(bias + index % columns, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(output + index, value.to(output.dtype.element_ty), mask=inside)


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


def forward(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int) -> Tensor:
    """[positions, O] from unpooled maps [N, C, H, W], weight [O, C, k_y, k_x]: see ops.skip_classifier_flat."""
    if len(maps) > MAX_MAPS:
        chunks = (maps[i : i + MAX_MAPS] for i in range(0, len(maps), MAX_MAPS))
        return torch.cat([forward(chunk, weight, bias, size, relu, tap) for chunk in chunks])
    (outputs, channels, k_y, k_x), device = weight.shape, maps[0].device
    count = _num_positions(_pooled_shapes(maps, size), _reach(weight, tap))
    output = weight.new_empty(count, outputs)
    if not output.numel():
        return output
    shape = {"m": count, "n": outputs, "taps": k_y * k_x, "channels": channels, "size": size}
    plan = launch.choose("forward", weight.dtype, device, **shape)
    sources, table, pool = _sources(maps, plan.pool, size, _reach(weight, tap))
    split = plan.split_k > 1
    target = torch.empty(plan.split_k, *output.shape, dtype=torch.float32, device=device) if split else output
    bias_or_any = output if bias is None else bias.contiguous()
    skip_classifier_fwd_kernel[(plan.num_programs,)](
        sources, *table, _channels_last(weight), bias_or_any, target, count, outputs, channels, plan.num_programs,
        COUNT=len(sources), KERNEL_Y=k_y, KERNEL_X=k_x, DILATION=tap, POOL=pool, BIAS=bias is not None, RELU=relu,
        SPLIT_K=plan.split_k, EVEN_K=plan.even_k, PRECISION=plan.precision, **plan.tile.options(),
    )  # fmt: skip
    if split:
        split_k_reduce_kernel[(triton.cdiv(output.numel(), launch.ELEMENTWISE_BLOCK),)](
            target, bias_or_any, output, output.numel(), outputs, BIAS=bias is not None, RELU=relu,
            SPLIT_K=plan.split_k, BLOCK=launch.ELEMENTWISE_BLOCK,
        )  # fmt: skip
    return output


def _sources(
    maps: Sequence[Tensor], pool: str, size: int, reach: tuple[int, int]
) -> tuple[tuple[Tensor, ...], OutputPositions, int]:
    """The buffers that the forward kernel reads, the table of its rows, and the size that it pools by."""
    shapes, device = _shapes(maps), maps[0].device
    if pool == "separate" or size == 1:
        pooled = maps[0] if _is_one_buffer(maps, size) else offset_pool.forward_list(maps, size)
        return (pooled,), output_positions(_pooled_shapes(maps, size), reach, True, device), 1
    sources = tuple(_aligned(m.contiguous(memory_format=torch.channels_last)) for m in maps)
    unpooled_reach = reach[0] + size - 1, reach[1] + size - 1
    return sources, output_positions(shapes, unpooled_reach, False, device), size


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
    (outputs, channels, k_y, k_x), device, shapes = weight.shape, grad.device, _pooled_shapes(maps, size)
    grad_pooled = weight.new_empty(_num_positions(shapes, (0, 0)), channels)
    if grad_pooled.numel():
        shape = {"m": len(grad_pooled), "n": channels, "taps": k_y * k_x, "channels": outputs, "size": size}
        plan = launch.choose("input", weight.dtype, device, **shape)
        skip_classifier_bwd_input_kernel[(plan.num_programs,)](
            grad, _channels_last(weight), grad_pooled, *input_positions(shapes, _reach(weight, tap), device),
            len(grad_pooled), channels, outputs, plan.num_programs, KERNEL_Y=k_y, KERNEL_X=k_x, DILATION=tap,
            EVEN_K=plan.even_k, PRECISION=plan.precision, **plan.tile.options(),
        )  # fmt: skip
    chunks = grad_pooled.split([n * h * w for n, h, w in shapes])
    return [
        offset_pool.backward(chunk.view(n, h, w, channels).permute(0, 3, 1, 2), m, size, 1)
        for m, chunk, (n, h, w) in zip(maps, chunks, shapes, strict=True)
    ]


def _grad_weight(grad: Tensor, maps: Sequence[Tensor], weight: Tensor, size: int, tap: int) -> Tensor:
    (outputs, channels, k_y, k_x), device = weight.shape, grad.device
    grad_weight = torch.zeros(outputs, k_y, k_x, channels, dtype=weight.dtype, device=device)
    if len(grad) and grad_weight.numel():
        pooled = maps[0] if _is_one_buffer(maps, size) else offset_pool.forward_list(maps, size)
        shape = {"m": outputs, "n": channels, "taps": k_y * k_x, "channels": len(grad), "size": size}
        plan = launch.choose("weight", weight.dtype, device, **shape)
        table = output_positions(_pooled_shapes(maps, size), _reach(weight, tap), True, device)
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


def _shapes(maps: Sequence[Tensor]) -> tuple[Shape, ...]:
    return tuple((m.shape[0], m.shape[2], m.shape[3]) for m in maps)


def _pooled_shapes(maps: Sequence[Tensor], size: int) -> tuple[Shape, ...]:
    return tuple((n, h - size + 1, w - size + 1) for n, h, w in _shapes(maps))


def _reach(weight: Tensor, tap: int) -> tuple[int, int]:
    """Rows and columns of the pooled maps from a window's first position to its last."""
    return (weight.shape[2] - 1) * tap, (weight.shape[3] - 1) * tap


def _num_positions(shapes: Sequence[Shape], reach: tuple[int, int]) -> int:
    return sum(n * (h - reach[0]) * (w - reach[1]) for n, h, w in shapes)


def _is_one_buffer(maps: Sequence[Tensor], size: int) -> bool:
    """Whether there is nothing to pool, and one map, whose memory is [positions, C] and aligned already."""
    channels_last = maps[0].is_contiguous(memory_format=torch.channels_last)
    return size == 1 and len(maps) == 1 and channels_last and maps[0].data_ptr() % ALIGNMENT == 0


def _aligned(maps: Tensor) -> Tensor:
    """The maps at an address of which 16 bytes can be loaded at a time."""
    return maps if maps.data_ptr() % ALIGNMENT == 0 else maps.clone()


def _channels_last(weight: Tensor) -> Tensor:
    """The weight in the kernels' layout, [O, k_y, k_x, C]; a copy unless it is channels-last."""
    return weight.permute(0, 2, 3, 1).contiguous()
