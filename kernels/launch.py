"""How kernels are launched, as data: tile sizes by dtype, chip and shape, and where pooling happens.

`choose` is computed on the host at each call, from the tables in this file; `override` forces a choice for tests and
tuning. The tables were derived from the chips' limits and the compiler's reports (python -m bench.kernel_report); none
has been measured on a GPU yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from overfeat.kernels.plan import Gemm, Plan, Pool, Precision, Tile, Variant
from overfeat.kernels.problem import Problem

REDUCE_BLOCK = 2048  # elements a program of split_k_reduce_kernel sums
SUM_ROWS, SUM_BLOCK_M, SUM_BLOCK_N = 512, 32, 64  # rows a program of relu_backward_kernel sums; its tile
# Pooling is fused into the GEMM up to so many rows: there only the reading of the weights counts.
FUSED_MAX_ROWS = 16
FUSED_MAX_SIZE = 3  # of the pooling: every tap is loaded size * size times into shared memory
MAX_SPLIT_K = 32

ANY = 1 << 62
# Per multiprocessor, and of the chip: about those of an H200. They weigh idle programs against the cost of split-K.
FLOPS = {"16 bit": 5e12, "tf32": 2.5e12, "ieee": 0.3e12}  # FLOP/s
BANDWIDTH = 4e12  # bytes/s
LARGE_SHARED = 200 * 1024
# By kind of arithmetic, then minimum capability, then maximum rows (the first that fits is used).
# Shared memory: (m + n) * k * bytes * stages must stay below the chip's limit a program: 99 KB on 8.6, 8.9 and
# 12.0, 163 KB on 8.0, 227 KB on 9.0 and 10.0, 64 KB on AMD's. Fused pooling holds the maps size * size times.
TILES: dict[str, dict[tuple[int, int], list[tuple[int, Tile]]]] = {
    "16 bit": {
        (8, 0): [
            (16, Tile(16, 128, 128, warps=4, stages=2)),
            (64, Tile(64, 64, 128, warps=4, stages=3)),
            (ANY, Tile(128, 128, 32, warps=4, stages=4)),
        ],
        (9, 0): [
            (16, Tile(16, 128, 128, warps=4, stages=4)),
            (64, Tile(64, 128, 128, warps=4, stages=4)),
            (ANY, Tile(128, 256, 64, warps=8, stages=3)),
        ],
    },
    "tf32": {
        (8, 0): [
            (16, Tile(16, 128, 64, warps=4, stages=2)),
            (64, Tile(64, 64, 64, warps=4, stages=2)),
            (ANY, Tile(128, 128, 32, warps=8, stages=3)),
        ],
        (9, 0): [
            (16, Tile(16, 128, 64, warps=4, stages=4)),
            (64, Tile(64, 128, 64, warps=4, stages=3)),
            (ANY, Tile(128, 128, 32, warps=8, stages=4)),
        ],
    },
    "ieee": {(8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(64, 64, 16, warps=8, stages=2))]},
    "16 bit, fused": {
        (8, 0): [(16, Tile(16, 128, 64, warps=4, stages=2)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 64, warps=4, stages=3)), (ANY, Tile(64, 128, 32, warps=4, stages=3))],
    },
    "tf32, fused": {
        (8, 0): [(16, Tile(16, 128, 32, warps=4, stages=2)), (ANY, Tile(32, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 32, warps=4, stages=3)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
    },
    "ieee, fused": {(8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(32, 64, 16, warps=4, stages=2))]},
}
# For channels that are no multiple of 16: masked loads of single elements need registers.
UNEVEN_TILE = Tile(64, 64, 32, warps=4, stages=3)
INTERPRETED_TILE = Tile(16, 32, 16, warps=4, stages=1, group_m=2)
INTERPRETED_PROGRAMS = 6


@dataclass(frozen=True)
class MergeTile:
    """How groups of up to `max_boxes` boxes are merged: one program a group, which holds `block` boxes at a time.

    tiled: the state of the group stays in memory; otherwise the block holds the whole group in registers.
    """

    max_boxes: int
    block: int
    warps: int
    tiled: bool = False


# A box needs 14 registers, twice as many in float64, and intermediate scores as many again.
MERGE_TILES = {
    torch.float32: (
        MergeTile(64, 64, warps=1),
        MergeTile(256, 256, warps=2),
        MergeTile(1024, 1024, warps=8),
        MergeTile(2048, 2048, warps=16),
        MergeTile(ANY, 1024, warps=16, tiled=True),
    ),
    torch.float64: (
        MergeTile(64, 64, warps=2),
        MergeTile(256, 256, warps=4),
        MergeTile(1024, 1024, warps=8),
        MergeTile(ANY, 1024, warps=16, tiled=True),
    ),
}
# best_partner_kernel: boxes of a program, and candidates at a time.
PARTNER_BLOCK_M, PARTNER_BLOCK_N, PARTNER_WARPS = 16, 32, 4


@dataclass(frozen=True)
class Override:
    """Launch options that replace the choice of `choose`; num_programs is a maximum."""

    tile: Tile | None = None
    split_k: int | None = None
    pool: Pool | None = None
    num_programs: int | None = None
    variant: Variant | None = None


_override: ContextVar[Override] = ContextVar("overfeat_launch", default=Override())  # noqa: B039  frozen
_assumed_chip: ContextVar[tuple[tuple[int, int], int] | None] = ContextVar("overfeat_chip", default=None)


@contextmanager
def override(
    tile: Tile | None = None, split_k: int | None = None, pool: Pool | None = None, num_programs: int | None = None,
    variant: Variant | None = None,
) -> Iterator[None]:  # fmt: skip
    """Launch every GEMM of this thread with these options inside the block, see `Override`; None leaves the choice."""
    token = _override.set(Override(tile, split_k, pool, num_programs, variant))
    try:
        yield
    finally:
        _override.reset(token)


def active_override() -> Override:
    """The options of the innermost `override` block."""
    return _override.get()


def choose(gemm: Gemm, problem: Problem) -> Plan:
    """How to launch one of the GEMMs of a problem."""
    m, n, summands = {
        "forward": (problem.positions, problem.outputs, problem.channels),
        "input": (problem.pooled_positions, problem.channels, problem.outputs),
        "weight": (problem.outputs, problem.channels, problem.positions),
    }[gemm]  # each output is a sum over taps * summands, which are contiguous in memory except for "weight"
    taps, dtype = problem.taps, problem.dtype
    forced = active_override()
    precision = _precision() if dtype == torch.float32 else "ieee"
    fused = m <= FUSED_MAX_ROWS and problem.size <= FUSED_MAX_SIZE and summands % 16 == 0
    pool: Pool = forced.pool or ("fused" if fused else "separate")
    kind = arithmetic(dtype, precision)
    if problem.device.type == "cpu":
        tile, num_programs = _interpreted_tile(m, n, summands), INTERPRETED_PROGRAMS
    else:
        tile, num_programs = _tile_and_programs(gemm, problem.device, kind, pool, m, summands)
    tile = forced.tile or tile
    num_programs = forced.num_programs or num_programs
    work = -(-m // tile.m) * -(-n // tile.n)
    split_k = 1
    if gemm == "forward":  # the gradients have tiles enough
        steps = taps * -(-summands // tile.k)
        split_k = forced.split_k or _choose_split_k(work, steps, num_programs, m * n, tile, kind)
    if gemm == "weight":
        work *= taps
    even_k = summands % tile.k == 0
    return Plan(tile, min(work * split_k, num_programs), split_k, even_k, pool, precision, forced.variant or "direct")


def _interpreted_tile(m: int, n: int, channels: int) -> Tile:
    """A small tile, so that small GEMMs have several; larger for larger ones, since a step takes equally long."""
    tile = INTERPRETED_TILE
    rows = tile.m if m <= 64 else 128 if m <= 512 else 512
    return replace(tile, m=rows, n=tile.n if n <= 128 else 128, k=tile.k if channels <= 64 else 64)


def _tile_and_programs(
    gemm: Gemm, device: torch.device, kind: str, pool: Pool, m: int, channels: int
) -> tuple[Tile, int]:
    """The tile of the tables, and as many programs as fill the chip."""
    capability, num_programs = _chip(device)
    table = tiles(f"{kind}, fused" if (gemm, pool) == ("forward", "fused") else kind, capability)
    tile = next(tile for max_rows, tile in table if m <= max_rows)
    if gemm == "weight":  # its sum goes over positions, with masks
        return tile, num_programs
    while channels % tile.k and tile.k > 16:
        tile = replace(tile, k=tile.k // 2)
    return UNEVEN_TILE if channels % tile.k else tile, num_programs


def _precision() -> Precision:
    """The precision of float32 GEMMs by torch's setting, which has an old and a new interface that do not mix."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting == "none":
        setting = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "ieee" if setting == "ieee" else "tf32"


def _choose_split_k(work: int, steps: int, num_programs: int, outputs: int, tile: Tile, kind: str) -> int:
    """The split-K factor with the least estimated time.

    Splitting leaves fewer programs idle in the last wave, but writes and reads every output once more for each
    split, in float32.
    """
    step = 2 * tile.m * tile.n * tile.k / FLOPS[kind]

    def seconds(split_k: int) -> float:
        waves = -(-work * split_k // num_programs)
        reduction = 8 * split_k * outputs / BANDWIDTH if split_k > 1 else 0
        return waves * -(-steps // split_k) * step + reduction

    return min(range(1, min(MAX_SPLIT_K, steps) + 1), key=seconds)


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """The kind of arithmetic in TILES: "16 bit", or for float32 the precision of GEMMs."""
    return precision if dtype == torch.float32 else "16 bit"


def tiles(kind: str, capability: tuple[int, int]) -> list[tuple[int, Tile]]:
    """For a kind of arithmetic and a chip: maximum rows, and the tile."""
    return TILES[kind][max(known for known in TILES[kind] if known <= capability)]


@contextmanager
def on_chip(capability: tuple[int, int], multiprocessors: int) -> Iterator[None]:
    """Choose for this chip inside the block, whatever the device: for compiling without a GPU."""
    token = _assumed_chip.set((capability, multiprocessors))
    try:
        yield
    finally:
        _assumed_chip.reset(token)


def _chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """The capability whose tables apply, and the multiprocessors: one program each fills the chip."""
    return _assumed_chip.get() or _actual_chip(device)


@lru_cache
def _actual_chip(device: torch.device) -> tuple[tuple[int, int], int]:
    properties: Any = torch.cuda.get_device_properties(device)
    # AMD's chips, and NVIDIA's smaller ones up to 12.0, have too little shared memory for the tiles of 9.0.
    large = torch.version.hip is None and properties.shared_memory_per_block_optin >= LARGE_SHARED
    capability = (properties.major, properties.minor) if large else (8, 0)
    return capability, properties.multi_processor_count
