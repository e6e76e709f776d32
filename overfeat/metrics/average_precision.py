"""Average precision of detections, as ILSVRC, PASCAL VOC and COCO (at one IoU, 0.5 by default) define it.

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
ALL_AREAS = (0.0, math.inf)
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
class Matching:
    """How the n detections of a class in an image match the m objects of that class.

    Attributes:
        scores: [n], of the detections.
        verdicts: int64 [n], 1 for a true positive, 0 for a false positive, -1 for a detection that is ignored.
        partners: int64 [n], the object that each detection matches, an index into those of the class, or -1.
        counted: bool [m], the objects that are not ignored.
    """

    scores: Tensor
    verdicts: Tensor
    partners: Tensor
    counted: Tensor


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
    *,
    min_iou: float = 0.5,
    area: tuple[float, float] = ALL_AREAS,
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
        min_iou: What stands for 0.5 above.
        area: Smallest and largest area in square pixels; as in COCO's size groups, other objects are ignored, and so
            are detections that match them, or that have another area and match none.
    """
    if protocol not in PROTOCOLS:
        raise ArgumentError("protocol", f"must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} images with detections, {len(truths)} with objects")
    ignored = set(ignore_list)
    of_classes: list[list[Matching]] = [[] for _ in range(num_classes)]
    for i, (detected, truth) in enumerate(zip(detections, truths, strict=True)):
        for k in {*detected.labels.tolist(), *truth.labels.tolist()}:
            if (i, k) not in ignored:
                of_classes[k].append(match_class(detected, truth, k, protocol, min_iou=min_iou, area=area))
    return [curve_of_matches(images, protocol) for images in of_classes]


def mean_average_precision(of_classes: Sequence[Curve]) -> float:
    """The mean over the classes that have objects; NaN if none has."""
    averages = [curve.average for curve in of_classes if curve.objects]
    return sum(averages) / len(averages) if averages else math.nan


def match_class(
    detections: Boxes,
    truth: Boxes,
    k: int,
    protocol: str,
    *,
    min_iou: float = 0.5,
    area: tuple[float, float] = ALL_AREAS,
) -> Matching:
    """Match the detections of class k in one image; arguments as in `curves`."""
    assert detections.scores is not None
    mine, theirs = detections.labels == k, truth.labels == k
    scores, boxes, true = detections.scores[mine], detections.boxes[mine].double(), truth.boxes[theirs].double()
    difficult = torch.zeros(len(true), dtype=torch.bool)
    if protocol != "ilsvrc" and truth.difficult is not None:
        difficult = truth.difficult[theirs]
    ignored = difficult | _outside(true, area)
    overlaps, thresholds = iou(boxes, true), _thresholds(true, protocol, min_iou)
    verdicts, partners = torch.zeros(len(scores), dtype=torch.int64), torch.full((len(scores),), -1)
    unmatched = torch.ones(len(true), dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    for i in order[(overlaps >= thresholds).any(dim=1)[order]].tolist():
        close = overlaps[i] >= thresholds
        if not protocol.startswith("voc"):
            close &= unmatched
        if protocol == "coco50" and (close & ~ignored).any():
            close &= ~ignored
        rivals = overlaps[i].where(close, -1.0)
        best = int(len(rivals) - 1 - rivals.flip(0).argmax() if protocol == "coco50" else rivals.argmax())
        if not close[best]:
            continue  # all are matched
        verdicts[i], partners[i] = -1 if ignored[best] else int(unmatched[best]), best
        unmatched[best] = bool(difficult[best])
    verdicts[(partners < 0) & _outside(boxes, area)] = -1
    return Matching(scores, verdicts, partners, ~ignored)


def _outside(boxes: Tensor, area: tuple[float, float]) -> Tensor:
    """Boxes whose area is not in this range: bool [n]."""
    own = areas(boxes)
    return (own < area[0]) | (own > area[1])


def _thresholds(objects: Tensor, protocol: str, min_iou: float) -> Tensor:
    """The IoU that a detection of each of these objects needs: float64 [n]."""
    thresholds = torch.full((len(objects),), min_iou, dtype=torch.float64)
    if protocol == "ilsvrc":
        width, height = (objects[:, 2:] - objects[:, :2]).unbind(dim=1)
        thresholds = thresholds.minimum(areas(objects) / ((width + 10) * (height + 10)))
    return thresholds


def curve_of_matches(images: Sequence[Matching], protocol: str) -> Curve:
    """The curve of one class, from what `match_class` gives for each image."""
    scores = torch.cat([torch.empty(0, dtype=torch.float32), *(image.scores for image in images)]).double()
    verdicts = torch.cat([torch.empty(0, dtype=torch.int64), *(image.verdicts for image in images)])
    objects = sum(int(image.counted.sum()) for image in images)
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
