"""Programs of compiled convolutions (numba_conv.py): the jobs of a chain of layers, their blocks and memory."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends import numba_conv, winograd
from overfeat.ops.backends.numba_conv import (
    CHUNK,
    COLUMNS,
    DIRECT,
    FILTERED,
    HEADER,
    JOB,
    KERNELS,
    LANES,
    OFFSET_POOL,
    POOLED,
    ROWS,
    TABLE_BYTES,
)  # fmt: skip
from overfeat.ops.backends.winograd import OUTPUT_TILE

MAX_BLOCK = 3  # blocks of ROWS outputs, or tiles of minimal filtering, that one thread computes at a time
CACHE_BYTES = 1 << 21  # transformed weights up to this size stay in the second level: one block of tiles at a time
BLOCKS_PER_THREAD = 4  # at least, so that threads end at nearly the same time
POOLED_PER_BLOCK = 32  # outputs of a pooling
# What transforming a tile costs: multiplications of a GEMM for each position and channel, in or out.
TRANSFORM_COST = 30

Shape = tuple[int, ...]
MAPS, OUT = 2, 3  # as a job's source and target, after the two tensors between jobs


class Window(NamedTuple):
    """How a convolution moves over the maps, and what precedes and follows it."""

    stride: int = 1
    dilation: int = 1
    relu: bool = False
    pool: int = 1  # a non-overlapping max pooling of its outputs
    offset_pool: int = 1  # a max pooling of its inputs at every offset


class Job(NamedTuple):
    """What a job reads and writes."""

    layer: int | None  # its number; None: an offset pooling
    length: int  # of its bias
    source: int
    target: int


class Plan(NamedTuple):
    """The program of layers on maps of one shape, but for addresses."""

    numbers: bytearray  # without the addresses that differ from call to call
    jobs: list[Job]
    shape: tuple[int, int, int, int]  # of the outputs
    between: list[int]  # floats of the two tensors that hold the outputs of all jobs but the last in turn
    biases: int  # floats of all
    threads: int
    memory: int  # bytes of a thread
    tensors: list[Tensor]  # which the numbers have addresses of
    saved: int  # multiply-accumulates, by minimal filtering


class _Maps(NamedTuple):
    """Channels-last maps [N, C, H, W]; strides in bytes."""

    shape: Shape
    image: int
    row: int
    column: int


def transformable(weight: Shape) -> bool:
    """Whether minimal filtering is compiled for weights of this shape."""
    _, channels, k, k_x = weight
    return k == k_x and k in KERNELS and channels % LANES == 0


@lru_cache(maxsize=512)
def make_plan(
    maps: Shape, strides: Shape, layers: tuple[tuple[Shape, Window], ...], ratio: float, threads: int
) -> Plan | None:
    """The program of layers (shape of the weight, window) on channels-last maps; None if one has no outputs.

    ratio: of the costs, up to which minimal filtering is used.
    """
    at = _Maps(maps, *(4 * strides[dim] for dim in (0, 2, 3)))
    jobs: list[dict[str, int]] = []
    numbers: list[int | None] = []
    tensors: list[Tensor] = []
    for number, (weight, window) in enumerate(layers):
        if window.offset_pool > 1:
            job, at = _offset_pool_job(at, window.offset_pool)
            jobs.append(job)
            numbers.append(None)
        if min(_sides(at.shape, weight, window)) < window.pool:
            return None
        job, at = _convolution_job(at, weight, window, ratio, threads, tensors)
        lead = _lead(jobs)
        if lead is not None and _follows(lead, weight, window):
            lead["FOLLOWERS"] += 1
            job |= {"BLOCKS": 0, "METHOD": DIRECT}
        jobs.append(job)
        numbers.append(number)
    return _assemble(jobs, numbers, at, threads, tensors)


def _lead(jobs: list[dict[str, int]]) -> dict[str, int] | None:
    """The last job that is not computed with another's blocks."""
    return next((job for job in reversed(jobs) if job["BLOCKS"]), None)


def _follows(lead: dict[str, int], weight: Shape, window: Window) -> bool:
    """Whether a layer can be computed with the blocks of the one before it."""
    plain = weight[2:] == (1, 1) and window.stride == window.pool == window.offset_pool == 1
    return plain and lead["POOL"] == 1


def _assemble(
    jobs: list[dict[str, int]], layers: list[int | None], out: _Maps, threads: int, tensors: list[Tensor]
) -> Plan:
    numbers = np.zeros(HEADER + JOB * len(jobs), np.int64)
    numbers[numba_conv.JOBS // 8] = len(jobs)
    placed, between, memory = [], [0, 0], 0
    source, turn, first = MAPS, 0, 0
    while first < len(jobs):
        job = jobs[first]
        last = first + job["FOLLOWERS"]
        memory = max(memory, _place(job, jobs[first : last + 1]))
        final = jobs[last]
        target = OUT if last == len(jobs) - 1 else turn
        if target != OUT:
            size = final["IMAGES"] * final["OUT_HEIGHT"] * final["OUT_WIDTH"] * final["CHANNELS"]
            between[turn] = max(between[turn], size)
        for i in range(first, last + 1):
            placed.append(Job(layers[i], jobs[i]["PANELS"] * COLUMNS, source, target))
        source, turn, first = target, 1 - turn, last + 1
    for i, job in enumerate(jobs):
        for name, value in (job | {"SCRATCH_BYTES": memory}).items():
            if hasattr(numba_conv, name):
                numbers[HEADER + JOB * i + getattr(numba_conv, name) // 8] = value
    n, channels, height, width = out.shape
    blocks = max(job["BLOCKS"] for job in jobs)
    shape, biases = (n, height, width, channels), sum(job.length for job in placed)
    saved = sum(job.get("SAVED", 0) for job in jobs)
    return Plan(
        bytearray(numbers.tobytes()), placed, shape, between, biases, min(threads, blocks), memory, tensors, saved
    )


def _outputs(maps: _Maps, channels: int, height: int, width: int) -> _Maps:
    """Contiguous outputs."""
    row = 4 * width * channels
    return _Maps((maps.shape[0], channels, height, width), height * row, row, 4 * channels)


def _offset_pool_job(maps: _Maps, size: int) -> tuple[dict[str, int], _Maps]:
    n, channels, height, width = maps.shape
    out = _outputs(maps, channels, height - size + 1, width - size + 1)
    job = _common(maps, out) | {
        "METHOD": OFFSET_POOL, "BLOCKS": n * max(out.shape[2], 0), "POOL": size,
        "HEIGHT": out.shape[2], "WIDTH": out.shape[3],
    }  # fmt: skip
    return job, out


def _common(maps: _Maps, out: _Maps) -> dict[str, int]:
    n, outputs, height, width = out.shape
    return {
        "MAPS_IMAGE": maps.image, "MAPS_ROW": maps.row, "MAPS_COLUMN": maps.column, "MAPS_HEIGHT": maps.shape[2],
        "MAPS_WIDTH": maps.shape[3], "IN_CHANNELS": maps.shape[1], "CHANNELS": outputs, "FOLLOWERS": 0, "PANELS": 0,
        "IMAGES": n, "OUT_HEIGHT": height, "OUT_WIDTH": width,
    }  # fmt: skip


def _convolution_job(
    maps: _Maps, weight: Shape, window: Window, ratio: float, threads: int, tensors: list[Tensor]
) -> tuple[dict[str, int], _Maps]:
    (outputs, channels, k_y, k_x), d = weight, window.dilation
    if d == 1:
        run, taps = k_x * channels, [y * maps.row for y in range(k_y)]
    else:
        run, taps = channels, [d * (y * maps.row + x * maps.column) for y in range(k_y) for x in range(k_x)]
    height, width = _sides(maps.shape, weight, window)
    out = _outputs(maps, outputs, height // window.pool, width // window.pool)
    length = -(-outputs // COLUMNS) * COLUMNS
    addresses = torch.tensor(taps, device="cpu"), torch.zeros(length, dtype=torch.float32, device="cpu")
    tensors += addresses
    job = _common(maps, out) | {
        "STRIDE": window.stride, "DILATION": d, "POOL": window.pool, "RELU": int(window.relu), "KERNEL": k_y,
        "PANELS": length // COLUMNS, "NUM_TAPS": len(taps), "RUN": run, "HEIGHT": height, "WIDTH": width,
        "POSITIONS": maps.shape[0] * height * width, "TAPS": addresses[0].data_ptr(),
        "ZEROS": addresses[1].data_ptr(), "BIAS": addresses[1].data_ptr(),
    }  # fmt: skip
    tiling = _tiling(maps.shape, weight, window, ratio)
    if tiling is not None:
        tiles = maps.shape[0] * d * d * tiling.down * tiling.across
        job |= {"METHOD": FILTERED, "DOWN": tiling.down, "ACROSS": tiling.across, "TILES": tiles}
        job["SAVED"] = winograd.saved_macs(tiling, weight, d)
        in_cache = 4 * (OUTPUT_TILE + k_y - 1) ** 2 * channels * length <= CACHE_BYTES
        return job | _even_blocks(tiles, threads, 1 if in_cache else MAX_BLOCK), out
    if window.pool == 1:
        return job | {"METHOD": DIRECT} | _even_blocks(job["POSITIONS"], threads, MAX_BLOCK), out
    blocks = maps.shape[0] * out.shape[2] * -(-out.shape[3] // POOLED_PER_BLOCK)
    return job | {"METHOD": POOLED, "PER_BLOCK": POOLED_PER_BLOCK, "BLOCKS": blocks}, out


def _even_blocks(count: int, threads: int, largest: int) -> dict[str, int]:
    """`count` outputs or tiles in blocks of 1 to `largest` times the rows in registers."""
    rows = min(max(count // (ROWS * threads * BLOCKS_PER_THREAD), 1), largest)
    return {"PER_BLOCK": rows * ROWS, "BLOCKS": -(-count // (rows * ROWS))}


def _sides(maps: Shape, weight: Shape, window: Window) -> list[int]:
    """Height and width of the outputs before the pooling, of shapes."""
    reach = [(k - 1) * window.dilation for k in weight[2:]]
    return [(side - r - 1) // window.stride + 1 for side, r in zip(maps[2:], reach, strict=True)]


def _tiling(maps: Shape, weight: Shape, window: Window, ratio: float) -> winograd.Tiling | None:
    """The tiles of minimal filtering; None where it does not apply, or costs more than `ratio` of direct sums."""
    outputs, channels, k, _ = weight
    if not ratio or window.stride != 1 or not transformable(weight):
        return None
    if window.pool > 1 and (window.dilation > 1 or OUTPUT_TILE % window.pool):
        return None
    tiling = winograd.tiling(maps, k, window.dilation)
    tiles = tiling.images * window.dilation**2 * tiling.down * tiling.across
    tiles, positions = (-(-n // ROWS) * ROWS for n in (tiles, tiling.images * tiling.height * tiling.width))
    cost = tiles * (OUTPUT_TILE + k - 1) ** 2 * (outputs * channels + TRANSFORM_COST * (outputs + channels))
    direct = positions * k * k * outputs * channels
    return tiling if cost < ratio * direct else None


def _place(job: dict[str, int], chain: list[dict[str, int]]) -> int:
    """Set where a job's tables and values lie in a thread's memory; returns its bytes."""
    length, channels = 4 * job["PANELS"] * COLUMNS, 4 * job["IN_CHANNELS"]
    chunk = 4 * COLUMNS * max(later["PANELS"] for later in chain)
    outputs, tile, inputs = OUTPUT_TILE**2, 0, 0
    if job["METHOD"] == OFFSET_POOL:
        positions, values = 0, job["MAPS_WIDTH"] * channels
    elif job["METHOD"] == FILTERED:
        tile, inputs = OUTPUT_TILE**2, (OUTPUT_TILE + job["KERNEL"] - 1) ** 2
        positions = job["PER_BLOCK"] * outputs if len(chain) > 1 else 0
        values = positions * length
    else:
        size = job["POOL"] ** 2
        positions = job["PER_BLOCK"] * size
        values = positions * length if size > 1 or len(chain) > 1 else 0
    table, rows = 8 * (positions + ROWS), 8 * (max(CHUNK, OUTPUT_TILE**2) + ROWS)
    per_block = job.get("PER_BLOCK", 0) if inputs else 0
    areas = {
        "AT_POSITIONS": table, "AT_TARGETS": table, "AT_CHUNK_POSITIONS": rows, "AT_CHUNK_TARGETS": rows,
        "AT_OUTPUTS": values, "AT_CHUNKS": 2 * CHUNK * chunk if len(chain) > 2 else 0, "AT_TILE": tile * length,
        "AT_PADDED": inputs * channels, "AT_INPUTS": inputs * per_block * channels,
        "AT_PRODUCTS": inputs * per_block * length,
    }  # fmt: skip
    at = -(-TABLE_BYTES // 64) * 64
    for name, size in areas.items():
        job[name] = at
        at += -(-size // 64) * 64
    job["CHUNK_BYTES"] = CHUNK * chunk
    return at
