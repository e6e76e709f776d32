"""Detection: any number of objects in images of any size (section 5)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.detections import Detections, clipped, merge
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY
from overfeat.detection.targets import expected_votes
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat, as_batch
from overfeat.ops.boxes import nms

# Chosen on validation scenes: bench/accuracy/detection.md.
THRESHOLDS = {"greedy": 0.5, "nms": 0.2}  # a match score; an IoU
OVERLAP = 0.3  # IoU of merged boxes
AVERAGE = "counts"  # the paper's pairwise average gives the last box merged as much weight as all before it
LEAST = 0.3  # a place's score for a class, at least, for its box to count


def detect(
    net: OverFeat,
    regressor: BoxRegressor,
    image: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    merging: str = "greedy",
    threshold: float | None = None,
    match: str = "normalised",
    average: str = AVERAGE,
    memory: int = MEMORY,
    least: float = LEAST,
    overlap: float = OVERLAP,
) -> Detections:
    """The objects in an image, best first (section 5).

    net: with a background class, of one file with its regressor. image: [3, H, W] or [1, 3, H, W], float or
    uint8, RGB in 0..255. scales None: those that the net was trained for (net.scale_factors). merging "greedy":
    boxes that match merge, and their confidences add up, see ops.merge_boxes for threshold, match and
    average; the scores are `comparable`; of merged boxes of a class that overlap by more than `overlap`
    (IoU) the best stays, since the others are what was left of the same object. "nms": of boxes of a class
    that overlap by more than `threshold` (IoU) the best stays, with its own confidence as score. threshold
    None: THRESHOLDS. least: see localize.candidates. flip, stride, memory: as in `classify`. Raises InputError
    as those do.
    """
    image = as_batch(image)
    if merging not in THRESHOLDS:
        raise InputError(f"merging is one of {', '.join(THRESHOLDS)}, not {merging!r}")
    if not net.background:
        raise InputError("the net has no background class; train a detector, or use localize")
    size = tuple(image.shape[2:])
    scales = scales or (net.scale_factors and clamp_scales(net.architecture, *size, net.scale_factors))
    raw = candidates(net, regressor, image, scales, flip, stride, None, 0.0, memory, least)
    found = grids(net, size, scales, flip, stride)
    return combine(raw, found, merging, threshold, match, average, overlap)


def combine(
    raw: Candidates,
    found: Sequence[Grid],
    merging: str = "greedy",
    threshold: float | None = None,
    match: str = "normalised",
    average: str = AVERAGE,
    overlap: float = OVERLAP,
) -> Detections:
    """Objects from the boxes of all places of these grids, best first; the arguments of `detect`."""
    threshold = THRESHOLDS[merging] if threshold is None else threshold
    if merging == "nms":
        kept = raw[nms(raw.boxes, raw.scores, raw.labels, iou_threshold=threshold)]
        boxes, counts = clipped(kept.boxes, found[0].image), torch.ones_like(kept.labels)
        return Detections(boxes, kept.labels, kept.scores, counts, kept.scores, kept.scores)
    merged = merge(raw, found[0].image, threshold, match, average)
    scores = normalize_scores(merged.sums, merged.boxes, found)
    return replace(merged, scores=scores)[nms(merged.boxes, scores, merged.labels, iou_threshold=overlap)]


def normalize_scores(sums: Tensor, boxes: Tensor, found: Sequence[Grid]) -> Tensor:
    """Accumulated confidences [n] of boxes [n, 4] as scores in 0..1 that mean the same in all images.

    s / (s + e), e being how many windows of these grids are to find an object there (windows.expected): 0.5
    is an object that all of them are certain of and no other window sees, whatever its size, the sizes of
    the image, the stride, and the border that keeps windows away.
    """
    return sums / (sums + expected_votes(boxes, found))


def clamp_scales(architecture: Architecture, height: int, width: int, scale_factors: Sequence[float]) -> list[float]:
    """The factors, those that would leave the image less than a window raised to the one that makes it a window."""
    least = architecture.window / min(height, width)
    return sorted({max(float(zoom), least) for zoom in scale_factors})
