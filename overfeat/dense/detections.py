"""Merged boxes of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat.dense.candidates import Candidates
from overfeat.dense.scales import Size
from overfeat.errors import InputError
from overfeat.ops import merge_boxes
from overfeat.regions import region


@dataclass(frozen=True)
class Detections:
    """The objects of one image, highest score first."""

    boxes: Tensor  # float32 [n, 4], (x1, y1, x2, y2) in pixels, within the image
    labels: Tensor  # int64 [n]
    scores: Tensor  # [n]
    counts: Tensor  # int64 [n], the number of boxes merged into each
    confidence_sum: Tensor  # [n], the sum of their confidences, localization's score
    max_score: Tensor  # [n], the largest of their confidences

    @classmethod
    def from_boxes(cls, boxes: Tensor, labels: Tensor, scores: Tensor) -> "Detections":
        """Boxes that were not merged: each counts as one, and its confidence is its score."""
        return cls(boxes, labels, scores, torch.ones_like(labels), scores, scores)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Detections":
        return Detections(*(values[index] for values in vars(self).values()))


def merge(
    candidates: Candidates, image: Size, *, match_threshold: float, match_metric: str = "normalised",
    box_average: str = "pairwise",
) -> Detections:  # fmt: skip
    """Merge the boxes of each class (section 4.3, d-g), clip them to the image's (height, width), sort by score.

    The other arguments are those of `ops.merge_boxes`.
    """
    if not candidates.boxes.isfinite().all():
        raise InputError("the net gives NaN or infinite boxes; its weights are broken")
    boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
    with region("merge"):
        merged = merge_boxes(
            boxes, scores, labels, match_threshold=match_threshold, match_metric=match_metric, box_average=box_average
        )
    order = merged.scores.argsort(descending=True, stable=True)
    clipped = clip_boxes(merged.boxes, image)
    return Detections(clipped, merged.groups, merged.scores, merged.counts, merged.scores, merged.max_score)[order]


def clip_boxes(boxes: Tensor, image: Size) -> Tensor:
    """Boxes [n, 4] clipped to an image of (height, width)."""
    height, width = image
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def best_per_class(detections: Detections, top_k: int = 5) -> Detections:
    """The best detection of each class, and of those the `top_k` best: ILSVRC's top-5 predictions."""
    return detections[first_of_each(detections.labels)][:top_k]


def first_of_each(labels: Tensor) -> Tensor:
    """Where each label occurs first, in order: int64."""
    _, number = labels.unique(return_inverse=True)
    positions = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(positions, len(labels)).scatter_reduce(0, number, positions, "amin")
    return first[first < len(labels)].sort().values
