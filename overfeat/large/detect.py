"""Detection in images that do not fit in memory: in blocks, each of which is stored, then merged by a sweep."""

import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense.candidates import group_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.detections import Detections
from overfeat.dense.source import Source
from overfeat.detection import predict
from overfeat.detection.predict import DetectionRule, detection_rule
from overfeat.errors import InputError, check_flag
from overfeat.large.block_folder import claim_folder, weights_digest
from overfeat.large.blocks import Block, Plan, block_path, evaluate_block, evaluate_pending, plan_blocks, warn_of_damage
from overfeat.large.config import LargeConfig, as_large_config, as_path
from overfeat.large.merge import merge_files, save_candidates
from overfeat.large.overload import or_large
from overfeat.large.readers.image import LargeImage, TileError
from overfeat.large.readers.open import open_image
from overfeat.large.view import View
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.wrappers import as_net, as_regressor


@dataclass(frozen=True)
class DetectionJob:
    """Detection in a large image, see `blocks.Job`."""

    net: Net
    regressor: Regressor
    plan: Plan
    folder: Path
    rule: DetectionRule
    memory_limit: int
    strict: bool

    def evaluate(self, block: Block) -> None:
        """Write the candidates of a block."""
        detect_block(
            self.net, self.regressor, self.plan, block, self.folder, self.rule,
            memory_limit=self.memory_limit, strict=self.strict,
        )  # fmt: skip

    def finish(self) -> Detections:
        """Merge the candidates of all blocks."""
        view = self.plan.view
        source = Source.of(self.net, [], view.image.levels[0])  # too large to be shown
        return merge_blocks(self.plan, self.folder, self.rule).with_source(source)


def detection_job(
    net: Net, regressor: Regressor, image: str | os.PathLike | LargeImage, folder: str | os.PathLike, *,
    large: LargeConfig | None = None, value_range: ValueRange | None = None, scales: Scales = None,
    flip: bool | None = None, stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, **rule: Any,
) -> DetectionJob:  # fmt: skip
    """The work of `detect_large`, in a folder that is made and kept. Raises what `detect_large` raises."""
    net, regressor = as_net(net), as_regressor(regressor)
    config, folder = as_large_config(large), as_path("folder", folder)
    own = detection_rule(net, regressor, **rule)
    view = View.of(open_image(image, value_range=value_range), config)
    plan = plan_blocks(net, view, DenseConfig(scales, flip, stride, memory_limit), mask=config.mask)
    settings = {"rule": asdict(own), "net": weights_digest(net), "boxes": weights_digest(regressor)}
    claim_folder(folder, plan, settings)
    return DetectionJob(net, regressor, plan, folder, own, memory_limit, config.strict)


def detect_large(
    net: Net, regressor: Regressor, image: str | os.PathLike | LargeImage, *,
    folder: str | os.PathLike | None = None, progress: bool = False, **options: Any,
) -> Detections:  # fmt: skip
    """The objects in an image of any size, best first, equal to those of `detect` for the image in memory.

    Args:
        net, regressor: As in `detect`.
        image: A path or an open image, see `open_image`.
        folder: Keeps the results of blocks: a second call with the same arguments evaluates those that are missing.
            None: a temporary folder.
        progress: Whether there is a progress bar.
        options: `large`, a `LargeConfig` of region, level, mask, and what is to be done about damaged tiles; and the
            keyword arguments of `detect`. Scale factors refer to the level of `large`; `max_candidates` counts for each
            block of at most 2,048 pixels a side of the scaled image.

    Returns:
        Boxes in pixels of the finest level of the whole image.

    Raises:
        InputError: As `detect` and `open_image`; for a folder of other arguments; with `large.strict` TileError.
    """
    check_flag("progress", progress)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="overfeat-") as temporary:
            return detect_large(net, regressor, image, folder=temporary, progress=progress, **options)
    job = detection_job(net, regressor, image, folder, **options)
    try:
        evaluate_pending(job, progress=progress)
        return job.finish()
    finally:
        if job.plan.view.image is not image:
            job.plan.view.image.close()


detect = or_large(detect_large)(predict.detect)


def detect_block(
    net: Net, regressor: Regressor, plan: Plan, block: Block, folder: Path, rule: DetectionRule, *,
    memory_limit: int = MEMORY_LIMIT, strict: bool = False,
) -> None:  # fmt: skip
    """Evaluate a block and write its candidates to `block_path(folder, block)`, atomically.

    strict: Whether a damaged tile raises its TileError; else windows that overlap it have no candidates.
    """
    damaged: list[TileError] | None = None if strict else []
    groups = evaluate_block(
        net, plan, block, memory_limit=memory_limit, box_channels=regressor.box_channels, damaged=damaged
    )
    candidates, numbers = group_candidates(
        net, regressor, groups, plan.grids, score_threshold=rule.score_threshold, max_candidates=rule.max_candidates
    )
    if not candidates.boxes.isfinite().all():
        raise InputError("the net gives NaN or infinite boxes; its weights are broken")
    if damaged:
        intact = ~_overlapping(net, plan, block, numbers, plan.view.boxes_of(damaged))
        candidates, numbers = candidates[intact], numbers[intact]
    save_candidates(block_path(folder, block), candidates, numbers, list(map(str, damaged or ())))


def _overlapping(net: Net, plan: Plan, block: Block, numbers: Tensor, damaged: Tensor) -> Tensor:
    """Whether what each candidate sees overlaps one of these boxes [n, 4]: bool [T]."""
    tile = plan.tile(block)
    position = numbers.cpu() // net.num_classes - sum(grid.num_positions for grid in plan.grids[: block.index])
    row, column = position // tile.grid.shape[1] - block.rows.start, position % tile.grid.shape[1] - block.columns.start
    windows = tile.windows()[row * tile.shape[2] + column]
    if net.context is not None:  # it sees twice as far
        half = (windows[:, 2:] - windows[:, :2]) / 2
        windows = torch.cat([windows[:, :2] - half, windows[:, 2:] + half], dim=1)
    low, high = torch.maximum(windows[:, None, :2], damaged[:, :2]), torch.minimum(windows[:, None, 2:], damaged[:, 2:])
    return (low < high).all(dim=2).any(dim=1).to(numbers.device)


def merge_blocks(plan: Plan, folder: Path, rule: DetectionRule) -> Detections:
    """The objects of an image whose blocks are done, best first, in pixels of the finest level.

    A warning names each damaged tile that was left out.
    """
    paths = [block_path(folder, block) for block in plan.blocks]
    warn_of_damage(plan, folder)
    merged = merge_files(paths, plan.grids, rule)
    return replace(merged, boxes=plan.view.to_level0(merged.boxes))
