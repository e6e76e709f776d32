"""COCO's figures of detections, through pycocotools."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from overfeat.metrics.average_precision import Boxes
from overfeat.packages import package

FIGURES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large"),
)

PURPOSE = "average precisions need"


def check_installed() -> Any:
    """pycocotools' COCO. Raises InputError where it is not installed; called before an evaluation's work starts."""
    return package("pycocotools.coco", PURPOSE, "train").COCO


def coco(
    detections: Sequence[Boxes], truths: Sequence[Boxes], num_classes: int
) -> tuple[dict[str, float], list[float]]:
    """COCO's figures: those of its summary by name, and "AP" of each class; NaN without objects of a size or class.

    Difficult objects are ignored like COCO's crowds; an object's area is that of its box, and the 100 best boxes of a
    class and image count.
    """
    COCO, COCOeval = check_installed(), package("pycocotools.cocoeval", PURPOSE, "train").COCOeval
    annotations = [
        {**entry, "id": i, "area": entry["bbox"][2] * entry["bbox"][3]} for i, entry in enumerate(_entries(truths), 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        objects = COCO()
        objects.dataset = {
            "images": [{"id": index} for index in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(num_classes)],
        }
        objects.createIndex()
        evaluation = COCOeval(objects, _load_results(objects, list(_entries(detections))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    summary = dict(zip(FIGURES, evaluation.stats.tolist(), strict=True))
    of_classes = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1)).tolist()  # -1: without objects
    return {name: _nan_if_negative(value) for name, value in summary.items()}, [_nan_if_negative(v) for v in of_classes]


def _load_results(objects: Any, results: list[dict]) -> Any:
    """The results as a COCO data set."""
    if results:
        return objects.loadRes(results)
    empty = type(objects)()  # loadRes cannot read an empty list
    empty.dataset = {**objects.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _nan_if_negative(value: float) -> float:
    return math.nan if value < 0 else value


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
