"""Score maps of large images: in memory where they fit, else in a file, written block by block."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense import evaluate
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.grid import Grid
from overfeat.dense.maps import ScoreMap, ScoreMaps
from overfeat.dense.source import Source
from overfeat.errors import ArgumentError, InputError
from overfeat.large.block_folder import claim_folder, weights_digest
from overfeat.large.blocks import (
    Block,
    Plan,
    block_sides,
    evaluate_block,
    evaluate_pending,
    plan_blocks,
    warn_of_damage,
)
from overfeat.large.config import LargeConfig, as_large_config, as_path
from overfeat.large.map_blocks import (
    check_map_path,
    finish_maps,
    grid_positions,
    make_map_files,
    map_path,
    mark_done,
    read_done,
    sole_writer,
    unfinished,
)  # fmt: skip
from overfeat.large.map_file import MapFile, chunk_sides
from overfeat.large.overload import or_large
from overfeat.large.readers.image import LargeImage, TileError
from overfeat.large.readers.open import open_image
from overfeat.large.view import View
from overfeat.models.geometry import Stride
from overfeat.models.net import Net
from overfeat.models.wrappers import as_net


@dataclass(frozen=True)
class ScoreJob:
    """The scores of a large image, see `blocks.Job`; with a path their maps are written to it."""

    net: Net
    plan: Plan
    folder: Path
    path: Path | None
    memory_limit: int
    strict: bool

    def evaluate(self, block: Block) -> None:
        """Write the scores of a block."""
        score_block(
            self.net, self.plan, block, self.folder,
            memory_limit=self.memory_limit, strict=self.strict, maps=self.path is not None,
        )  # fmt: skip

    def finish(self) -> Tensor:
        """Make the file of the maps; returns the largest scores of each scale and mirror image, [grids, classes]."""
        largest = largest_scores(self.plan, self.folder)
        if self.path is not None:
            finish_maps(self.folder, self.plan.grids, self.plan.view.image, self.path)
        return largest


def score_job(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, folder: str | os.PathLike, *,
    path: str | os.PathLike | None = None, large: LargeConfig | None = None, value_range: ValueRange | None = None,
    scales: Scales = None, flip: bool | None = None, stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT,
) -> ScoreJob:  # fmt: skip
    """The work of `write_score_maps`, without a path of `classify_large`, in a folder that is made and kept."""
    net, config, folder = as_net(net), as_large_config(large), as_path("folder", folder)
    target = None if path is None else as_path("path", path)
    view = View.of(open_image(image, value_range=value_range), config)
    plan = plan_blocks(net, view, DenseConfig(scales, flip, stride, memory_limit), mask=config.mask)
    if target is not None:
        check_map_path(target, folder)
    settings = {"net": weights_digest(net), "classes": net.class_names, "maps": target is not None}
    claim_folder(folder, plan, settings)
    if target is not None and not target.exists():
        prepare_score_maps(net, plan, folder)
    return ScoreJob(net, plan, folder, target, memory_limit, config.strict)


def write_score_maps(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, path: str | os.PathLike, *,
    folder: str | os.PathLike | None = None, progress: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    """Write the score maps of an image of any size to a file; returns the scores [classes] of the whole image.

    The maps are those of `score_maps`, with a channel for each class; positions of mirror images too lie from left to
    right. Positions that were not evaluated, of background and on damaged tiles, are NaN.

    Args:
        net: As in `score_maps`.
        image: A path or an open image, see `open_image`.
        path: A new folder that ends in .zarr: OME-Zarr images in pixels of the image, with levels of maxima; of several
            scales and mirror images a collection. Or a .tif, tiled and with levels, a GeoTIFF where the image is
            georeferenced; of several scales one with each number before the suffix.
        folder: Keeps what is unfinished: a second call with the same arguments evaluates the blocks that are missing.
            None: .blocks-NAME beside the file. It is deleted in the end.
        progress: Whether there is a progress bar.
        options: `large`, a `LargeConfig` of region, level, mask, and what is to be done about damaged tiles; and the
            keyword arguments of `score_maps`. Scale factors refer to the level of `large`.

    Raises:
        InputError: As `score_maps` and `open_image`; for a file that exists, and a folder of other arguments.
        WriteError: Where a file cannot be written; the blocks that are done are kept.
    """
    path = as_path("path", path)
    job = score_job(net, image, unfinished(path) if folder is None else folder, path=path, **options)
    with sole_writer(job.folder):
        evaluate_pending(job, progress=progress)
        scores = job.finish().mean(dim=0)
        shutil.rmtree(job.folder, ignore_errors=True)
    return scores


def classify_large(
    net: Net, image: str | os.PathLike | np.ndarray | LargeImage, *, folder: str | os.PathLike | None = None,
    progress: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    """The scores [classes] of an image of any size, as `classify` gives them; arguments as in `write_score_maps`.

    folder: Keeps the results of blocks; None: a temporary folder.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="overfeat-") as temporary:
            return classify_large(net, image, folder=temporary, progress=progress, **options)
    job = score_job(net, image, folder, **options)
    evaluate_pending(job, progress=progress)
    return job.finish().mean(dim=0)


def prepare_score_maps(net: Net, plan: Plan, folder: Path) -> None:
    """Make the files that `score_block` writes to, unless they exist; several processes may do so at once."""
    grids = plan.grids
    attributes = [
        {"window": grid.window, "stride": grid.stride, "scaled": grid.scaled, "mirrored": grid.flipped}
        for grid in grids
    ]
    positions, blocks = [grid_positions(plan.view, grid) for grid in grids], [block_sides(grid) for grid in grids]
    make_map_files(folder, grids, positions, net.class_names, blocks, attributes, Path(plan.view.image.name).name)


def score_block(
    net: Net, plan: Plan, block: Block, folder: Path, *, memory_limit: int = MEMORY_LIMIT, strict: bool = False,
    maps: bool = True,
) -> None:  # fmt: skip
    """Evaluate a block: its scores go to the maps, and then the largest of each class to its own file.

    Args:
        maps: Whether there are maps, see `prepare_score_maps`.
        strict: Whether a damaged tile of the image raises its TileError; else windows on it have no scores (NaN).
    """
    grid, file = plan.grids[block.index], None
    if maps:
        file = MapFile(map_path(folder, plan.grids, block.index, grid.flipped))
    maxima, damaged = torch.full((net.num_classes,), -torch.inf), None if strict else list[TileError]()
    for part in _split_block(net, grid, block, memory_limit):
        values = _scores(net, plan, part, memory_limit, damaged)
        if file:
            file.write(part.rows, part.columns, values)
        known = torch.from_numpy(values).flatten(1).nan_to_num(nan=-torch.inf)
        maxima = torch.maximum(maxima, known.amax(dim=1))
    mark_done(folder, block, {"maxima": maxima}, damaged)


def _split_block(net: Net, grid: Grid, block: Block, memory_limit: int) -> list[Block]:
    """A block in smaller ones of whole chunks of the maps, whose scores take about a quarter of the memory limit."""
    rows, columns = chunk_sides(block_sides(grid))
    position = 16 * net.num_classes  # bytes, times four
    across = columns * max(1, memory_limit // (position * rows * columns))
    down = rows * max(1, memory_limit // (position * rows * min(across, block.columns.stop - block.columns.start)))
    return [
        Block(block.number, block.index, down_part, across_part)
        for down_part in _cut(block.rows, down)
        for across_part in _cut(block.columns, across)
    ]


def _cut(part: slice, side: int) -> list[slice]:
    """A slice cut at multiples of a number."""
    cuts = [part.start, *range(part.start // side * side + side, part.stop, side), part.stop]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _scores(net: Net, plan: Plan, block: Block, memory_limit: int, damaged: list[TileError] | None) -> np.ndarray:
    """The scores of a block, float32 [classes, rows, columns]; NaN where windows lie on damaged tiles."""
    top, left = block.rows.start, block.columns.start
    values = np.empty((net.num_classes, block.rows.stop - top, block.columns.stop - left), np.float32)
    own = None if damaged is None else list[TileError]()
    for group in evaluate_block(net, plan, block, memory_limit=memory_limit, damaged=own):
        for tile in group.tiles:
            scores = net.probabilities(tile.outputs)
            if not scores.isfinite().all():
                raise InputError("the net gives NaN scores; its weights are broken")
            rows, columns = (slice(s.start - f, s.stop - f) for s, f in ((tile.rows, top), (tile.columns, left)))
            values[:, rows, columns] = scores.view(*tile.shape[1:], -1).permute(2, 0, 1).float().cpu()
    if damaged is not None and own:
        values[:, _damaged_positions(plan, block, own)] = np.nan
        damaged += own
    return values


def _damaged_positions(plan: Plan, block: Block, damaged: list[TileError]) -> np.ndarray:
    """Whether the windows of a block overlap damaged tiles: bool [rows, columns]."""
    windows = plan.grids[block.index].boxes(block.rows, block.columns)
    total = np.zeros(windows.shape[:2], bool)
    for x1, y1, x2, y2 in plan.view.boxes_of(damaged).tolist():
        rows = (windows[:, 0, 1] < y2) & (windows[:, 0, 3] > y1)
        columns = (windows[0, :, 0] < x2) & (windows[0, :, 2] > x1)
        total |= np.outer(rows, columns)
    return total


def largest_scores(plan: Plan, folder: Path) -> Tensor:
    """The largest score of each class in each grid, [grids, classes], of an image whose blocks are done.

    Grids without a window that was evaluated are left out. A warning names each damaged tile that was left out. Raises
    InputError if no window is left.
    """
    maxima: dict[int, Tensor] = {}
    for block in plan.blocks:
        own = read_done(folder, block)["maxima"]
        maxima[block.index] = torch.maximum(maxima.get(block.index, own), own)
    warn_of_damage(plan, folder)
    known = [scores for scores in maxima.values() if scores.isfinite().all()]
    if not known:
        raise InputError(f"{plan.view.image.name}: all of it is background or damaged; there are no scores")
    return torch.stack(known)


def score_maps_large(
    net: Net, images: str | os.PathLike | LargeImage, *, scales: Scales = None, flip: bool | None = None,
    stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
) -> ScoreMaps:  # fmt: skip
    """`score_maps` of an image that is read in windows; ArgumentError where the maps do not fit the memory limit."""
    net, view = as_net(net), View.of(open_image(images, value_range=value_range))
    plan = plan_blocks(net, view, DenseConfig(scales, flip, stride, memory_limit))
    size = 4 * net.num_classes * sum(grid.num_positions for grid in plan.grids)
    if size > memory_limit:
        problem = f"{view.image.name}: its score maps take {size / 2**20:,.0f} MiB; "
        remedy = "must be that much; overfeat.large.write_score_maps writes them to a file, and needs less"
        raise ArgumentError("memory_limit", remedy, problem)
    maps = [torch.empty(1, net.num_classes, *grid.shape) for grid in plan.grids]
    for block in plan.blocks:
        for part in _split_block(net, plan.grids[block.index], block, memory_limit):
            values = _scores(net, plan, part, memory_limit, None)
            maps[part.index][0, :, part.rows, part.columns] = torch.from_numpy(values)
    source, device = Source.of(net, [], plan.grids[0].image), net.device  # too large to be shown
    return ScoreMaps(ScoreMap(m.to(device), grid).with_source(source) for m, grid in zip(maps, plan.grids, strict=True))


score_maps = or_large(score_maps_large)(evaluate.score_maps)
