"""Average precision of detections, as ILSVRC, PASCAL VOC and COCO count it.

Every protocol ranks the detections of a class over all images by their score and calls each right or
wrong; they differ in which object a detection may claim, in what counts nowhere, and in how the
precision is averaged over the recall.
"""

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from overfeat.errors import InputError
from overfeat.ops.boxes import areas, iou

PROTOCOLS = ("ilsvrc", "voc", "voc2007", "coco50")
# Where the precision is read, for those that do not integrate it; COCO's as pycocotools rounds them.
RECALLS = {
    "voc2007": torch.arange(11, dtype=torch.float64) / 10,
    "coco50": torch.from_numpy(np.linspace(0, 1, 101)),
}
COCO_FIGURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
                "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large")  # fmt: skip


@dataclass(frozen=True)
class Boxes:
    """What was found in one image, or is in it: boxes [n, 4], labels int64 [n].

    scores [n]: of what was found. difficult bool [n]: VOC's flag, of what is there; None: no object is.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    difficult: Tensor | None = None


def ground_truth(sample: object) -> Boxes:
    """What is in an annotated image (data.annotated.Sample)."""
    boxes, labels, difficult = map(torch.from_numpy, (sample.boxes, sample.labels, sample.difficult))
    return Boxes(boxes, labels, difficult=difficult)


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class, detection by detection in falling score.

    scores, right, recall, precision: [detections that count]. objects: those that count. average:
    the protocol's average precision; NaN for a class without objects.
    """

    scores: Tensor
    right: Tensor
    recall: Tensor
    precision: Tensor
    objects: int
    average: float


def curves(
    found: Sequence[Boxes],
    truths: Sequence[Boxes],
    classes: int,
    protocol: str = "voc",
    ignore_list: Collection[tuple[int, int]] = (),
) -> list[Curve]:
    """The curve of every class over all images; found and truths are in the same order.

    protocol:
    "ilsvrc": a detection claims, of the objects that are still free and that it overlaps by their own
    threshold min(0.5, wh / ((w + 10)(h + 10))) or more, the one it overlaps most (IoU, ties: the first).
    The average is the area under the precision's monotone envelope. ignore_list: (image, class) pairs,
    numbers from 0, that count nowhere.
    "voc": a detection claims the object that it overlaps most, free or not, by 0.5 or more; a second
    claim is wrong. Difficult objects and what claims them count nowhere. The same average.
    "voc2007": as "voc", with the average of the envelope at the recalls 0, 0.1, ..., 1.
    "coco50": COCO's at an IoU of 0.5: free objects as in "ilsvrc", the last of equal ones, with the
    average of the envelope at the recalls 0, 0.01, ..., 1; difficult objects, and what claims none but those,
    count nowhere. Without COCO's limit of 100 boxes an image and class. For all of its figures see `coco`.
    Detections of equal score keep their order. Raises InputError for another protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"the protocol is one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    if len(found) != len(truths):
        raise ValueError(f"{len(found)} images with detections, {len(truths)} with objects")
    skipped = set(ignore_list)
    pairs = list(enumerate(zip(found, truths, strict=True)))
    return [
        _curve([_of_class(f, t, k, protocol) for n, (f, t) in pairs if (n, k) not in skipped], protocol)
        for k in range(classes)
    ]


def mean_average_precision(found: Sequence[Curve]) -> float:
    """The mean over the classes that have objects; NaN where none has."""
    averages = [curve.average for curve in found if curve.objects]
    return sum(averages) / len(averages) if averages else math.nan


def coco(found: Sequence[Boxes], truths: Sequence[Boxes], classes: int) -> tuple[dict[str, float], list[float]]:
    """COCO's figures through pycocotools: those of its summary by name, and "AP" of each class.

    Difficult objects are ignored as COCO's crowds are; an object's area is that of its box, and the 100 best boxes
    of a class and image count. NaN where there are no objects, of a size or class.
    """
    from pycocotools.coco import (
        COCO,
    )  # not everybody who imports overfeat has it, as on a GPU machine without a network
    from pycocotools.cocoeval import COCOeval

    def loaded(results: list[dict]) -> COCO:
        if results:
            return objects.loadRes(results)
        nothing = COCO()  # loadRes cannot read an empty list
        nothing.dataset = {**objects.dataset, "annotations": []}
        nothing.createIndex()
        return nothing

    images = [{"id": number} for number in range(len(truths))]
    categories = [{"id": label} for label in range(classes)]
    annotations = [
        {**entry, "id": i + 1, "area": entry["bbox"][2] * entry["bbox"][3]} for i, entry in enumerate(_entries(truths))
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        objects = COCO()
        objects.dataset = {"images": images, "annotations": annotations, "categories": categories}
        objects.createIndex()
        judge = COCOeval(objects, loaded(list(_entries(found))), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    summary = dict(zip(COCO_FIGURES, judge.stats.tolist(), strict=True))
    of_classes = judge.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1)).tolist()  # -1: without objects
    return (
        {name: math.nan if value < 0 else value for name, value in summary.items()},
        [math.nan if value < 0 else value for value in of_classes],
    )


def _entries(images: Sequence[Boxes]) -> Iterator[dict]:
    """COCO's annotations or, with scores, its results; images and categories are numbered from 0."""
    for number, image in enumerate(images):
        for i, ((x1, y1, x2, y2), label) in enumerate(zip(image.boxes.tolist(), image.labels.tolist(), strict=True)):
            entry = {"image_id": number, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            if image.scores is not None:
                entry["score"] = float(image.scores[i])
            else:
                entry["iscrowd"] = int(image.difficult is not None and image.difficult[i])
            yield entry


def _of_class(found: Boxes, truth: Boxes, k: int, protocol: str) -> tuple[Tensor, Tensor, int]:
    """For one class in one image: the scores [n], the verdicts int64 [n], and how many objects count.

    A verdict is 1 for a detection that is right, 0 for a wrong one, -1 for one that counts nowhere.
    """
    ours, theirs = found.labels == k, truth.labels == k
    scores, true = found.scores[ours], truth.boxes[theirs].double()
    ignored = torch.zeros(len(true), dtype=torch.bool)
    if protocol != "ilsvrc" and truth.difficult is not None:
        ignored = truth.difficult[theirs]
    overlaps = iou(found.boxes[ours].double(), true)
    enough = torch.full((len(true),), 0.5, dtype=torch.float64)
    if protocol == "ilsvrc":
        width, height = (true[:, 2:] - true[:, :2]).unbind(dim=1)
        enough = enough.minimum(areas(true) / ((width + 10) * (height + 10)))
    verdicts = torch.zeros(len(scores), dtype=torch.int64)
    free = torch.ones(len(true), dtype=torch.bool)
    for i in scores.argsort(descending=True, stable=True).tolist() if len(true) else ():
        close = overlaps[i] >= enough
        if not protocol.startswith("voc"):
            close &= free
        if protocol == "coco50" and (close & ~ignored).any():
            close &= ~ignored
        rivals = overlaps[i].where(close, -1.0)
        best = int(len(rivals) - 1 - rivals.flip(0).argmax() if protocol == "coco50" else rivals.argmax())
        if not close[best]:
            continue
        verdicts[i] = -1 if ignored[best] else int(free[best])
        free[best] = bool(ignored[best])
    return scores, verdicts, len(true) - int(ignored.sum())


def _curve(images: list[tuple[Tensor, Tensor, int]], protocol: str) -> Curve:
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
    if not objects:
        return float("nan")
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
    if protocol not in RECALLS:
        return float((envelope * recall.diff(prepend=recall.new_zeros(1))).sum())
    # The first detection that reaches each recall; past the last, the precision is 0.
    places = torch.searchsorted(recall, RECALLS[protocol])
    return float(torch.cat([envelope, envelope.new_zeros(1)])[places].mean())
