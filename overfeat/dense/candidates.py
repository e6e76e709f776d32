"""Candidate boxes of an image, before merging (section 4.3, a to c)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat.dense.evaluate import box_parts
from overfeat.dense.grid import grids
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY, Tile
from overfeat.errors import InputError
from overfeat.models.architecture import Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat, as_batch

TOP = 5  # classes taken from each scale; guesses for an image
# Both were chosen on validation scenes: bench/accuracy/localization.md.
SHARE = 0.7  # of the class's best score in the image, at least, for a place's box to count
THRESHOLD = 0.4


@dataclass(frozen=True)
class Candidates:
    """The raw boxes of one image, before merging: what steps (a) to (c) of section 4.3 collect.

    boxes float32 [T, 4] in pixels of the image; scores [T], the class's softmax at the place; labels
    int64 [T]; scales int64 [T], which of the scales given, from 0. They come scale by scale, the image
    before its mirror image, line by line.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    scales: Tensor

    def __getitem__(self, chosen: Tensor) -> "Candidates":
        return Candidates(*(values[chosen] for values in vars(self).values()))


def candidates(
    net: OverFeat,
    regressor: BoxRegressor,
    image: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    top: int | None = TOP,
    share: float = SHARE,
    memory: int = MEMORY,
    least: float = 0.0,
) -> Candidates:
    """The boxes predicted for the best `top` classes of each scale, at all its places (section 4.3, a-c).

    The best classes of a scale are those with the largest scores anywhere on it; None: all. The background
    has no boxes. share: boxes of places that score less than this part of what the class scores at its
    best place in the image are left out; with 0 none are, as in the paper's words. least: so are those of places
    that score less than that. Other arguments as in `localize`.
    """
    image = as_batch(image)
    if len(image) != 1:
        raise ValueError(f"one image at a time; these are {len(image)}")
    if regressor.architecture != net.architecture:
        raise InputError("the regressor is of another net; load both from one file")
    classes = net.num_foreground_classes
    if regressor.num_classes not in (None, classes):
        raise InputError(f"the regressor is of {regressor.num_classes} classes, the net of {classes}")
    if not ((top is None or top >= 1) and 0 <= share <= 1 and 0 <= least <= 1):
        raise InputError(f"top is 1 or more, share and least between 0 and 1; not {top}, {share} and {least}")
    found = grids(net, tuple(image.shape[2:]), scales, flip, stride)
    mirrors = 2 if any(grid.flipped for grid in found) else 1
    device = net.device
    best = torch.zeros(len(found) // mirrors, classes, device=device)
    before = [sum(math.prod(grid.shape) for grid in found[:i]) for i in range(len(found))]
    floor = torch.zeros(classes, device=device)

    def choose(part: Tile, scores: Tensor) -> Tensor:
        if not scores.isfinite().all():
            raise InputError("the net gives NaN scores; the image or the weights are broken")
        of_scale = best[part.grid // mirrors]
        torch.maximum(of_scale, scores[:, :classes].amax(dim=0), out=of_scale)
        # What is too little for the best so far is too little for the best of all.
        floor.copy_((share * best.amax(dim=0)).clamp(min=least))
        return (scores[:, :classes] >= floor).any(dim=1)

    nothing = torch.empty(0, dtype=torch.int64, device=device)
    parts = [(nothing, torch.empty(0, 4, device=device), torch.empty(0, device=device), nothing, nothing)]
    for part, scores, chosen, boxes in box_parts(net, regressor, image, found, stride, memory, choose):
        scores = scores[chosen, :classes]
        place, label = (scores >= floor).nonzero(as_tuple=True)
        of_class = label if regressor.num_classes else torch.zeros_like(label)
        position, width = chosen.nonzero()[place, 0], part.columns.stop - part.columns.start
        row, column = part.rows.start + position // width, part.columns.start + position % width
        number = before[part.grid] + row * found[part.grid].shape[1] + column
        of_scale = torch.full_like(label, part.grid // mirrors)
        parts.append((number * net.num_classes + label, boxes[place, of_class], scores[place, label], label, of_scale))
    number, *values = (torch.cat(values) for values in zip(*parts, strict=True))
    order = number.argsort()  # whatever the tiles were
    every = Candidates(*values)[order]
    chosen = torch.zeros_like(best, dtype=torch.bool)
    chosen.scatter_(1, best.topk(min(top or classes, classes), dim=1).indices, True)
    kept = chosen[every.scales, every.labels] & (every.scores >= share * best.amax(dim=0)[every.labels])
    return every[kept]
