"""Large images in blocks: rectangles of output positions that are evaluated, and stored, one by one.

A block's result is one file: where it exists, the block is done, whichever process evaluated it.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from overfeat.data.resize import pad_color
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.context import context_tile, half_size
from overfeat.dense.evaluate import TileGroup, run_tiles
from overfeat.dense.grid import Grid, grids
from overfeat.dense.tiling import Pixels, Tile, cut_tile, tile_pixels, tiles_of
from overfeat.errors import InputError, check_flag
from overfeat.large.mask import Mask
from overfeat.large.readers.image import TileError
from overfeat.large.view import View
from overfeat.models.geometry import Size
from overfeat.models.net import Net
from overfeat.training.forecast import format_time

BLOCK = 2048  # pixels of the scaled image between neighbouring blocks, at most
MAX_PIXELS = 1 << 42  # of a view at one scale


@dataclass(frozen=True)
class Block:
    """Output positions [rows, columns] of a grid."""

    number: int  # in the plan before blocks were left out
    index: int  # of the grid
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Plan:
    """The blocks of a view, the same on every machine."""

    view: View
    grids: list[Grid]
    blocks: list[Block]
    skipped: float = 0.0  # fraction of the positions that see background alone, and are in no block

    def tile(self, block: Block) -> Tile:
        """The tile of all positions of a block."""
        return Tile(self.grids[block.index], block.index, slice(0, 1), block.rows, block.columns)


def plan_blocks(net: Net, view: View, config: DenseConfig, *, mask: bool = False) -> Plan:
    """Cut the positions of all grids into blocks.

    Args:
        config: Its memory limit does not change the blocks.
        mask: Whether positions that see background alone are left out, see `Mask`; a block is what encloses the others.
    """
    all_grids = grids(net, view.size, config, MAX_PIXELS)
    blocks: list[Block] = []
    for index, grid in enumerate(all_grids):
        for rows, columns in tiles_of(grid.shape, block_sides(grid)):
            blocks.append(Block(len(blocks), index, rows, columns))
    plan = Plan(view, all_grids, blocks)
    return _without_background(plan, Mask.of(view)) if mask else plan


def block_sides(grid: Grid) -> Size:
    """(rows, columns) of the blocks of a grid; the last ones may be smaller."""
    largest = max(1, BLOCK // grid.stride)
    rows, columns = (-(-length // -(-length // largest)) for length in grid.shape)
    return rows, columns


def _without_background(plan: Plan, mask: Mask) -> Plan:
    blocks = []
    for block in plan.blocks:
        inside = mask.rectangle(plan.grids[block.index], block.rows, block.columns)
        if inside is not None:
            blocks.append(replace(block, rows=inside[0], columns=inside[1]))
    kept = sum(plan.tile(block).num_positions for block in blocks)
    return replace(plan, blocks=blocks, skipped=1 - kept / sum(grid.num_positions for grid in plan.grids))


class Job(Protocol):
    """Work on a large image, block by block, in one process or many."""

    @property
    def plan(self) -> Plan:
        """Its blocks."""
        ...

    @property
    def folder(self) -> Path:
        """Where the results of blocks are."""
        ...

    def evaluate(self, block: Block) -> None:
        """Evaluate a block, and write its result to `block_path(folder, block)`."""
        ...

    def finish(self) -> Any:
        """The result of the image, once all blocks are done."""
        ...


def evaluate_pending(job: Job, blocks: Sequence[Block] | None = None, *, progress: bool = False) -> None:
    """Evaluate the blocks, by default all, that are not done; with `progress` there is a bar with a forecast."""
    check_flag("progress", progress)
    blocks = job.plan.blocks if blocks is None else blocks
    pending = pending_blocks(blocks, job.folder)
    for block in with_forecast(pending, len(blocks), progress):
        job.evaluate(block)


def with_forecast(blocks: Sequence[Block], total: int, progress: bool = True) -> Iterator[Block]:
    """The blocks, with a progress bar that forecasts when the last of them will be done."""
    from tqdm import tqdm

    done, hidden = total - len(blocks), None if progress else True
    bar = tqdm(blocks, initial=done, total=total, unit="block", disable=hidden, leave=False)
    start = time.perf_counter()
    for number, block in enumerate(bar):
        yield block
        seconds = (time.perf_counter() - start) / (number + 1) * (len(blocks) - number - 1)
        bar.set_postfix_str(f"done at about {format_time(datetime.now(), seconds)}", refresh=False)


def block_path(folder: Path, block: Block) -> Path:
    """The file of a block's result; it exists once the block is done."""
    return folder / f"{block.number:08d}.safetensors"


def pending_blocks(blocks: Sequence[Block], folder: Path) -> list[Block]:
    """The blocks that are not done."""
    return [block for block in blocks if not block_path(folder, block).exists()]


def read_metadata(path: Path) -> dict[str, list]:
    """What a block's file holds beside its values: "damaged", the messages of tiles that were left out, and others.

    Raises InputError for what is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: json.loads(text) for name, text in file.metadata().items()}
    except (OSError, SafetensorError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: no result of a block ({error}); delete it, and run again") from error


def left_out(plan: Plan, folder: Path) -> list[str]:
    """The messages of the damaged tiles that the blocks of an image, which are done, left out."""
    paths = [block_path(folder, block) for block in plan.blocks]
    return list(dict.fromkeys(message for path in paths for message in read_metadata(path)["damaged"]))


def warn_of_damage(plan: Plan, folder: Path) -> None:
    """A warning for each damaged tile that was left out."""
    for message in left_out(plan, folder):
        warnings.warn(f"left out: {message}", stacklevel=3)


def evaluate_block(
    net: Net, plan: Plan, block: Block, *, memory_limit: int = MEMORY_LIMIT, box_channels: int = 0,
    damaged: list[TileError] | None = None,
) -> Iterator[TileGroup]:  # fmt: skip
    """Evaluate a block, in tiles that fit the memory limit.

    Args:
        box_channels: Of a regressor.
        damaged: As in `LargeImage.read`.
    """
    tile = plan.tile(block)
    grid, half = tile.grid, half_size(net, tile.grid.scaled, tile.grid.margin)
    pixels = _pixels(net, plan.view, grid.scaled, tile, damaged)
    behind = None if half is None else _pixels(net, plan.view, half, context_tile(tile, half)[0], damaged)
    tiles = cut_tile(net, tile, memory_limit, box_channels)
    return run_tiles(net, tiles, lambda _: (pixels, behind), memory_limit, box_channels)


def _pixels(net: Net, view: View, size: Size, tile: Tile, damaged: list[TileError] | None) -> Pixels:
    """What a tile sees of a view resized to (height, width)."""
    spans, margin = tile_pixels(net, tile), tile.grid.margin
    inside = [
        slice(max(0, span.start - border), min(side, span.stop - border))
        for span, border, side in zip(spans, margin, size, strict=True)
    ]
    image: Tensor = view.scaled(size, net.in_channels).crop(inside[0], inside[1], damaged)
    (top, bottom), (left, right) = (
        (own.start - (span.start - border), span.stop - border - own.stop)
        for span, own, border in zip(spans, inside, margin, strict=True)
    )
    image = pad_color(image, (left, right, top, bottom), net.mean_color)
    return Pixels(image[None], size, (spans[0].start, spans[1].start))
