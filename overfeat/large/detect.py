"""Detection in images that do not fit in memory: in blocks, each of which is stored, then merged by a sweep."""

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense.candidates import group_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.detections import Detections
from overfeat.detection import predict
from overfeat.detection.predict import DetectionRule, detection_rule
from overfeat.errors import InputError
from overfeat.files import atomic_write, ensure_dir, remove_leftovers
from overfeat.large.blocks import Block, Plan, block_path, evaluate_block, pending_blocks, plan_blocks
from overfeat.large.config import LargeConfig
from overfeat.large.merge import merge_files, read_header, save_candidates
from overfeat.large.open import is_large, open_image
from overfeat.large.reader import LargeImage, TileError
from overfeat.large.view import View
from overfeat.models.net import Net, Regressor
from overfeat.models.wrappers import as_net, as_regressor
from overfeat.training.forecast import format_time

PLAN = "plan.json"
Function = TypeVar("Function", bound=Callable[..., Any])


def reads_in_windows(image: object) -> bool:
    """Whether an image is one that is read in windows, or a file that is to be read so."""
    if isinstance(image, str | os.PathLike):
        return is_large(image)
    return hasattr(image, "levels") and isinstance(image, LargeImage)


def or_large(large: Callable[..., Any]) -> Callable[[Function], Function]:
    """A function of (net, ..., image) that calls `large` instead for images that are read in windows."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            image = options.get("image", options.get("images", args[-1] if args else None))
            return (large if reads_in_windows(image) else function)(*args, **options)

        return cast(Function, call)

    return decorate


def detect_large(
    net: Net, regressor: Regressor, image: str | os.PathLike | LargeImage, *, large: LargeConfig | None = None,
    folder: str | os.PathLike | None = None, progress: bool = False, channels: Sequence[int] | None = None,
    value_range: ValueRange | None = None, scales: Any = None, flip: Any = None, stride: Any = None,
    memory_limit: int = MEMORY_LIMIT, **rule: Any,
) -> Detections:  # fmt: skip
    """The objects in an image of any size, best first, equal to those of `detect` for the image in memory.

    Args:
        net, regressor, scales, flip, stride, memory_limit: As in `detect`; scale factors refer to the level of
            `large`. max_candidates counts for each block of at most 2,048 pixels a side of the scaled image.
        image: A path or an open image, see `open_image`, of which `channels` and `value_range` are arguments.
        large: Region, level, mask, and what is to be done about damaged tiles.
        folder: Keeps the results of blocks: a second call with the same arguments evaluates those that are missing.
            None: a temporary folder.
        progress: Whether a progress bar is shown.
        rule: The other arguments of `detect`.

    Returns:
        Boxes in pixels of the finest level of the whole image.

    Raises:
        InputError: As `detect` and `open_image`; for a folder of other arguments; with `large.strict` TileError.
    """
    net, regressor, config = as_net(net), as_regressor(regressor), large or LargeConfig()
    own = detection_rule(net, regressor, **rule)
    opened = open_image(image, channels=channels, value_range=value_range)
    plan = plan_blocks(net, View.of(opened, config), DenseConfig(scales, flip, stride, memory_limit), mask=config.mask)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="overfeat-") as temporary:
            return _detect(net, regressor, plan, Path(temporary), own, config, memory_limit, progress)
    claim_folder(Path(folder), {**describe(plan), "rule": asdict(own), "net": digest(net), "boxes": digest(regressor)})
    return _detect(net, regressor, plan, Path(folder), own, config, memory_limit, progress)


detect = or_large(detect_large)(predict.detect)


def _detect(
    net: Net, regressor: Regressor, plan: Plan, folder: Path, rule: DetectionRule, config: LargeConfig,
    memory_limit: int, progress: bool,
) -> Detections:  # fmt: skip
    pending = pending_blocks(plan, folder)
    for block in with_forecast(pending, len(plan.blocks), progress):
        detect_block(net, regressor, plan, block, folder, rule, memory_limit=memory_limit, strict=config.strict)
    return merge_blocks(plan, folder, rule)


def with_forecast(blocks: Sequence[Block], total: int, progress: bool = True) -> Any:
    """The blocks, with a progress bar that tells when the last will be done."""
    from tqdm import tqdm

    bar = tqdm(
        blocks, initial=total - len(blocks), total=total, unit="block", disable=not progress or None, leave=False
    )
    for number, block in enumerate(bar):
        yield block
        seconds = bar.format_dict["elapsed"] / (number + 1) * (len(blocks) - number - 1)
        bar.set_postfix_str(f"done at about {format_time(datetime.now(), seconds)}", refresh=False)


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
    for message in dict.fromkeys(message for path in paths for message in read_header(path)[1]):
        warnings.warn(f"left out: {message}", stacklevel=2)
    merged = merge_files(paths, plan.grids, rule)
    return replace(merged, boxes=plan.view.to_level0(merged.boxes))


def describe(plan: Plan) -> dict:
    """What the results of a plan's blocks depend on, but for the net."""
    image, view = plan.view.image, plan.view
    path = Path(image.name)
    file = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None
    own = {"image": image.name, "levels": list(image.levels), "file": file, "level": view.level, "region": view.region}
    blocks = hashlib.sha256(repr(plan.blocks).encode()).hexdigest()
    return {**own, "grids": [asdict(grid) for grid in plan.grids], "blocks": blocks}


def digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().reshape(-1).contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def claim_folder(folder: Path, settings: dict) -> None:
    """Prepare a folder for the results of blocks. Raises InputError if it holds those of other settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    file = ensure_dir(folder) / PLAN
    if file.exists():
        if file.read_text() != text:
            raise InputError(f"{folder}: holds blocks of another image, net or settings; choose another folder")
    else:
        with atomic_write(file) as part:
            part.write_text(text)
    remove_leftovers(folder)
