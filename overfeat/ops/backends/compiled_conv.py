"""Convolutions with small weights on a CPU by compiled code (numba_conv.py): packing, the method, threads."""

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops import layout
from overfeat.ops.backends import numba_conv, parallel, winograd, workspace
from overfeat.ops.backends.numba_conv import BLOCK_BYTES, COLUMNS, KERNELS, LANES, ROWS, axis_transforms
from overfeat.ops.backends.winograd import OUTPUT_TILE

PER_BLOCK = 3 * ROWS  # outputs, or tiles of minimal filtering, that one thread computes at a time
POOLED_PER_BLOCK = 32  # outputs of a pooling
# What transforming a tile costs: multiplications of a GEMM for each position and channel, in or out.
TRANSFORM_COST = 30


class Panels(NamedTuple):
    """A packed weight [O, C, k_y, k_x]."""

    shape: tuple[int, ...]
    direct: Tensor  # [panels, taps * C, COLUMNS]
    transformed: Tensor | None  # [t * t, panels, C, COLUMNS], where minimal filtering applies


class Window(NamedTuple):
    """How a convolution moves over the maps, and what follows it."""

    stride: int = 1
    dilation: int = 1
    relu: bool = False
    pool: int = 1  # a non-overlapping max pooling


class Plan(NamedTuple):
    """What all jobs on maps of one shape have in common."""

    numbers: bytearray  # of the job, without addresses
    shape: tuple[int, int, int, int]  # of the outputs
    taps: Tensor
    zeros: Tensor  # as many as the panels have columns
    filtered: bool  # by minimal filtering
    blocks: int
    memory: int  # bytes of a thread


def pack(weight: Tensor) -> Panels:
    """Pack a float32 weight [O, C, k_y, k_x]."""
    weight = weight.detach()
    outputs, channels, k, k_x = weight.shape
    transformed = None
    if k == k_x and k in KERNELS and channels % LANES == 0:
        axis = axis_transforms(k)[1]
        positions = torch.einsum("ai,bj,ocij->abco", axis, axis, weight.double()).float()
        transformed = _panels(positions.flatten(0, 1))
    direct = _panels(weight.permute(2, 3, 1, 0).reshape(1, -1, outputs))[0]
    return Panels(tuple(weight.shape), direct, transformed)


def _panels(matrices: Tensor) -> Tensor:
    """Matrices [n, inputs, O] as [n, panels, inputs, COLUMNS], filled up with zeros."""
    n, inputs, outputs = matrices.shape
    return F.pad(matrices, (0, -outputs % COLUMNS)).view(n, inputs, -1, COLUMNS).transpose(1, 2).contiguous()


def convolve(maps: Tensor, panels: Panels, bias: Tensor | None, window: Window, out: Tensor | None = None) -> Tensor:
    """A convolution without padding, its ReLU and pooling: [N, h, w, O], in `out` if it is given, which has as many.

    maps: float32 [N, C, H, W], at least as large as the kernel; the pooling has an output. NaN propagates.
    """
    maps = _channels_last(maps)
    ratio = winograd.MAX_COST_RATIO if winograd.enabled() and panels.transformed is not None else 0.0
    plan = _plan(tuple(maps.shape), maps.stride(), panels.shape, window, ratio)
    out = workspace.empty(*plan.shape) if out is None else out
    if bias is None:
        bias = plan.zeros
    elif len(bias) != len(plan.zeros) or not bias.is_contiguous():
        bias = F.pad(bias, (0, len(plan.zeros) - len(bias)))
    threads = min(torch.get_num_threads(), plan.blocks)
    scratch = workspace.scratch(threads * plan.memory)
    job = _Numbers.from_buffer_copy(plan.numbers)
    tensors = (maps, out, bias, plan.zeros, plan.taps, panels.direct, scratch)
    for place, tensor in zip(_ADDRESSES, tensors, strict=True):
        job[place] = tensor.data_ptr()
    if plan.filtered and panels.transformed is not None:
        job[numba_conv.TRANSFORMED // 8] = panels.transformed.data_ptr()
    function = numba_conv.filtered if plan.filtered else numba_conv.direct
    parallel.run(function, ctypes.addressof(job), threads)
    return out


_Numbers = ctypes.c_int64 * numba_conv.JOB
_ADDRESSES = [
    place // 8
    for place in (
        numba_conv.MAPS, numba_conv.OUT, numba_conv.BIAS, numba_conv.ZEROS, numba_conv.TAPS, numba_conv.WEIGHT,
        numba_conv.SCRATCH,
    )
]  # fmt: skip


def _channels_last(maps: Tensor) -> Tensor:
    """`layout.channels_last`, which most maps are already: every call of torch costs as much as a thin layer's rows."""
    _, channels, height, width = maps.shape
    expected = (height * width * channels, 1, width * channels, channels)
    return maps if maps.stride() == expected else layout.channels_last(maps)


def _sides(maps: tuple[int, ...], weight: tuple[int, ...], window: Window) -> list[int]:
    """Height and width of the outputs before the pooling, of shapes."""
    reach = [(k - 1) * window.dilation for k in weight[2:]]
    return [(side - r - 1) // window.stride + 1 for side, r in zip(maps[2:], reach, strict=True)]


def has_outputs(maps: Tensor, panels: Panels, window: Window) -> bool:
    """Whether maps [N, C, H, W] are large enough for an output."""
    return min(_sides(tuple(maps.shape), panels.shape, window)) >= window.pool


@lru_cache(maxsize=512)
def _plan(
    maps: tuple[int, ...], strides: tuple[int, ...], weight: tuple[int, ...], window: Window, ratio: float
) -> Plan:
    """maps and weight: shapes; ratio: of the costs, up to which minimal filtering is used."""
    (outputs, channels, k_y, k_x), d = weight, window.dilation
    _, _, row, column = (4 * s for s in strides)
    if d == 1:
        run, taps = k_x * channels, [y * row for y in range(k_y)]
    else:
        run, taps = channels, [d * (y * row + x * column) for y in range(k_y) for x in range(k_x)]
    length = -(-outputs // COLUMNS) * COLUMNS
    tiling = _tiling(maps, weight, window, ratio)
    tiles = None if tiling is None else maps[0] * d * d * tiling.down * tiling.across
    per_block, blocks, memory = _blocks(maps, weight, window, length, tiles)
    job = {
        "MAPS_IMAGE": 4 * strides[0], "MAPS_ROW": row, "MAPS_COLUMN": column, "MAPS_HEIGHT": maps[2],
        "MAPS_WIDTH": maps[3], "IN_CHANNELS": channels, "CHANNELS": outputs, "STRIDE": window.stride, "DILATION": d,
        "POOL": window.pool, "RELU": int(window.relu), "PANELS": length // COLUMNS, "KERNEL": k_y,
        "NUM_TAPS": len(taps), "RUN": run, "PER_BLOCK": per_block, "BLOCKS": blocks, "SCRATCH_BYTES": memory,
    }  # fmt: skip
    job["HEIGHT"], job["WIDTH"] = height, width = _sides(maps, weight, window)
    job["POSITIONS"] = maps[0] * height * width
    if tiling is not None and tiles is not None:
        job |= {"DOWN": tiling.down, "ACROSS": tiling.across, "TILES": tiles}
    numbers = np.zeros(numba_conv.JOB, np.int64)
    for name, value in job.items():
        numbers[getattr(numba_conv, name) // 8] = value
    shape = maps[0], height // window.pool, width // window.pool, outputs
    zeros = torch.zeros(length, dtype=torch.float32, device="cpu")
    addresses = torch.tensor(taps, device="cpu"), zeros
    return Plan(bytearray(numbers.tobytes()), shape, *addresses, tiles is not None, blocks, memory)


def _tiling(
    maps: tuple[int, ...], weight: tuple[int, ...], window: Window, ratio: float
) -> winograd.Tiling | None:  # fmt: skip
    """The tiles of minimal filtering; None where it does not apply, or costs more than so much of direct sums."""
    outputs, channels, k, _ = weight
    if not ratio or window.stride != 1:
        return None
    if window.pool > 1 and (window.dilation > 1 or OUTPUT_TILE % window.pool):
        return None
    tiling = winograd.tiling(maps, k, window.dilation)
    tiles = tiling.images * window.dilation**2 * tiling.down * tiling.across
    tiles, positions = (-(-n // ROWS) * ROWS for n in (tiles, tiling.images * tiling.height * tiling.width))
    cost = tiles * (OUTPUT_TILE + k - 1) ** 2 * (outputs * channels + TRANSFORM_COST * (outputs + channels))
    direct = positions * k * k * outputs * channels
    return tiling if cost < ratio * direct else None


def _blocks(
    maps: tuple[int, ...], weight: tuple[int, ...], window: Window, length: int, tiles: int | None
) -> tuple[int, int, int]:
    """Outputs or tiles of a block, number of blocks, and bytes of memory that a thread needs for one."""
    height, width = _sides(maps, weight, window)
    if tiles is not None:
        outputs, inputs = OUTPUT_TILE**2, (OUTPUT_TILE + weight[2] - 1) ** 2
        values = outputs * length + inputs * weight[1] + inputs * PER_BLOCK * (weight[1] + length)
        positions, per_block, blocks = outputs + ROWS, PER_BLOCK, -(-tiles // PER_BLOCK)
    elif window.pool == 1:
        values, positions, per_block = 0, PER_BLOCK, PER_BLOCK
        blocks = -(-maps[0] * height * width // PER_BLOCK)
    else:
        size, per_block = window.pool**2, POOLED_PER_BLOCK
        values, positions = size * per_block * length, size * per_block
        blocks = maps[0] * (height // window.pool) * -(-(width // window.pool) // per_block)
    memory = BLOCK_BYTES + 8 * (positions + ROWS) + 4 * values
    return per_block, blocks, -(-memory // 64) * 64
