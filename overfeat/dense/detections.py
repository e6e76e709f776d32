"""Merged boxes of an image."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from overfeat import regions
from overfeat.dense.candidates import THRESHOLD, TOP, Candidates
from overfeat.errors import InputError
from overfeat.ops import merge_boxes


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first.

    boxes float32 [n, 4] in pixels, within the image; labels int64 [n]; scores [n], what they are ranked by;
    counts int64 [n], how many boxes were merged into each; sums [n], their confidences added up, which
    localization ranks by; best [n], the largest of these.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    counts: Tensor
    sums: Tensor
    best: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> "Detections":
        return Detections(*(values[chosen] for values in vars(self).values()))


def merge(
    raw: Candidates,
    size: tuple[int, int],
    threshold: float = THRESHOLD,
    match: str = "normalised",
    average: str = "pairwise",
) -> Detections:
    """Merge the boxes of each class (section 4.3, d-g), clip them to the image's (height, width), sort by score."""
    if not raw.boxes.isfinite().all():
        raise InputError("the net gives NaN or infinite boxes; its weights are broken")
    run = partial(merge_boxes, match_threshold=threshold, match_metric=match, box_average=average)
    merged = regions.run("merge", run, raw.boxes, raw.scores, raw.labels)
    order = merged.scores.argsort(descending=True, stable=True)
    boxes = clipped(merged.boxes, size)
    return Detections(boxes, merged.groups, merged.scores, merged.counts, merged.scores, merged.max_score)[order]


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] cut to an image of (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def guesses(found: Detections, top: int = TOP) -> Detections:
    """The best of each class, and of those the `top` best: what ILSVRC asks for."""
    return found[first_of_each(found.labels)][:top]


def first_of_each(labels: Tensor) -> Tensor:
    """Where each label stands for the first time, in order: int64."""
    _, number = labels.unique(return_inverse=True)
    places = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(places, len(labels)).scatter_reduce(0, number, places, "amin")
    return first[first < len(labels)].sort().values
