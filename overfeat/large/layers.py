"""The output of a layer for a large image, written to a file block by block."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense.config import MEMORY_LIMIT
from overfeat.dense.grid import Grid
from overfeat.dense.layer_output import find_layer, layer_tiles
from overfeat.dense.tiling import tiles_of
from overfeat.errors import InputError
from overfeat.large.blocks import BLOCK, Block, Plan, pending_blocks, with_forecast
from overfeat.large.config import LargeConfig
from overfeat.large.detect import claim_folder, describe, digest
from overfeat.large.map_blocks import (
    check_map_path,
    finish_maps,
    in_image,
    make_map_files,
    map_path,
    mark_done,
    warn_of_damage,
)
from overfeat.large.map_file import MapFile
from overfeat.large.open import open_image
from overfeat.large.reader import LargeImage, TileError
from overfeat.large.view import View
from overfeat.models.layers import NetLayer
from overfeat.models.net import Net, eval_mode
from overfeat.models.wrappers import as_net

BLOCK_BYTES = 1 << 26  # of a block's cells, at most about


def write_layer_output(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, path: str | os.PathLike, *, layer: str | None = None,
    stride: Any = None, memory_limit: int = MEMORY_LIMIT, large: LargeConfig | None = None,
    folder: str | os.PathLike | None = None, progress: bool = False, channels: Sequence[int] | None = None,
    value_range: ValueRange | None = None,
) -> tuple[int, int, int]:  # fmt: skip
    """Write the output of a layer for an image of any size as OME-Zarr, float32; returns (channels, height, width).

    The array equals that of `dense.layer_output` for the image in memory.

    Args:
        net: A built-in or converted net.
        image, large, folder, progress, channels, value_range: As in `write_score_maps`; a mask leaves nothing out here.
        path: A new folder that ends in .zarr.
        layer, stride: See `find_layer`.
        memory_limit: Bytes for intermediate maps.

    Raises:
        InputError: As `find_layer` and `open_image`; for a file that exists, a folder of other arguments, and an image
            below the net's window.
        WriteError: Where a file cannot be written; the blocks that are done are kept.
    """
    net, config, target = as_net(net), large or LargeConfig(), Path(path)
    if target.suffix.lower() != ".zarr":
        raise InputError(f"{target}: the output of a layer is written as .zarr; name a folder that ends so")
    name, own = find_layer(net, layer, stride)
    work = target.with_name(f".blocks-{target.name}") if folder is None else Path(folder)
    opened = open_image(image, channels=channels, value_range=value_range)
    plan, count = plan_layer(net, own, View.of(opened, config))
    check_map_path(target, work)
    claim_folder(work, {**describe(plan), "net": digest(net), "layer": name, "stride": stride})
    if not target.exists():
        prepare_layer(own, plan, count, work, name)
    for block in with_forecast(pending_blocks(plan, work), len(plan.blocks), progress):
        layer_block(net, own, plan, block, work, memory_limit=memory_limit, strict=config.strict)
    warn_of_damage(work, plan.blocks)
    finish_maps(work, plan.grids, opened, target)
    shutil.rmtree(work, ignore_errors=True)
    return count, *plan.grids[0].shape


def plan_layer(net: Net, layer: NetLayer, view: View) -> tuple[Plan, int]:
    """The blocks of a layer's map, with its `pad`, and its number of channels.

    The plan's only grid has a position for each cell. Raises InputError for a view below the net's window.
    """
    if not net.geometry.fits(view.size):
        (height, width), window = view.size, net.geometry.window
        problem = f"{view.image.name}: {height}x{width} px is smaller than the {net.geometry.name} net's window"
        raise InputError(f"{problem} of {window[0]}x{window[1]}; choose a larger region or a finer level")
    spans = [layer.input_span(axis, side, slice(0, 1)) for axis, side in enumerate(view.size)]
    sides = [span.stop - span.start for span in spans]
    with torch.no_grad(), eval_mode(net):
        count = layer.run(torch.zeros(1, net.in_channels, *sides, device=net.device), spans[0], spans[1]).shape[1]
    rows, columns = (layer.num_outputs(axis, side) + 2 * layer.pad for axis, side in enumerate(view.size))
    grid = Grid(window=(1, 1), stride=1, scaled=(rows, columns), image=view.size)
    side = max(1, min(BLOCK // layer.positions(0)[1], math.isqrt(BLOCK_BYTES // (4 * count))))
    down, across = (-(-length // -(-length // side)) for length in (rows, columns))
    blocks = [Block(number, 0, *cells) for number, cells in enumerate(tiles_of(grid.shape, (down, across)))]
    return Plan(view, [grid], blocks), count


def prepare_layer(layer: NetLayer, plan: Plan, channels: int, folder: Path, name: int | str) -> None:
    """Make the file that `layer_block` writes to, unless it exists; several processes may do so at once."""
    (down, step_down), (across, step_across) = layer.positions(0), layer.positions(1)
    first, step = (down - layer.pad * step_down, across - layer.pad * step_across), (step_down, step_across)
    positions = in_image(plan.view, plan.grids[0].shape, first, step)
    block = plan.blocks[0]
    make_map_files(
        folder, plan.grids, [positions], channels, [(block.rows.stop, block.columns.stop)], [{"layer": name}]
    )


def layer_block(
    net: Net, layer: NetLayer, plan: Plan, block: Block, folder: Path, *, memory_limit: int = MEMORY_LIMIT,
    strict: bool = False,
) -> None:  # fmt: skip
    """Evaluate a block of a layer's map and write its cells.

    strict: Whether a damaged tile of the image raises its TileError; else cells that depend on it are NaN.
    """
    size, pad = plan.view.size, layer.pad
    pixels = plan.view.scaled(size, net.in_channels)
    damaged = None if strict else list[TileError]()

    def crop(rows: slice, columns: slice) -> Tensor:
        return pixels.crop(rows, columns, damaged)[None]

    lengths = [layer.num_outputs(axis, side) for axis, side in enumerate(size)]
    rows, columns = (
        slice(max(0, part.start - pad), max(0, min(length, part.stop - pad)))
        for part, length in zip((block.rows, block.columns), lengths, strict=True)
    )
    file = MapFile(map_path(folder, plan.grids, 0))
    shape = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
    values = np.zeros((file.levels[0].shape[0], *shape), np.float32)
    top, left = block.rows.start - pad, block.columns.start - pad
    if rows.stop > rows.start and columns.stop > columns.start:
        for down, across, tile in layer_tiles(net, layer, size, (rows, columns), crop, memory_limit):
            values[:, down.start - top : down.stop - top, across.start - left : across.stop - left] = tile.cpu()
    for box in plan.view.boxes_of(damaged or []).tolist():
        hit = [
            _depend(layer, axis, size[axis], part, box[1 - axis], box[3 - axis])
            for axis, part in enumerate((rows, columns))
        ]
        down, across = (slice(part.start - first, part.stop - first) for part, first in ((rows, top), (columns, left)))
        values[:, down, across][:, np.outer(*hit)] = np.nan
    file.write(block.rows, block.columns, values)
    mark_done(folder, block, {}, damaged)


def _depend(layer: NetLayer, axis: int, length: int, cells: slice, low: float, high: float) -> np.ndarray:
    """Which cells of a layer's map depend on pixels low:high of an axis."""
    spans = [layer.input_span(axis, length, slice(cell, cell + 1)) for cell in range(cells.start, cells.stop)]
    return np.array([span.start < high and span.stop > low for span in spans])
