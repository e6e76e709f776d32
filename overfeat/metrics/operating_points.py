"""Precision, recall and F1 of detections at a score threshold and at the best one, by class and by object size."""

import math
from collections.abc import Sequence

import torch

from overfeat.errors import printable
from overfeat.metrics.average_precision import ALL_AREAS, Boxes, Curve, curves, mean_average_precision
from overfeat.metrics.report import none_for_nan

# COCO's size groups: areas of boxes in square pixels of the image; an area of exactly 32 or 96 squared is in both.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
SIZE_NOTE = "small, medium, large: box areas up to 32x32, up to 96x96, and larger, in pixels of the image as it is read"
COLUMNS = ("AP voc", "AP coco", "precision", "recall", "F1", "best F1", "score")


def operating_points(
    detections: Sequence[Boxes],
    truths: Sequence[Boxes],
    names: Sequence[str],
    *,
    min_iou: float,
    min_score: float | Sequence[float],
) -> dict:
    """Precision, recall and F1 at a score threshold, and the best F1, at one IoU.

    Detections match objects as COCO defines it: the highest score first, each the unmatched object of its class with
    the largest IoU, if that is `min_iou` or more. Difficult objects are ignored. All values are in 0..1, and None where
    they are not defined, such as the precision without detections.

    Args:
        detections, truths: Of each image; the detections with scores.
        names: Of the classes.
        min_iou: Smallest IoU of a match, above 0.
        min_score: Score threshold of precision, recall and F1; one number, or one for each class.

    Returns:
        {"classes": {name: point} of classes with objects or detections, "all": point over the detections of all
        classes, "sizes": {group of SIZES: point}}. A point is {"objects", "detections": counts, those of detections
        from min_score on, "ap": COCO's average precision at this IoU, of several classes the mean, "precision",
        "recall", "f1", "best_f1", "best_f1_score": the score threshold that gives it}; but for sizes, for which VOC
        has none, also "voc": VOC's average precision at this IoU; for classes also "min_score".
    """

    def of_classes(protocol: str, area: tuple[float, float] = ALL_AREAS) -> list[Curve]:
        return curves(detections, truths, len(names), protocol, min_iou=min_iou, area=area)

    plain, voc = of_classes("coco50"), of_classes("voc")
    lowest = list(min_score) if isinstance(min_score, Sequence) else [min_score] * len(names)
    classes = {
        name: _point([curve], [score]) | {"min_score": score} | none_for_nan({"voc": of_voc.average})
        for name, curve, of_voc, score in zip(names, plain, voc, lowest, strict=True)
        if curve.objects or len(curve.scores)
    }
    return {
        "classes": classes,
        "all": _point(plain, lowest) | none_for_nan({"voc": mean_average_precision(voc)}),
        "sizes": {size: _point(of_classes("coco50", area), lowest) for size, area in SIZES.items()},
    }


def best_f1(of_classes: Sequence[Curve]) -> tuple[float, float]:
    """The best F1 of the detections of classes together, and the score threshold that gives it.

    The score is NaN without true positives, and so are both without objects.
    """
    scores, right = torch.cat([curve.scores for curve in of_classes]), torch.cat([curve.right for curve in of_classes])
    objects = sum(curve.objects for curve in of_classes)
    if not right.any():
        return (0.0 if objects else math.nan), math.nan
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], right[order].cumsum(0).double()
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold selects all of equal scores or none
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best])


def _point(of_classes: Sequence[Curve], min_scores: Sequence[float]) -> dict:
    """The figures of classes together, each with its score threshold."""
    objects = sum(curve.objects for curve in of_classes)
    # Detections are compared with a threshold in their own precision, as `detect` does.
    kept = [curve.scores.float() >= score for curve, score in zip(of_classes, min_scores, strict=True)]
    selected = sum(int(of_class.sum()) for of_class in kept)
    true = sum(int((of_class & curve.right).sum()) for of_class, curve in zip(kept, of_classes, strict=True))
    f1, score = best_f1(of_classes)
    values = {
        "ap": mean_average_precision(of_classes),
        "precision": true / selected if selected else math.nan,
        "recall": true / objects if objects else math.nan,
        "f1": 2 * true / (selected + objects) if objects else math.nan,
        "best_f1": f1,
        "best_f1_score": score,
    }
    return {"objects": objects, "detections": selected, **none_for_nan(values)}


def operating_table(points: dict, min_iou: float, min_score: float | Sequence[float]) -> str:
    """The result of `operating_points` as aligned lines of text, in percent; scores by class have their column."""
    rows = {
        **{printable(name): point for name, point in points["classes"].items()},
        "all": points["all"],
        **points["sizes"],
    }
    width, several = max(len(name) for name in rows), isinstance(min_score, Sequence)
    selected = "the min score of their class" if several else f"a score of {min_score:g}"
    columns = [*COLUMNS[:2], *(["min score"] if several else []), *COLUMNS[2:]]
    lines = [
        f"at an IoU of {min_iou:g}; precision, recall and F1 of detections with {selected} or more",
        f"{'':{width}}  objects" + "".join(f"{name:>11}" for name in columns),
    ]
    for name, point in rows.items():
        cells = [_percent(point.get(key)) for key in ("voc", "ap", "precision", "recall", "f1", "best_f1")]
        if several:
            cells.insert(2, f"{point['min_score']:g}" if "min_score" in point else "")
        cells.append(_rounded_down(point["best_f1_score"]))
        lines.append(f"{name:{width}}  {point['objects']:7}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _rounded_down(score: float | None) -> str:
    """A threshold in digits that still selects the detections of this score."""
    return "" if score is None else f"{math.floor(1000 * score) / 1000:.3f}"
