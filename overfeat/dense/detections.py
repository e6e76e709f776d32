"""Merged boxes of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    boxes: Tensor  # float32 [n, 4], (x1, y1, x2, y2) in pixels, within the image, with an area
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

    def clip(self, image: Size) -> "Detections":
        """With boxes clipped to an image of (height, width), without those that have no area there."""
        boxes = clip_boxes(self.boxes, image)
        return replace(self, boxes=boxes)[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def merge(
    candidates: Candidates, image: Size, *, match_threshold: float | Sequence[float], match_metric: str = "normalised",
    box_average: str = "pairwise",
) -> Detections:  # fmt: skip
    """Merge the boxes of each class (section 4.3, d-g), clip them to the image's (height, width), sort by score.

    Boxes outside the image are left out.

    match_threshold: One number, or one for each class. The other arguments are those of `ops.merge_boxes`.
    """
    if not candidates.boxes.isfinite().all():
        raise InputError("the net gives NaN or infinite boxes; its weights are broken")
    several = isinstance(match_threshold, Sequence)
    thresholds = torch.tensor(match_threshold if several else [match_threshold], dtype=torch.float64)
    of_box = thresholds.to(candidates.labels.device)[candidates.labels if several else candidates.labels * 0]
    merged = []
    with region("merge"):
        for threshold in thresholds.unique().tolist():
            mine = candidates[of_box == threshold]
            merged.append(
                merge_boxes(
                    mine.boxes, mine.scores, mine.labels,
                    match_threshold=threshold, match_metric=match_metric, box_average=box_average,
                )
            )  # fmt: skip
    boxes, scores, labels, counts, max_score = (
        torch.cat([getattr(part, name) for part in merged])
        for name in ("boxes", "scores", "groups", "counts", "max_score")
    )
    by_class = labels.argsort(stable=True)
    order = by_class[scores[by_class].argsort(descending=True, stable=True)]
    return Detections(boxes, labels, scores, counts, scores, max_score)[order].clip(image)


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
