"""Figures of a detector over annotated images: average precision, precision and recall, confusion, mistakes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_annotated
from overfeat.dense.detections import Detections
from overfeat.detection.config import IOUS, MAX_MISTAKES, MIN_SCORE
from overfeat.errors import ArgumentError
from overfeat.files import Journal
from overfeat.metrics.average_precision import Boxes, ground_truth
from overfeat.metrics.coco import check_installed
from overfeat.metrics.confusion import confusion_matrix, confusion_table
from overfeat.metrics.mistakes import FALSE_POSITIVE, MISS, Mistake, count_reasons, list_mistakes, mistake_table
from overfeat.metrics.operating_points import SIZE_NOTE, operating_points, operating_table
from overfeat.metrics.report import average_precisions, precision_table
from overfeat.models.thresholds import check_min_score


@dataclass(frozen=True)
class PredictedImages:
    """Annotated images with their detections.

    Attributes:
        samples: The images that could be read.
        indices: Of the samples in the data set.
        detections, truths: The detected and the annotated boxes of each sample.
        unreadable: Messages about the images that are left out.
    """

    samples: list[Sample]
    indices: list[int]
    detections: list[Boxes]
    truths: list[Boxes]
    unreadable: list[str]


def predict_annotated(
    predict: Callable[[Tensor], Detections],
    data: Annotated,
    *,
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    journal: Journal | None = None,
    progress: bool = True,
) -> PredictedImages:
    """The detections in annotated images; arguments and errors as in `evaluate_detection`."""

    def predicted(image: Tensor) -> list:
        """Boxes, labels and scores as lists."""
        detections = predict(image)
        return [values.tolist() for values in (detections.boxes, detections.labels, detections.scores)]

    mapped = map_annotated(
        data.samples, predicted, max_images=max_images, max_pixels=max_pixels, journal=journal, progress=progress
    )
    images = PredictedImages([], [], [], [], mapped.unreadable)
    for index, sample, (boxes, labels, scores) in mapped.results:
        images.samples.append(sample)
        images.indices.append(index)
        detected = Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores))
        images.detections.append(detected)
        images.truths.append(ground_truth(sample))
    return images


def evaluate_detection(
    predict: Callable[[Tensor], Detections],
    data: Annotated,
    *,
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    journal: Journal | None = None,
    progress: bool = True,
    **options: Any,
) -> dict:
    """`detection_figures` of a detector over annotated images.

    Args:
        predict: The detections in an image uint8 [3, H, W], such as those of `detect`, whatever their scores.
        data: Images and boxes.
        max_images, max_pixels, journal, progress: See `map_images`.
        options: Of `detection_figures`.

    Raises:
        InputError: No image with an object can be used; pycocotools is not installed.
    """
    check_installed()
    images = predict_annotated(
        predict, data, max_images=max_images, max_pixels=max_pixels, journal=journal, progress=progress
    )
    return detection_figures(images, data.class_names, **options)


def detection_figures(
    images: PredictedImages,
    names: list[str],
    *,
    ignore_list: Collection[tuple[int, str]] = (),
    ious: Sequence[float] = IOUS,
    min_score: float | Sequence[float] = MIN_SCORE,
    max_mistakes: int = MAX_MISTAKES,
) -> dict:
    """Average precision, precision, recall and F1, confusions and mistakes of detections.

    Args:
        images: From `predict_annotated`.
        names: Of the classes.
        ignore_list: (number of an image from 1, class) pairs that ILSVRC's protocol, and it alone, does not count.
        ious: Smallest IoUs of a match, for precision, recall, F1 and confusions; the first is that of the mistakes too.
        min_score: Score threshold of precision, recall, F1, confusions and mistakes, one number or one for each class.
            Average precision has none.
        max_mistakes: How many of the worst misses are listed, and of the worst false positives.

    Returns:
        What `average_precisions` returns, and
            "images": their number; "unreadable": messages; "classes": names; "min_score"
            "at_iou": {IoU: what `operating_points` returns, with "confusion": see `confusion_matrix`}
            "mistakes": {"iou", "counts": see `count_reasons`, "miss": the worst misses, "false positive": the worst
                false positives}; each a `metrics.mistakes.Mistake` with the image's path and the names of classes
    """
    check_min_score(min_score, len(names))
    check_ious(ious)
    ignored = {(p, name) for p, index in enumerate(images.indices) for n, name in ignore_list if n == index + 1}
    detected = (images.detections, images.truths)
    at_iou = {
        str(float(min_iou)): operating_points(*detected, names, min_iou=min_iou, min_score=min_score)
        | {"confusion": confusion_matrix(*detected, len(names), min_iou=min_iou, min_score=min_score)}
        for min_iou in ious
    }
    return {
        "images": len(images.samples),
        **average_precisions(*detected, names, ignored),
        "min_score": min_score,
        "classes": names,
        "at_iou": at_iou,
        "mistakes": _mistakes(images, names, ious[0], min_score, max_mistakes),
        "unreadable": images.unreadable,
    }


def check_ious(ious: Sequence[float]) -> None:
    """Raises ArgumentError unless there are IoUs, above 0 and at most 1."""
    if not ious or not all(0 < min_iou <= 1 for min_iou in ious):
        raise ArgumentError("ious", f"must be above 0 and at most 1, not {', '.join(f'{v:g}' for v in ious) or 'none'}")


def _mistakes(
    images: PredictedImages, names: list[str], min_iou: float, min_score: float | Sequence[float], count: int
) -> dict:
    """The worst mistakes as JSON holds them."""
    mistakes = list_mistakes(images.detections, images.truths, min_iou=min_iou, min_score=min_score)

    def entry(mistake: Mistake) -> dict:
        other = None if mistake.other is None else names[mistake.other]
        where = {"image": str(images.samples[mistake.image].path), "class": names[mistake.label], "other": other}
        values = {k: v for k, v in asdict(mistake).items() if k not in ("image", "kind", "label", "other")}
        return {**where, **values}

    worst = {
        kind: [entry(mistake) for mistake in [m for m in mistakes if m.kind == kind][:count]]
        for kind in (MISS, FALSE_POSITIVE)
    }
    return {"iou": min_iou, "counts": count_reasons(mistakes), **worst}


def detection_report(results: dict) -> str:
    """The result of `evaluate_detection` as text: tables of average precision, operating points and confusions."""
    tables = [precision_table(results)]
    for min_iou, points in results["at_iou"].items():
        tables.append(operating_table(points, float(min_iou), results["min_score"]))
        tables.append(confusion_table(points["confusion"], results["classes"]))
    tables[1] = f"{tables[1]}\n{SIZE_NOTE}"
    return "\n\n".join([*tables, mistake_table(results["mistakes"])])
