"""Candidate boxes of an image, before merging (section 4.3, a to c)."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.evaluate import TileGroup, evaluate_groups
from overfeat.dense.grid import Grid, grids
from overfeat.dense.inputs import one_image
from overfeat.errors import InputError, check_count, check_fraction
from overfeat.models.geometry import Size, Stride
from overfeat.models.net import Net, Regressor, eval_mode
from overfeat.models.wrappers import as_net, as_regressor
from overfeat.ops.boxes import decode, mirrored
from overfeat.regions import region


@dataclass(frozen=True)
class Candidates:
    """The raw boxes of one image, before merging: the union of section 4.3's sets of boxes.

    They come scale by scale, the image before its mirror image, row by row.
    """

    boxes: Tensor  # float32 [T, 4], (x1, y1, x2, y2) in pixels of the image
    scores: Tensor  # [T], the class's probability at the position
    labels: Tensor  # int64 [T]
    scales: Tensor  # int64 [T], index of the scale

    def __getitem__(self, index: Tensor) -> "Candidates":
        return Candidates(*(values[index] for values in vars(self).values()))


def candidates(
    net: Net, regressor: Regressor, image: ImageLike, *, scales: Scales = None, flip: bool | None = None,
    stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, top_k: int | None = 5,
    relative_threshold: float = 0.7, score_threshold: float = 0.0, value_range: ValueRange | None = None,
) -> Candidates:  # fmt: skip
    """The boxes predicted for the best classes of each scale, at all its positions (section 4.3, a-c).

    Args:
        net: A classifier or detector. A background class has no boxes.
        regressor: Of the same file, see `load_regressor`; of a converted net `net.regressor`.
        image: A path, a PIL image, an array or a tensor, see `each_image`.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        top_k: Classes of each scale, those with the largest scores at any of its positions; None: all.
        relative_threshold: Lowest score of a position, as a fraction of the class's maximum in the image; 0 keeps
            every position, as in the paper's text.
        score_threshold: Lowest score of a position.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.

    Raises:
        InputError: For a regressor of another net, thresholds out of range, NaN scores, and as `score_maps`.
    """
    net, regressor = as_net(net), as_regressor(regressor)
    image = one_image(net, image, value_range)
    own_grids = grids(net, (image.shape[1], image.shape[2]), DenseConfig(scales, flip, stride, memory_limit))
    return collect_candidates(
        net, regressor, image, own_grids, memory_limit,
        top_k=top_k, relative_threshold=relative_threshold, score_threshold=score_threshold,
    )  # fmt: skip


@torch.no_grad()
def collect_candidates(
    net: Net, regressor: Regressor, image: Tensor, grids: Sequence[Grid], memory_limit: int = MEMORY_LIMIT,
    *,
    top_k: int | None = None, relative_threshold: float = 0.0, score_threshold: float = 0.0,
    max_candidates: int | None = None,
) -> Candidates:  # fmt: skip
    """`candidates` of an image [C, H, W] at these grids.

    max_candidates: Of more boxes than that only the best by score are collected (of equal scores the first), with a
        warning, in memory for about twice as many and the boxes of a few tiles.
    """
    regressor.check_made_for(net)
    for argument, count in (("top_k", top_k), ("max_candidates", max_candidates)):
        if count is not None:
            check_count(argument, count)
    check_fraction("relative_threshold", relative_threshold)
    check_fraction("score_threshold", score_threshold)
    flips = 2 if any(grid.flipped for grid in grids) else 1
    maxima = torch.zeros(len(grids) // flips, net.num_foreground_classes, dtype=torch.float32, device=net.device)
    collected = _Collected(net, grids, score_threshold, max_candidates)
    for group in evaluate_groups(net, image[None], grids, memory_limit, regressor.box_channels):
        scores = [_foreground_scores(net, tile.outputs) for tile in group.tiles]
        for tile, flat in zip(group.tiles, scores, strict=True):
            running = maxima[tile.index // flips]
            torch.maximum(running, flat.amax(dim=0), out=running)
        # The maxima only grow, so scores below these thresholds now stay below them.
        lowest = (relative_threshold * maxima.amax(dim=0)).clamp(min=collected.lowest)
        collected.add(_group_boxes(regressor, group, scores, lowest))
    every, _ = collected.in_order()
    every = replace(every, scales=every.scales // flips)
    strong = every.scores >= relative_threshold * maxima.amax(dim=0)[every.labels]
    return every[strong & _of_best_classes(every, maxima, top_k)]


@torch.no_grad()
def group_candidates(
    net: Net, regressor: Regressor, groups: Iterable[TileGroup], grids: Sequence[Grid], *, score_threshold: float,
    max_candidates: int | None = None,
) -> tuple[Candidates, Tensor]:  # fmt: skip
    """The boxes of some tiles of an image, in the order of all its boxes, and the number of each in that order.

    Args:
        grids: All of the image; `Candidates.scales` are their indices here.
        score_threshold, max_candidates: As in `collect_candidates`, but for these tiles.

    Returns:
        The boxes, and int64 [T], numbers that ascend.
    """
    collected = _Collected(net, grids, score_threshold, max_candidates)
    for group in groups:
        scores = [_foreground_scores(net, tile.outputs) for tile in group.tiles]
        lowest = torch.full((net.num_foreground_classes,), collected.lowest, dtype=torch.float32, device=net.device)
        collected.add(_group_boxes(regressor, group, scores, lowest))
    return collected.in_order()


def _foreground_scores(net: Net, outputs: Tensor) -> Tensor:
    """The probabilities at a tile's positions without the background: [positions, classes]."""
    with region("scores"):
        scores = net.probabilities(outputs)
    if not scores.sum().isfinite():  # one pass; NaN and infinite scores do not cancel
        raise InputError("the net gives NaN scores; the image or the weights are broken")
    return scores[:, : net.num_foreground_classes]


def _of_best_classes(boxes: Candidates, maxima: Tensor, top_k: int | None) -> Tensor:
    """Which boxes are of the `top_k` classes with the largest scores at their scale: bool [T]."""
    if top_k is None:
        return torch.ones_like(boxes.labels, dtype=torch.bool)
    best = torch.zeros_like(maxima, dtype=torch.bool)
    best.scatter_(1, maxima.topk(min(top_k, maxima.shape[1]), dim=1).indices, True)
    return best[boxes.scales, boxes.labels]


_Chunk = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # boxes, scores, labels, index of the grid, position in it


class _Collected:
    """The boxes of an image so far; with a limit, of more boxes the best.

    Attributes:
        lowest: The score below which a box is not collected.
        is_cut: Whether boxes were left out.
    """

    def __init__(self, net: Net, grids: Sequence[Grid], score_threshold: float, limit: int | None):
        empty = torch.empty(0, dtype=torch.float32, device=net.device)
        self._chunks: list[_Chunk] = [(empty.view(0, 4), empty, empty.long(), empty.long(), empty.long())]
        self._starts = torch.tensor([0, *(grid.num_positions for grid in grids)], device=net.device).cumsum(0)
        self._classes, self._limit, self._count = net.num_classes, limit, 0
        self._threshold = self.lowest = score_threshold
        self.is_cut = False

    def add(self, chunks: Sequence[_Chunk]) -> None:
        """Add the boxes of some tiles."""
        self._chunks += chunks
        self._count += sum(len(scores) for _, scores, *_ in chunks)
        if self._limit is not None and self._count > 2 * self._limit:
            self._cut(self._limit)

    def in_order(self) -> tuple[Candidates, Tensor]:
        """By grid, then position, then class, however the grids were tiled; and the number of each in this order.

        `Candidates.scales` are indices of grids. Warns where boxes were left out.
        """
        if self._limit is not None and self._count > self._limit:
            self._cut(self._limit)
        if self.is_cut:
            problem = f"more than {self._limit} windows score {self._threshold:g} or more; only the best are used"
            remedy = "a net that has learned leaves far fewer: train it longer, or raise score_threshold or "
            warnings.warn(f"{problem}. {remedy.capitalize()}max_candidates", stacklevel=4)  # a decorator is between
        boxes, scores, labels, index, position = self._ordered()
        return Candidates(boxes, scores, labels, index), self._numbers(labels, index, position)

    def _numbers(self, labels: Tensor, index: Tensor, position: Tensor) -> Tensor:
        return (self._starts[index] + position) * self._classes + labels

    def _ordered(self) -> _Chunk:
        boxes, scores, labels, index, position = (torch.cat(values) for values in zip(*self._chunks, strict=True))
        order = self._numbers(labels, index, position).argsort()
        return boxes[order], scores[order], labels[order], index[order], position[order]

    def _cut(self, limit: int) -> None:
        """Keep the best boxes, of equal scores the first in order: in the end the same whenever this is called."""
        ordered = self._ordered()
        best = ordered[1].argsort(descending=True, stable=True)[:limit]
        boxes, scores, labels, index, position = (values[best] for values in ordered)
        self._chunks, self._count, self.is_cut = [(boxes, scores, labels, index, position)], limit, True
        self.lowest = max(self.lowest, float(scores[-1]))


def _group_boxes(regressor: Regressor, group: TileGroup, scores: Sequence[Tensor], lowest: Tensor) -> list[_Chunk]:
    """The boxes of all positions and classes of a group of tiles whose score is at least `lowest` [classes]."""
    positions = [(flat >= lowest).any(dim=1).nonzero()[:, 0] for flat in scores]
    if not any(len(of_tile) for of_tile in positions):
        return []
    stride = group.tiles[0].grid.stride
    with eval_mode(regressor):
        flat_boxes, _ = regressor.forward_flat([tile.features for tile in group.tiles], stride, positions)
    chunks = []
    split = flat_boxes.float().split([len(of_tile) for of_tile in positions])
    for tile, flat, chosen, values in zip(group.tiles, scores, positions, split, strict=True):
        windows = tile.windows().to(values)[chosen, None]
        if tile.grid.flipped:
            values = mirrored(values, regressor.box_coder)
        boxes = decode(values, windows, regressor.box_coder)
        number, label = (flat[chosen] >= lowest).nonzero(as_tuple=True)
        of_class = label if regressor.num_classes else torch.zeros_like(label)
        position = tile.grid_positions(chosen[number])
        index = torch.full_like(label, tile.index)
        chunk = (boxes[number, of_class], flat[chosen[number], label], label, index, position)
        chunks.append(_without_outside(chunk, tile.grid.image) if any(tile.grid.margin) else chunk)
    return chunks


def _without_outside(chunk: _Chunk, image: Size) -> _Chunk:
    """The boxes that overlap an image of (height, width): windows beyond its border may predict others."""
    boxes, (height, width) = chunk[0], image
    outside = (boxes[:, 2:] <= 0) | (boxes[:, :2] >= boxes.new_tensor([width, height]))
    inside = ~outside.any(dim=1)
    boxes, scores, labels, index, position = (values[inside] for values in chunk)
    return boxes, scores, labels, index, position
