"""Average precision of detections, as ILSVRC, PASCAL VOC and COCO (at an IoU of 0.5) define it.

Every protocol ranks the detections of a class over all images by their score and marks each as true or false positive;
they differ in which object a detection may match, in what is ignored, and in how the precision is averaged over recall.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from overfeat.errors import ArgumentError
from overfeat.ops.boxes import areas, iou

PROTOCOLS = ("ilsvrc", "voc", "voc2007", "coco50")
# The recalls at which the precision is sampled by the protocols that do not integrate it; COCO's as pycocotools rounds.
RECALLS = {
    "voc2007": torch.arange(11, dtype=torch.float64) / 10,
    "coco50": torch.from_numpy(np.linspace(0, 1, 101)),
}


@dataclass(frozen=True)
class Boxes:
    """The detections or the objects of one image: boxes [n, 4], labels int64 [n].

    scores [n]: of detections. difficult bool [n]: VOC's flag, of objects; None: no object is difficult.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    difficult: Tensor | None = None


class Annotation(Protocol):
    """An annotated image, such as data.annotated.Sample: arrays of n boxes, labels and flags."""

    @property
    def boxes(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def difficult(self) -> np.ndarray: ...


def ground_truth(sample: Annotation) -> Boxes:
    """The objects of an annotated image."""
    boxes, labels, difficult = map(torch.from_numpy, (sample.boxes, sample.labels, sample.difficult))
    return Boxes(boxes, labels, difficult=difficult)


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class, detection by detection in decreasing score.

    scores, right (whether it is a true positive), recall, precision: [detections that are not ignored]. objects: those
    that are not ignored. average: the protocol's average precision; NaN for a class without objects.
    """

    scores: Tensor
    right: Tensor
    recall: Tensor
    precision: Tensor
    objects: int
    average: float


def curves(
    detections: Sequence[Boxes],
    truths: Sequence[Boxes],
    num_classes: int,
    protocol: str = "voc",
    ignore_list: Collection[tuple[int, int]] = (),
) -> list[Curve]:
    """The curve of every class over all images.

    Protocols (detections of equal score keep their order):
        "ilsvrc": A detection matches, among the objects that are unmatched and that it overlaps by their own threshold
            min(0.5, wh / ((w + 10)(h + 10))) or more, the one with the largest IoU (the first of equal ones). The
            average is the area under the precision's monotone envelope.
        "voc": A detection matches the object with the largest IoU, matched or not, if it is 0.5 or more; a second match
            is a false positive. Difficult objects and their detections are ignored. The same average.
        "voc2007": As "voc", with the mean of the envelope at the recalls 0, 0.1, ..., 1.
        "coco50": COCO's at an IoU of 0.5: unmatched objects as in "ilsvrc", the last of equal ones, with the mean of
            the envelope at the recalls 0, 0.01, ..., 1; difficult objects, and detections that match only those, are
            ignored. Without COCO's limit of 100 boxes per image and class. For all of its figures see `metrics.coco`.

    Args:
        detections, truths: Of each image; the detections with scores.
        num_classes: Labels are below it.
        protocol: One of PROTOCOLS; else raises ArgumentError.
        ignore_list: (index of an image, class) pairs that are ignored.
    """
    if protocol not in PROTOCOLS:
        raise ArgumentError("protocol", f"must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} images with detections, {len(truths)} with objects")
    ignored = set(ignore_list)
    pairs = list(enumerate(zip(detections, truths, strict=True)))
    return [
        _curve([_match_class(d, t, k, protocol) for i, (d, t) in pairs if (i, k) not in ignored], protocol)
        for k in range(num_classes)
    ]


def mean_average_precision(of_classes: Sequence[Curve]) -> float:
    """The mean over the classes that have objects; NaN if none has."""
    averages = [curve.average for curve in of_classes if curve.objects]
    return sum(averages) / len(averages) if averages else math.nan


def _match_class(detections: Boxes, truth: Boxes, k: int, protocol: str) -> tuple[Tensor, Tensor, int]:
    """Scores [n] and verdicts int64 [n] of the detections of one class in one image, and how many objects count.

    A verdict is 1 for a true positive, 0 for a false positive, -1 for a detection that is ignored.
    """
    assert detections.scores is not None
    mine, theirs = detections.labels == k, truth.labels == k
    scores, true = detections.scores[mine], truth.boxes[theirs].double()
    ignored = torch.zeros(len(true), dtype=torch.bool)
    if protocol != "ilsvrc" and truth.difficult is not None:
        ignored = truth.difficult[theirs]
    overlaps = iou(detections.boxes[mine].double(), true)
    thresholds = torch.full((len(true),), 0.5, dtype=torch.float64)
    if protocol == "ilsvrc":
        width, height = (true[:, 2:] - true[:, :2]).unbind(dim=1)
        thresholds = thresholds.minimum(areas(true) / ((width + 10) * (height + 10)))
    verdicts = torch.zeros(len(scores), dtype=torch.int64)
    unmatched = torch.ones(len(true), dtype=torch.bool)
    for i in scores.argsort(descending=True, stable=True).tolist() if len(true) else ():
        close = overlaps[i] >= thresholds
        if not protocol.startswith("voc"):
            close &= unmatched
        if protocol == "coco50" and (close & ~ignored).any():
            close &= ~ignored
        rivals = overlaps[i].where(close, -1.0)
        best = int(len(rivals) - 1 - rivals.flip(0).argmax() if protocol == "coco50" else rivals.argmax())
        if not close[best]:
            continue
        verdicts[i] = -1 if ignored[best] else int(unmatched[best])
        unmatched[best] = bool(ignored[best])
    return scores, verdicts, len(true) - int(ignored.sum())


def _curve(images: list[tuple[Tensor, Tensor, int]], protocol: str) -> Curve:
    """The curve of one class, from what `_match_class` returns for each image."""
    scores = torch.cat([torch.empty(0), *(scores for scores, _, _ in images)]).double()
    verdicts = torch.cat([torch.empty(0, dtype=torch.int64), *(verdicts for _, verdicts, _ in images)])
    objects = sum(count for _, _, count in images)
    order = scores.argsort(descending=True, stable=True)
    order = order[verdicts[order] >= 0]
    right = verdicts[order] == 1
    hits = right.cumsum(0).double()
    precision = hits / torch.arange(1, len(hits) + 1)
    recall = hits / objects if objects else torch.full_like(hits, torch.nan)
    return Curve(scores[order], right, recall, precision, objects, _average(recall, precision, objects, protocol))


def _average(recall: Tensor, precision: Tensor, objects: int, protocol: str) -> float:
    """The protocol's average of the precision's monotone envelope."""
    if not objects:
        return float("nan")
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
    if protocol not in RECALLS:
        return float((envelope * recall.diff(prepend=recall.new_zeros(1))).sum())
    # The first detection that reaches each recall; past the last, the precision is 0.
    indices = torch.searchsorted(recall, RECALLS[protocol])
    return float(torch.cat([envelope, envelope.new_zeros(1)])[indices].mean())
