"""How kernels are launched, as data: tile sizes by dtype, chip and shape, and where pooling happens.

`choose` takes the variant that is the cheapest by cost_model.py, with constants that were measured on the device
(tuned.py) or estimates; `override` forces a choice for tests and tuning. The tables in this file were derived from the
chips' limits and the compiler's reports (python -m bench.kernel_report); none has been measured on a GPU yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton

from overfeat.kernels import cost_model, tuned
from overfeat.kernels.cost_model import OURS, VARIANTS, Constants, gemm_sizes, unsupported_reason
from overfeat.kernels.plan import ANY, Gemm, Plan, Pool, Precision, Tile, Variant, arithmetic
from overfeat.kernels.problem import Problem

REDUCE_BLOCK = 2048  # elements a program of split_k_reduce_kernel sums
SUM_ROWS, SUM_BLOCK_M, SUM_BLOCK_N = 512, 32, 64  # rows a program of relu_backward_kernel sums; its tile
# Pooling is fused into the GEMM up to so many rows: there only the reading of the weights counts.
FUSED_MAX_ROWS = 16
FUSED_MAX_SIZE = 3  # of the pooling: every tap is loaded size * size times into shared memory
MAX_SPLIT_K = 32

LARGE_SHARED = 200 * 1024
# By kind of arithmetic, then minimum capability, then maximum rows (the first that fits is used).
# Shared memory: (m + n) * k * bytes * stages must stay below the chip's limit a program: 99 KB on 8.6, 8.9 and
# 12.0, 163 KB on 8.0, 227 KB on 9.0 and 10.0, 64 KB on AMD's. Fused pooling holds the maps size * size times.
# Two programs a multiprocessor keep more loads in flight where only the reading of the weights counts.
TILES: dict[str, dict[tuple[int, int], list[tuple[int, Tile]]]] = {
    "16 bit": {
        (8, 0): [
            (16, Tile(16, 128, 128, warps=4, stages=2)),
            (64, Tile(64, 64, 128, warps=4, stages=3)),
            (ANY, Tile(128, 128, 32, warps=4, stages=4)),
        ],
        (9, 0): [
            (16, Tile(16, 128, 128, warps=4, stages=4, programs=2)),
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
            (16, Tile(16, 128, 64, warps=4, stages=4, programs=2)),
            (64, Tile(64, 128, 64, warps=4, stages=3)),
            (ANY, Tile(128, 128, 32, warps=8, stages=4)),
        ],
    },
    "ieee": {(8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(64, 64, 16, warps=8, stages=2))]},
    "16 bit, fused": {
        (8, 0): [(16, Tile(16, 128, 64, warps=4, stages=2)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 64, warps=4, stages=4, programs=2)), (ANY, Tile(64, 128, 32, warps=4, stages=3))],
    },
    "tf32, fused": {
        (8, 0): [(16, Tile(16, 128, 32, warps=4, stages=2)), (ANY, Tile(32, 128, 32, warps=4, stages=2))],
        (9, 0): [(16, Tile(16, 128, 32, warps=4, stages=4, programs=2)), (ANY, Tile(64, 128, 32, warps=4, stages=2))],
    },
    "ieee, fused": {(8, 0): [(16, Tile(16, 64, 32, warps=4, stages=2)), (ANY, Tile(32, 64, 16, warps=4, stages=2))]},
}
LOAD = 16  # bytes: the widest load; channels that are a multiple of it are loaded so, with masks
# For other channels: masked loads of single elements need registers.
UNEVEN_TILE = Tile(64, 64, 32, warps=4, stages=3)
INTERPRETED_TILE = Tile(16, 32, 16, warps=4, stages=1, group_m=2)
INTERPRETED_PROGRAMS = 6
INTERPRETED_CAPABILITY = (8, 0)
DESCRIPTOR_STAGES = 4  # at least: the weight's loads need no registers
MAX_GROUP_M = 16  # so many rows of tiles read the weight once


@dataclass(frozen=True)
class MergeTile:
    """How groups of up to `max_boxes` boxes are merged: one program a group, which holds `block` boxes at a time.

    Attributes:
        levels: how many block sizes a program has, each half of the one before: the boxes left fit a smaller one.
        registers: of a thread at most, for two groups on a multiprocessor of 65,536; NVIDIA's alone.
        tiled: the state of the group stays in memory; otherwise the block holds the whole group in registers.
    """

    max_boxes: int
    block: int
    warps: int
    levels: int = 1
    registers: int | None = None
    tiled: bool = False

    def options(self, device: torch.device) -> dict[str, int]:
        """The kernel's keyword arguments; the interpreter and AMD's compiler have no limit of registers."""
        options = {"BLOCK": self.block, "num_warps": self.warps}
        if self.registers is None or device.type == "cpu":
            return options
        backend = triton.runtime.driver.active.get_current_target().backend
        return options | ({"maxnreg": self.registers} if backend == "cuda" else {})


# A box needs 7 registers, twice as many in float64, and intermediate scores as many again. Few warps, with more boxes a
# thread, compute less, and several groups share a multiprocessor.
MERGE_TILES = {
    torch.float32: (
        MergeTile(64, 64, warps=1),
        MergeTile(256, 256, warps=2, levels=2),
        MergeTile(1024, 1024, warps=4, levels=3),
        MergeTile(2048, 2048, warps=8, levels=3, registers=128),
        MergeTile(ANY, 1024, warps=16, tiled=True),
    ),
    torch.float64: (
        MergeTile(64, 64, warps=2),
        MergeTile(256, 256, warps=4, levels=2),
        MergeTile(1024, 1024, warps=8, levels=3),
        MergeTile(ANY, 512, warps=8, tiled=True),
    ),
}
# best_partner_kernel: boxes of a program, and candidates at a time.
PARTNER_BLOCK_M, PARTNER_BLOCK_N, PARTNER_WARPS = 16, 32, 4


@dataclass(frozen=True)
class Override:
    """Launch options that replace the choice of `choose`; num_programs is a maximum.

    A variant holds for the GEMMs that have it. The other options are of our own GEMM: without a variant, of direct.
    """

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


def choose(gemm: Gemm, problem: Problem, without: frozenset[Variant] = frozenset()) -> Plan:
    """How to launch one of the GEMMs of a problem that has positions; not with a variant of `without`.

    A repeated call costs a look-up. Raises ValueError if an override forces a variant that does not do the problem.
    """
    precision = _precision() if problem.dtype == torch.float32 else "ieee"
    return _choose(gemm, problem, without, active_override(), precision, _assumed_chip.get())


def seconds(gemm: Gemm, problem: Problem, plan: Plan) -> float:
    """The estimated time of a launch on the problem's device."""
    return cost_model.seconds(gemm, problem, plan, capability_and_constants(problem.device, _assumed_chip.get())[1])


@lru_cache(maxsize=4096)
def _choose(
    gemm: Gemm, problem: Problem, without: frozenset[Variant], forced: Override, precision: Precision,
    assumed: tuple[tuple[int, int], int] | None,
) -> Plan:  # fmt: skip
    capability, constants = capability_and_constants(problem.device, assumed)
    variants = [v for v in VARIANTS[gemm] if v not in without and not unsupported_reason(v, gemm, problem, capability)]
    if forced.variant in VARIANTS[gemm]:
        if reason := unsupported_reason(forced.variant, gemm, problem, capability):
            raise ValueError(f"variant {forced.variant!r} cannot be forced: {reason}")
        variants = [forced.variant]
    elif problem.device.type == "cpu" or forced.tile or forced.split_k or forced.pool or forced.num_programs:
        variants = ["direct"]
    else:
        variants = [v for v in variants if not cost_model.only_by_override(v, problem)]
    plans = [_plan(gemm, problem, variant, forced, precision, capability, constants) for variant in variants]
    return min(plans, key=lambda plan: cost_model.seconds(gemm, problem, plan, constants))


def _plan(
    gemm: Gemm, problem: Problem, variant: Variant, forced: Override, precision: Precision,
    capability: tuple[int, int], constants: Constants,
) -> Plan:  # fmt: skip
    """The launch of one variant."""
    m, n, summands = gemm_sizes(gemm, problem)
    fused = variant in OURS and m <= FUSED_MAX_ROWS and problem.size <= FUSED_MAX_SIZE
    pool: Pool = forced.pool or ("fused" if fused and summands % 16 == 0 else "separate")
    tile = forced.tile
    if tile is None and problem.device.type == "cpu":
        tile = _interpreted_tile(m, n, summands)
    elif tile is None:
        kind = arithmetic(problem.dtype, precision)
        kind = f"{kind}, fused" if (gemm, pool) == ("forward", "fused") else kind
        tile = _tile(gemm, variant, constants.tiles.get(kind) or tiles(kind, capability), problem, m)
    programs = forced.num_programs or constants.multiprocessors * tile.programs
    work = -(-m // tile.m) * -(-n // tile.n) * (problem.taps if gemm == "weight" else 1)
    plan = Plan(tile, min(work, programs), 1, summands % tile.k == 0, pool, precision, variant)
    if gemm != "forward" or variant not in OURS:  # the gradients have tiles enough
        return plan
    steps = problem.taps * -(-summands // tile.k)
    plans = [
        replace(plan, split_k=split_k, num_programs=min(work * split_k, programs))
        for split_k in ([forced.split_k] if forced.split_k else range(1, min(MAX_SPLIT_K, steps) + 1))
    ]
    return min(plans, key=lambda plan: cost_model.roofline(gemm, problem, plan, constants))


def _interpreted_tile(m: int, n: int, channels: int) -> Tile:
    """A small tile, so that small GEMMs have several; larger for larger ones, since a step takes equally long."""
    tile = INTERPRETED_TILE
    rows = tile.m if m <= 64 else 128 if m <= 512 else 512
    return replace(tile, m=rows, n=tile.n if n <= 128 else 128, k=tile.k if channels <= 64 else 64)


def _tile(gemm: Gemm, variant: Variant, table: list[tuple[int, Tile]], problem: Problem, m: int) -> Tile:
    """The tile of a table, made to fit the number of rows and of channels."""
    tile = next(tile for max_rows, tile in table if m <= max_rows)
    if gemm == "weight":  # its sum goes over positions, with masks
        return replace(tile, warps=8 if tile.m >= 128 else tile.warps)
    if tile.group_m * tile.m < m <= MAX_GROUP_M * tile.m:
        tile = replace(tile, group_m=MAX_GROUP_M)
    if variant == "descriptor" and tile.programs == 1:
        tile = replace(tile, stages=max(tile.stages, DESCRIPTOR_STAGES))
    if problem.channels % 16 == 0:
        while problem.channels % tile.k and tile.k > 16:
            tile = replace(tile, k=tile.k // 2)
    elif problem.channels * problem.dtype.itemsize % LOAD:
        tile = UNEVEN_TILE
    return tile


def _precision() -> Precision:
    """The precision of float32 GEMMs by torch's setting, which has an old and a new interface that do not mix."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting == "none":
        setting = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "ieee" if setting == "ieee" else "tf32"


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


def clear_cache() -> None:
    """Forget all choices, and what was read about devices."""
    _choose.cache_clear()
    _stored.cache_clear()


def capability_and_constants(
    device: torch.device, assumed: tuple[tuple[int, int], int] | None = None
) -> tuple[tuple[int, int], Constants]:
    """The capability whose tables apply, and the constants of the device or of an assumed chip."""
    if assumed:
        return assumed[0], cost_model.defaults(*assumed)
    if device.type == "cpu":
        return INTERPRETED_CAPABILITY, cost_model.defaults(INTERPRETED_CAPABILITY, INTERPRETED_PROGRAMS)
    return _chip(device)[0], _stored(device) or cost_model.defaults(*_chip(device))


@lru_cache
def _stored(device: torch.device) -> Constants | None:
    """What was measured on a device: its file is read once."""
    return tuned.read(device)


@lru_cache
def _chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """The capability whose tables apply, and the multiprocessors."""
    properties: Any = torch.cuda.get_device_properties(device)
    # AMD's chips, and NVIDIA's smaller ones up to 12.0, have too little shared memory for the tiles of 9.0.
    large = torch.version.hip is None and properties.shared_memory_per_block_optin >= LARGE_SHARED
    capability = (properties.major, properties.minor) if large else (8, 0)
    return capability, properties.multi_processor_count
