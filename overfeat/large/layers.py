"""The output of a layer for a large image, written to a file block by block."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.grid import Grid
from overfeat.dense.layer_output import find_layer, layer_tiles
from overfeat.dense.tiling import tiles_of
from overfeat.errors import InputError
from overfeat.large.block_folder import claim_folder, weights_digest
from overfeat.large.blocks import BLOCK, Block, Plan, evaluate_pending, warn_of_damage
from overfeat.large.config import LargeConfig, as_large_config, as_path
from overfeat.large.map_blocks import (
    check_map_path,
    finish_maps,
    in_image,
    make_map_files,
    map_path,
    mark_done,
    sole_writer,
    unfinished,
)
from overfeat.large.map_file import MapFile
from overfeat.large.readers.image import LargeImage, TileError
from overfeat.large.readers.open import open_image
from overfeat.large.view import View
from overfeat.models.geometry import Stride
from overfeat.models.layers import NetLayer
from overfeat.models.net import Net, eval_mode
from overfeat.models.wrappers import as_net

BLOCK_BYTES = 1 << 26  # of a block's cells, at most about


@dataclass(frozen=True)
class LayerJob:
    """The output of a layer for a large image, see `blocks.Job`; it is written to `path`."""

    net: Net
    layer: NetLayer
    plan: Plan
    folder: Path
    path: Path
    shape: tuple[int, int, int]
    memory_limit: int
    strict: bool

    def evaluate(self, block: Block) -> None:
        """Write the cells of a block."""
        layer_block(
            self.net, self.layer, self.plan, block, self.folder, memory_limit=self.memory_limit, strict=self.strict
        )

    def finish(self) -> tuple[int, int, int]:
        """Make the file; returns (channels, height, width)."""
        warn_of_damage(self.plan, self.folder)
        finish_maps(self.folder, self.plan.grids, self.plan.view.image, self.path)
        return self.shape


def layer_job(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, folder: str | os.PathLike, *,
    path: str | os.PathLike, layer: str | int | None = None, large: LargeConfig | None = None,
    value_range: ValueRange | None = None, stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT,
) -> LayerJob:  # fmt: skip
    """The work of `write_layer_output`, in a folder that is made and kept. Raises what `write_layer_output` raises."""
    net, config, target, folder = as_net(net), as_large_config(large), as_path("path", path), as_path("folder", folder)
    memory_limit = DenseConfig(memory_limit=memory_limit).memory_limit
    if target.suffix.lower() != ".zarr":
        raise InputError(f"{target}: the output of a layer is written as .zarr; name a folder that ends so")
    name, own = find_layer(net, layer, stride)
    plan, channels = plan_layer(net, own, View.of(open_image(image, value_range=value_range), config))
    check_map_path(target, folder)
    claim_folder(folder, plan, {"net": weights_digest(net), "layer": name, "stride": stride})
    if not target.exists():
        prepare_layer(own, plan, channels, folder, name)
    shape = channels, *plan.grids[0].shape
    return LayerJob(net, own, plan, folder, target, shape, memory_limit, config.strict)


def write_layer_output(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, path: str | os.PathLike, *,
    folder: str | os.PathLike | None = None, progress: bool = False, **options: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Write the output of a layer for an image of any size as OME-Zarr, float32; returns (channels, height, width).

    The array equals that of `dense.layer_output` for the image in memory.

    Args:
        net: A built-in or converted net.
        image, folder, progress: As in `write_score_maps`.
        path: A new folder that ends in .zarr.
        options: `layer` and `stride`, see `find_layer`; `memory_limit`, bytes for intermediate maps; `value_range`; and
            `large`, a `LargeConfig`, of which a mask leaves nothing out here.

    Raises:
        InputError: As `find_layer` and `open_image`; for a file that exists, a folder of other arguments, and an image
            below the net's window.
        WriteError: Where a file cannot be written; the blocks that are done are kept.
    """
    path = as_path("path", path)
    job = layer_job(net, image, unfinished(path) if folder is None else folder, path=path, **options)
    with sole_writer(job.folder):
        evaluate_pending(job, progress=progress)
        shape = job.finish()
        shutil.rmtree(job.folder, ignore_errors=True)
    return shape


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
    sides, title = (block.rows.stop, block.columns.stop), Path(plan.view.image.name).name
    make_map_files(folder, plan.grids, [positions], channels, [sides], [{"layer": name}], title)


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
