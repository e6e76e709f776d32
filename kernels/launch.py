"""How kernels are launched, as data: tile sizes by dtype, chip and shape, and what pools where.

`choose` is computed on the host, once a call, from tables in this file. `forced` sets what a test or a
tuning run wants. The tables were written from the chips' limits and the compiler's reports
(python -m bench.kernel_report); none of them has been measured on a GPU yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

FLAT = 1024  # elements a program of the elementwise kernels takes
SUM_ROWS, SUM_BLOCK, SUM_COLUMNS = 512, 32, 64  # rows a program sums; the tile it holds
INSIDE = 16  # places up to which pooling happens inside the product: there the weights' reading is all that counts
INSIDE_SIZE = 3  # of the pooling, at most: every tap is loaded size * size times into shared memory
MAX_SPLIT_K = 32  # programs that share a tile

Product = Literal["forward", "maps", "weight"]
Pool = Literal["apart", "inside"]


@dataclass(frozen=True)
class Tile:
    """What one program computes at a time, and how: rows x columns, k summands a step."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int = 8

    def options(self) -> dict[str, int]:
        """As a kernel takes it."""
        return {
            "BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k, "GROUP": self.group,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A launch.

    programs: in the grid. parts: programs that share a tile. even: a step takes tile.k channels everywhere, none
    is cut short. precision: of float32 products.
    """

    tile: Tile
    programs: int
    parts: int
    even: bool
    pool: Pool
    precision: Literal["ieee", "tf32"]


# By kind of arithmetic, then capability at least, then rows at most (the first that fits is taken).
# Shared memory: (m + n) * k * bytes * stages must stay below the chip's limit a program: 99 KB on 8.6, 8.9 and
# 12.0, 163 KB on 8.0, 227 KB on 9.0 and 10.0, 64 KB on AMD's. Pooling inside the product holds the maps
# size * size times.
ANY = 1 << 62
# Per multiprocessor, and of the chip: about what an H200 does. They weigh idle programs against the cost of sharing.
RATE = {"16 bit": 5e12, "tf32": 2.5e12, "ieee": 0.3e12}  # FLOP/s
BANDWIDTH = 4e12  # bytes/s
LARGE_SHARED = 200 * 1024
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
    "ieee": {
        (8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(64, 64, 16, warps=8, stages=2))],
    },
    "16 bit, inside": {
        (8, 0): [(16, Tile(16, 128, 64, warps=4, stages=2)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 64, warps=4, stages=3)), (ANY, Tile(64, 128, 32, warps=4, stages=3))],
    },
    "tf32, inside": {
        (8, 0): [(16, Tile(16, 128, 32, warps=4, stages=2)), (ANY, Tile(32, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 32, warps=4, stages=3)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
    },
    "ieee, inside": {
        (8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(32, 64, 16, warps=4, stages=2))],
    },
}
# Where channels are no multiple of 16, numbers are loaded one by one, which takes registers.
UNEVEN = Tile(64, 64, 32, warps=4, stages=3)
INTERPRETED = Tile(16, 32, 16, warps=4, stages=1, group=2)
INTERPRETED_PROGRAMS = 6


@dataclass(frozen=True)
class MergeTile:
    """How groups of up to `most` boxes are merged: a program each, which holds `block` boxes at a time.

    tiled: the rest of the group waits in memory; otherwise the block is the group.
    """

    most: int
    block: int
    warps: int
    tiled: bool = False


# A box takes 14 registers, twice as many in float64, and the scores in between as many again.
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
ROWS_BLOCK, ROWS_COLUMNS, ROWS_WARPS = 16, 32, 4  # boxes whose partners a program finds, among how many at a time

_forced: dict[str, object] = {}


@contextmanager
def forced(
    tile: Tile | None = None, parts: int | None = None, pool: Pool | None = None, programs: int | None = None
) -> Iterator[None]:
    """Launch every product with these inside the block, whatever `choose` would say. programs: at most, in the grid."""
    global _forced
    before, given = _forced, {"tile": tile, "parts": parts, "pool": pool, "programs": programs}
    _forced = {name: value for name, value in given.items() if value is not None}
    try:
        yield
    finally:
        _forced = before


def choose(
    product: Product, dtype: torch.dtype, device: torch.device, m: int, n: int, taps: int, inner: int, size: int
) -> Plan:
    """How to launch a product of m x n, summed over `taps` runs of `inner` numbers, for pooling of this size."""
    precision = _precision() if dtype == torch.float32 else "ieee"
    inside = m <= INSIDE and size <= INSIDE_SIZE and inner % 16 == 0
    pool = _forced.get("pool") or ("inside" if inside else "apart")
    kind = arithmetic(dtype, precision)
    if device.type == "cpu":
        tile, programs = INTERPRETED, INTERPRETED_PROGRAMS
    else:
        capability, programs = _chip(device)
        listed = tiles(f"{kind}, inside" if (product, pool) == ("forward", "inside") else kind, capability)
        tile = next(tile for most, tile in listed if m <= most)
        while product != "weight" and inner % tile.k and tile.k > 16:
            tile = replace(tile, k=tile.k // 2)
        if product != "weight" and inner % tile.k:
            tile = UNEVEN
    tile = _forced.get("tile") or tile
    programs = _forced.get("programs") or programs
    work = -(-m // tile.m) * -(-n // tile.n)
    parts = 1
    if product == "forward":  # the gradients have tiles enough
        parts = _forced.get("parts") or _parts(work, taps * -(-inner // tile.k), programs, m * n, tile, kind)
    if product == "weight":
        work *= taps
    return Plan(tile, min(work * parts, programs), parts, inner % tile.k == 0, pool, precision)


def _precision() -> Literal["ieee", "tf32"]:
    """That of float32 products, by torch's setting; it has an old and a new way of setting, which do not mix."""
    found = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if found == "none":
        found = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "ieee" if found == "ieee" else "tf32"


def _parts(work: int, steps: int, programs: int, results: int, tile: Tile, kind: str) -> int:
    """Programs that share a tile, so that the last round leaves few idle, less what sharing costs.

    Sharing writes and reads every result once more a part, in float32.
    """
    step = 2 * tile.m * tile.n * tile.k / RATE[kind]

    def seconds(parts: int) -> float:
        rounds = -(-work * parts // programs)
        return rounds * -(-steps // parts) * step + (8 * parts * results / BANDWIDTH if parts > 1 else 0)

    return min(range(1, min(MAX_SPLIT_K, steps) + 1), key=seconds)


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """The kind of arithmetic in TILES: "16 bit", or for float32 the precision of products."""
    return precision if dtype == torch.float32 else "16 bit"


def tiles(kind: str, capability: tuple[int, int]) -> list[tuple[int, Tile]]:
    """For a kind of arithmetic and a chip: rows at most, and the tile."""
    return TILES[kind][max(known for known in TILES[kind] if known <= capability)]


@contextmanager
def on_chip(capability: tuple[int, int], multiprocessors: int) -> Iterator[None]:
    """Choose for this chip inside the block, whatever is there: for compiling without a GPU."""
    global _chip
    before, _chip = _chip, lambda device: (capability, multiprocessors)
    try:
        yield
    finally:
        _chip = before


@lru_cache
def _chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """Whose row of TILES to take, and multiprocessors: one program each fills the chip."""
    properties = torch.cuda.get_device_properties(device)
    # AMD's chips and the smaller ones of NVIDIA's, up to 12.0, have too little shared memory for the tiles of 9.0.
    large = torch.version.hip is None and properties.shared_memory_per_block_optin >= LARGE_SHARED
    capability = (properties.major, properties.minor) if large else (8, 0)
    return capability, properties.multi_processor_count
