"""Offset pooling and the classifier's first layer, for maps of different sizes in one launch.

One place of the result is one row of a matrix product: out[place] = W . window(place), where the window's
k x k taps lie `size` cells apart in the pooled map. The rows of all maps, images and scales form one product
that reads the weights once. A table says where each row's window starts (maps.Places), so nothing is shifted,
gathered into columns or interleaved in memory. The gradients are products of the same form:

    of the pooled maps   rows: cells,     summed over taps and outputs
    of the weight        rows: outputs,   columns: taps and channels, summed over places

The public functions at the end launch them; `launch.choose` gives tile sizes, and whether pooling is a pass
of its own ("apart") or done as the product loads its input ("inside").
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels import launch, offset_pool
from overfeat.kernels.maps import MOST_MAPS, address_of, cells, places

ALIGNED = 16  # bytes: what the product is told of the maps' addresses


@triton.jit
def tile_of(i_tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile; GROUP rows of tiles go together, so that what they read is still in the cache."""
    in_group = GROUP * tiles_n
    first = i_tile // in_group * GROUP
    rows = min(tiles_m - first, GROUP)
    return first + i_tile % in_group % rows, i_tile % in_group // rows


@triton.jit(do_not_specialize=["rows", "programs"])
def skip_classifier_fwd_kernel(
    maps,  # tuple of COUNT pointers: [cells, C] each, channels last: the maps, or their pooled maps where POOL is 1
    which,  # int32 [M]: a place's map
    base,  # int64 [M]: the first cell of its window
    pitch,  # int32 [M]: cells in a row of its map
    weight,  # [O, k, k, C], dtype of the maps
    bias,  # [O], or anything where not BIAS
    output,  # [M, O], dtype of the maps; where PARTS > 1 float32 [PARTS, M, O] without bias and ReLU
    rows,  # M
    columns,  # O
    channels,  # C
    programs,
    COUNT: tl.constexpr,
    KERNEL: tl.constexpr,  # k
    SIZE: tl.constexpr,  # cells between taps: size of the pooling
    POOL: tl.constexpr,  # what is left to pool: SIZE, or 1
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PARTS: tl.constexpr,  # programs that share one tile, each with a part of the taps and channels
    EVEN: tl.constexpr,  # C is a multiple of BLOCK_K
    PRECISION: tl.constexpr,  # of float32 products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    blocks_c = tl.cdiv(channels, BLOCK_K)
    steps = KERNEL * KERNEL * blocks_c
    for i_work in range(tl.program_id(0), tiles_m * tiles_n * PARTS, programs):
        part, i_tile = i_work % PARTS, i_work // PARTS
        i_m, i_n = tile_of(i_tile, tiles_m, tiles_n, GROUP)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rows and columns past the end read the last one, and are not stored. Where neighbours in a block are
        # neighbours in memory there are masks instead: the compiler sees that it may load many at a time.
        row, column = tl.minimum(o_m, rows - 1), tl.minimum(o_n, columns - 1)
        b_base, b_pitch = tl.load(base + row), tl.load(pitch + row).to(tl.int64)
        o_k = tl.arange(0, BLOCK_K)
        p_map = address_of(maps, tl.load(which + row), COUNT).to(maps[0].dtype)
        p_map = tl.multiple_of(p_map, 16)[:, None] + o_k[None, :]
        p_weight = weight + column.to(tl.int64)[None, :] * (KERNEL * KERNEL * channels) + o_k[:, None]
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(steps * part // PARTS, steps * (part + 1) // PARTS):
            tap, c = step // blocks_c, step % blocks_c * BLOCK_K
            m_k = c + o_k < channels
            o_cell = b_base + tap // KERNEL * SIZE * b_pitch + tap % KERNEL * SIZE
            b_map = _window(p_map, o_cell, b_pitch, c, channels, m_k, POOL, EVEN)
            if EVEN:
                b_weight = tl.load(p_weight + tap * channels + c)
            else:
                b_weight = tl.load(p_weight + tap * channels + c, mask=m_k[:, None], other=0.0)
            product = tl.dot(b_map, b_weight, product, input_precision=PRECISION)
        if PARTS > 1:
            p_output = (
                output + (part * (tl.zeros_like(row).to(tl.int64) + rows) + row)[:, None] * columns + o_n[None, :]
            )
        else:
            p_output = output + row.to(tl.int64)[:, None] * columns + o_n[None, :]
            if BIAS:
                product += tl.load(bias + o_n, mask=o_n < columns, other=0.0).to(tl.float32)[None, :]
            if RELU:
                product = tl.where(product < 0, 0.0, product)  # NaN stays
        m_output = (o_m < rows)[:, None] & (o_n < columns)[None, :]
        tl.store(p_output, product.to(output.dtype.element_ty), mask=m_output)


@triton.jit
def _window(p_map, o_cell, b_pitch, c, channels, m_k, POOL: tl.constexpr, EVEN: tl.constexpr):
    """[BLOCK_M, BLOCK_K]: one tap of every row's window, BLOCK_K channels from c; pooled where POOL > 1."""
    p_first = p_map + (o_cell * channels + c)[:, None]
    if EVEN:
        best = tl.load(p_first)
    else:
        best = tl.load(p_first, mask=m_k[None, :], other=0.0)
    for place in tl.static_range(1, POOL * POOL):
        p_cell = p_first + ((place // POOL) * b_pitch * channels + (place % POOL) * channels)[:, None]
        if EVEN:
            value = tl.load(p_cell)
        else:
            value = tl.load(p_cell, mask=m_k[None, :], other=0.0)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL).to(value.dtype)  # bfloat16 went to float32
    return best


@triton.jit(do_not_specialize=["total"])
def split_k_reduce_kernel(
    parts,  # float32 [PARTS, M * O]
    bias,  # [O], or anything where not BIAS
    output,  # [M * O]
    total,  # M * O
    columns,  # O
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum over the parts, bias and ReLU, where several programs shared a tile."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    value = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        value += tl.load(parts + tl.full([], part, tl.int64) * total + index, mask=inside, other=0.0)
    if BIAS:
        value += tl.load(bias + index % columns, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(output + index, value.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def relu_backward_kernel(
    grad,  # [M, O], any strides
    output,  # [M, O]: what the forward pass gave, or anything where not RELU
    masked,  # [M, O]: gradient before the ReLU, written where RELU
    sums,  # float32 [cdiv(M, ROWS), O]: its sum over ROWS rows
    rows,  # M
    columns,  # O
    stride_m,  # of grad
    stride_n,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradient before the ReLU, and its column sums, which make the gradient of the bias."""
    i_m = tl.program_id(0)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(i_m * ROWS, min(rows, (i_m + 1) * ROWS), BLOCK_M):
        o_m = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (o_m < rows)[:, None] & (o_n < columns)[None, :]
        b_grad = tl.load(grad + o_m[:, None] * stride_m + o_n.to(tl.int64)[None, :] * stride_n, mask=inside, other=0.0)
        if RELU:
            o_place = o_m[:, None] * columns + o_n[None, :]
            b_output = tl.load(output + o_place, mask=inside, other=0.0)
            b_grad = tl.where(b_output <= 0, 0.0, b_grad)
            tl.store(masked + o_place, b_grad, mask=inside)
        total += tl.sum(b_grad.to(tl.float32), axis=0)
    tl.store(sums + i_m.to(tl.int64) * columns + o_n, total, mask=o_n < columns)


@triton.jit(do_not_specialize=["rows", "programs"])
def skip_classifier_bwd_input_kernel(
    grad,  # [M, O], before the ReLU
    weight,  # [O, k, k, C]
    result,  # [R, C]: gradient of the pooled maps
    cell_y,  # int32 [R]: row of the cell
    cell_x,
    cell_height,  # int32 [R]: rows of its map's places
    cell_width,
    cell_first,  # int64 [R]: the first place of its image
    rows,  # R
    columns,  # C
    outputs,  # O
    programs,
    KERNEL: tl.constexpr,
    SIZE: tl.constexpr,
    EVEN: tl.constexpr,  # O is a multiple of BLOCK_K
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A cell's gradient: over the taps, the places that see it through that tap, times the tap's weights."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    blocks_o = tl.cdiv(outputs, BLOCK_K)
    for i_tile in range(tl.program_id(0), tiles_m * tiles_n, programs):
        i_m, i_n = tile_of(i_tile, tiles_m, tiles_n, GROUP)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        row, m_n = tl.minimum(o_m, rows - 1), o_n < columns
        b_y, b_x = tl.load(cell_y + row), tl.load(cell_x + row)
        b_height, b_width = tl.load(cell_height + row), tl.load(cell_width + row)
        b_first = tl.load(cell_first + row)
        o_k = tl.arange(0, BLOCK_K)
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(KERNEL * KERNEL * blocks_o):
            tap, o = step // blocks_o, step % blocks_o * BLOCK_K + o_k
            y, x = b_y - tap // KERNEL * SIZE, b_x - tap % KERNEL * SIZE
            seen = (y >= 0) & (y < b_height) & (x >= 0) & (x < b_width)
            o_place = b_first + y.to(tl.int64) * b_width + x
            p_grad = grad + o_place[:, None] * outputs + o[None, :]
            p_weight = weight + (o.to(tl.int64)[:, None] * (KERNEL * KERNEL) + tap) * columns + o_n[None, :]
            if EVEN:
                b_grad = tl.load(p_grad, mask=seen[:, None], other=0.0)
                b_weight = tl.load(p_weight, mask=m_n[None, :], other=0.0)
            else:
                b_grad = tl.load(p_grad, mask=seen[:, None] & (o < outputs)[None, :], other=0.0)
                b_weight = tl.load(p_weight, mask=(o < outputs)[:, None] & m_n[None, :], other=0.0)
            product = tl.dot(b_grad, b_weight, product, input_precision=PRECISION)
        p_result = result + row.to(tl.int64)[:, None] * columns + o_n[None, :]
        m_result = (o_m < rows)[:, None] & m_n[None, :]
        tl.store(p_result, product.to(result.dtype.element_ty), mask=m_result)


@triton.jit(do_not_specialize=["places", "programs"])
def skip_classifier_bwd_weight_kernel(
    grad,  # [M, O], before the ReLU
    pooled,  # [cells, C]: the pooled maps, one behind the other
    base,  # int64 [M]: the first cell of a place's window
    pitch,  # int32 [M]: cells in a row of its map
    result,  # [O, k, k, C]: gradient of the weight
    rows,  # O
    columns,  # C
    places,  # M
    programs,
    KERNEL: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A weight's gradient: over the places, the gradient of its output times what its tap saw."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for i_work in range(tl.program_id(0), tiles_m * tiles_n * KERNEL * KERNEL, programs):
        tap = i_work // (tiles_m * tiles_n)
        i_m, i_n = tile_of(i_work % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        m_m, m_n = o_m < rows, o_n < columns
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, places, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = o_k < places
            o_cell = tl.load(base + o_k, mask=m_k, other=0)
            o_cell += tap // KERNEL * SIZE * tl.load(pitch + o_k, mask=m_k, other=0).to(tl.int64) + tap % KERNEL * SIZE
            p_grad = grad + o_k.to(tl.int64)[:, None] * rows + o_m[None, :]
            b_grad = tl.load(p_grad, mask=m_k[:, None] & m_m[None, :], other=0.0)
            p_pooled = pooled + o_cell[:, None] * columns + o_n[None, :]
            b_pooled = tl.load(p_pooled, mask=m_k[:, None] & m_n[None, :], other=0.0)
            product = tl.dot(tl.trans(b_grad), b_pooled, product, input_precision=PRECISION)
        p_result = result + (o_m.to(tl.int64)[:, None] * (KERNEL * KERNEL) + tap) * columns + o_n[None, :]
        tl.store(p_result, product.to(result.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def forward(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool) -> Tensor:
    """[places, O] from unpooled maps [N, C, H, W], weight [O, C, k, k]: see ops.skip_classifier_flat."""
    if len(maps) > MOST_MAPS:
        parts = (maps[i : i + MOST_MAPS] for i in range(0, len(maps), MOST_MAPS))
        return torch.cat([forward(part, weight, bias, size, relu) for part in parts])
    (outputs, channels, k, _), shapes = weight.shape, _shapes(maps)
    device = maps[0].device
    count = _places_in(shapes, k * size - 1)
    output = weight.new_empty(count, outputs)
    if not output.numel():
        return output
    plan = launch.choose("forward", weight.dtype, device, count, outputs, k * k, channels, size)
    if plan.pool == "apart" or size == 1:
        pooled = offset_pool.forward_list(maps, size) if not _one_buffer(maps, size) else maps[0]
        sources, left = (pooled,), 1
        table = places(tuple((n, h - size + 1, w - size + 1) for n, h, w in shapes), (k - 1) * size, True, device)
    else:
        sources, left = tuple(_aligned(m.contiguous(memory_format=torch.channels_last)) for m in maps), size
        table = places(shapes, k * size - 1, False, device)
    target = output if plan.parts == 1 else torch.empty(plan.parts, *output.shape, dtype=torch.float32, device=device)
    bias_or_any = output if bias is None else bias.contiguous()
    skip_classifier_fwd_kernel[(plan.programs,)](
        sources, *table, _last(weight), bias_or_any, target, count, outputs, channels, plan.programs,
        COUNT=len(sources), KERNEL=k, SIZE=size, POOL=left, BIAS=bias is not None, RELU=relu, PARTS=plan.parts,
        EVEN=plan.even, PRECISION=plan.precision, **plan.tile.options(),
    )  # fmt: skip
    if plan.parts > 1:
        split_k_reduce_kernel[(triton.cdiv(output.numel(), launch.FLAT),)](
            target, bias_or_any, output, output.numel(), outputs, BIAS=bias is not None, RELU=relu, PARTS=plan.parts,
            BLOCK=launch.FLAT,
        )  # fmt: skip
    return output


def backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients that ops.skip_classifier_flat_backward lists."""
    (outputs, channels, k, _), device = weight.shape, grad.device
    shapes = tuple((n, h - size + 1, w - size + 1) for n, h, w in _shapes(maps))
    reach = (k - 1) * size
    grad, of_bias = _relu_backward(grad, output)
    found = []
    if need_maps:
        of_pooled = weight.new_empty(sum(n * h * w for n, h, w in shapes), channels)
        if of_pooled.numel():
            plan = launch.choose("maps", weight.dtype, device, len(of_pooled), channels, k * k, outputs, size)
            skip_classifier_bwd_input_kernel[(plan.programs,)](
                grad, _last(weight), of_pooled, *cells(shapes, reach, device), len(of_pooled), channels, outputs,
                plan.programs, KERNEL=k, SIZE=size, EVEN=plan.even, PRECISION=plan.precision,
                **plan.tile.options(),
            )  # fmt: skip
        parts = of_pooled.split([n * h * w for n, h, w in shapes])
        for m, part, (n, h, w) in zip(maps, parts, shapes, strict=True):
            part = part.view(n, h, w, channels).permute(0, 3, 1, 2)
            found.append(offset_pool.backward(part, m, size))
    if need_weight:
        of_weight = torch.zeros(outputs, k, k, channels, dtype=weight.dtype, device=device)
        if len(grad) and of_weight.numel():
            pooled = maps[0] if _one_buffer(maps, size) else offset_pool.forward_list(maps, size)
            plan = launch.choose("weight", weight.dtype, device, outputs, channels, k * k, len(grad), size)
            _, base, pitch = places(shapes, reach, True, device)
            skip_classifier_bwd_weight_kernel[(plan.programs,)](
                grad, pooled, base, pitch, of_weight, outputs, channels, len(grad), plan.programs,
                KERNEL=k, SIZE=size, PRECISION=plan.precision, **plan.tile.options(),
            )  # fmt: skip
        of_weight = of_weight.permute(0, 3, 1, 2)
        last = offset_pool.is_last(weight)
        found += [of_weight.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format), of_bias]
    return found


def _relu_backward(grad: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient before the ReLU (`output` None: there was none), contiguous, and that of the bias."""
    rows, columns = grad.shape
    chunks = triton.cdiv(rows, launch.SUM_ROWS)
    sums = torch.empty(chunks, columns, dtype=torch.float32, device=grad.device)
    relu = output is not None
    masked = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if relu else grad.contiguous()
    if grad.numel():
        relu_backward_kernel[(chunks, triton.cdiv(columns, launch.SUM_COLUMNS))](
            grad, output if relu else grad, masked, sums, rows, columns, *grad.stride(),
            RELU=relu, ROWS=launch.SUM_ROWS, BLOCK_M=launch.SUM_BLOCK, BLOCK_N=launch.SUM_COLUMNS,
        )  # fmt: skip
    return masked, sums.sum(dim=0).to(grad.dtype)


def _shapes(maps: Sequence[Tensor]) -> tuple[tuple[int, int, int], ...]:
    return tuple((m.shape[0], m.shape[2], m.shape[3]) for m in maps)


def _places_in(shapes: Sequence[tuple[int, int, int]], reach: int) -> int:
    return sum(n * (h - reach) * (w - reach) for n, h, w in shapes)


def _one_buffer(maps: Sequence[Tensor], size: int) -> bool:
    """There is nothing to pool, and one map, whose memory is [cells, C] already."""
    last = maps[0].is_contiguous(memory_format=torch.channels_last)
    return size == 1 and len(maps) == 1 and last and maps[0].data_ptr() % ALIGNED == 0


def _aligned(maps: Tensor) -> Tensor:
    """The maps at an address that the kernels may load from 16 bytes at a time."""
    return maps if maps.data_ptr() % ALIGNED == 0 else maps.clone()


def _last(weight: Tensor) -> Tensor:
    """The weight as it lies in memory for the kernels, [O, k, k, C]; a copy unless it is channels-last."""
    return weight.permute(0, 2, 3, 1).contiguous()
