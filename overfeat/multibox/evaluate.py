"""How well DeepMultiBox does: objects found by so many boxes, average precision, the paper's table 2."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.walk import each_image, subsample
from overfeat.dense.detections import Detections, best_per_class
from overfeat.errors import InputError
from overfeat.files import Journal
from overfeat.metrics.average_precision import Boxes, curves, ground_truth
from overfeat.metrics.localization import localization_errors
from overfeat.metrics.report import average_precisions
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.multibox.config import ProposalConfig
from overfeat.multibox.predict import SCORE_THRESHOLD, classify_boxes, propose, square_crops, with_classes
from overfeat.ops.boxes import SQUARES, iou, nms

WINDOWS = (1, 3, 5, 10, 25)  # boxes that are classified, in the paper's table 2
KEPT = 100  # boxes of an image whose number the detection rate is told for
Guessed = Sequence[tuple[Tensor, Tensor]]  # labels [n] and boxes [n, 4] of each image


def evaluate_multibox(
    model: MultiBox,
    net: OverFeat | None,
    data: Annotated,
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
    crops: str = "both",
    max_detections: int = ProposalConfig.max_detections,
    nms_iou_threshold: float = ProposalConfig.nms_iou_threshold,
    square: str = SQUARES[0],
    score_threshold: float = SCORE_THRESHOLD,
) -> dict:
    """Figures over annotated images.

    data: labels count in the classes of net, if there is one, or of a model with K boxes per class. limit, journal: as
    in evaluation.evaluate_detection; the last five: as in `detect_multibox`. Gives
    {"images", "objects": counts, "crops": evaluations of the model an image, "rate": what `detection_rate` gives,
    "agnostic": what `class_agnostic` gives, "unreadable": [messages]}; where there are classes, for the best boxes,
    "map", "ap", "coco", "curves" as in evaluate_detection; with a net "windows": {number of boxes classified: what
    `at_5` gives}. Raises InputError as evaluation.each_image, and where all objects are marked difficult.
    """

    def work(image: Tensor) -> list:
        proposals = propose(model, image, crops=crops, nms_iou_threshold=nms_iou_threshold)
        boxes, probabilities = proposals[: max(KEPT, max_detections)], torch.empty(0)
        if net is not None:
            classified = boxes.boxes[: max(*WINDOWS, max_detections)]
            probabilities = classify_boxes(net, image, classified, square=square)
        return [values.tolist() for values in (boxes.boxes, boxes.labels, boxes.scores, probabilities)]

    samples = subsample(data.samples, limit)
    if samples and all(sample.difficult.all() for sample in samples):
        raise InputError(f"no object of the {len(samples)} images counts: there are none, or all are marked difficult")
    results, unreadable = each_image(data, work, max_pixels, limit, journal)
    found, truths, of_classes = [], [], []
    for _, sample, (boxes, labels, scores, probabilities) in results:
        boxes, labels, scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores)
        found.append(Detections.from_boxes(boxes, labels, scores))
        of_classes.append(
            torch.tensor(probabilities).reshape(len(probabilities), net.num_foreground_classes if net else 0)
        )
        truths.append(ground_truth(sample))
    figures = {
        "images": len(found),
        "objects": sum(len(truth.labels) for truth in truths),
        "crops": sum(len(square_crops(*sample.size, crops)) for _, sample, _ in results) / len(found),
        "rate": detection_rate(found, truths),
        "agnostic": class_agnostic(found, truths),
    }
    if net is not None or model.class_names is not None:
        best = [f[:max_detections] for f in found]
        if net is not None:
            best = [
                with_classes(b, p[:max_detections], score_threshold=score_threshold)
                for b, p in zip(best, of_classes, strict=True)
            ]
        figures |= average_precisions([Boxes(b.boxes, b.labels, b.scores) for b in best], truths, data.class_names)
    if net is not None:
        figures["windows"] = {
            str(count): at_5(
                [
                    with_classes(f[:count], p[:count], score_threshold=0.0)
                    for f, p in zip(found, of_classes, strict=True)
                ],
                truths,
            )
            for count in WINDOWS
        }
    return {**figures, "unreadable": unreadable}


def detection_rate(found: Sequence[Detections], truths: Sequence[Boxes]) -> list[float]:
    """The share of all objects that the best 1, 2, ..., KEPT boxes of their images overlap by half (figure 1).

    Whatever their classes: boxes of several are suppressed by NMS first. VOC's difficult objects do not count.
    """
    hits, objects = torch.zeros(KEPT, dtype=torch.float64), 0
    for boxes, truth in zip(found, truths, strict=True):
        true = truth.boxes[~truth.difficult] if truth.difficult is not None else truth.boxes
        objects += len(true)
        overlaps = iou(_of_anything(boxes).boxes[:KEPT].double(), true.double()) >= 0.5
        first = torch.where(overlaps.any(dim=0), overlaps.int().argmax(dim=0), KEPT) if len(overlaps) else true[:0, 0]
        hits += torch.bincount(first.long(), minlength=KEPT + 1)[:KEPT]
    return [round(rate, 6) for rate in (hits.cumsum(0) / max(1, objects)).tolist()]


def class_agnostic(found: Sequence[Detections], truths: Sequence[Boxes]) -> dict:
    """VOC's average precision of boxes of anything (figure 5), and its curve: {"ap", "recall", "precision"}.

    Boxes of several classes are suppressed by NMS first, as the paper does with those of one box per class.
    """
    every = [_of_anything(f) for f in found]
    ours = [Boxes(f.boxes, torch.zeros_like(f.labels), f.scores) for f in every]
    theirs = [Boxes(t.boxes, torch.zeros_like(t.labels), None, t.difficult) for t in truths]
    (curve,) = curves(ours, theirs, 1, "voc")
    kept = torch.linspace(0, max(0, len(curve.scores) - 1), min(len(curve.scores), 300)).long()
    values = {key: [round(v, 4) for v in getattr(curve, key)[kept].tolist()] for key in ("recall", "precision")}
    return {"ap": curve.average, **values}


def _of_anything(found: Detections) -> Detections:
    if len(found.labels.unique()) < 2:
        return found
    return found[nms(found.boxes, found.scores, iou_threshold=ProposalConfig.nms_iou_threshold)]


def at_5(found: Sequence[Detections], truths: Sequence[Boxes]) -> dict[str, float]:
    """{"detection5", "classification5"}: shares of the images with objects that are right (table 2).

    Of an image's five best guesses of different classes one is to name an object, and for detection5 to overlap it by
    half, as in ILSVRC's localization task.
    """
    pairs = [(best_per_class(f), truth) for f, truth in zip(found, truths, strict=True) if len(truth.labels)]
    guessed = [(guess.labels, guess.boxes) for guess, _ in pairs]
    true = [(truth.labels, truth.boxes) for _, truth in pairs]
    return {
        "detection5": 1 - localization_errors(guessed, true)["top5"] / 100,
        "classification5": 1 - localization_errors(_anywhere(guessed), _anywhere(true))["top5"] / 100,
    }


def _anywhere(images: Guessed) -> Guessed:
    """With boxes that all overlap."""
    return [(labels, torch.tensor([0.0, 0, 1, 1]).expand(len(labels), 4)) for labels, _ in images]


def rate_table(results: dict) -> str:
    """The figures that have no table in evaluation, as lines of text in percent."""
    numbers = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(results["rate"])]
    lines = ["objects found by so many boxes:"]
    lines += [f"{n:5} {100 * results['rate'][n - 1]:6.2f} %" for n in numbers]
    lines.append(f"class-agnostic average precision: {100 * results['agnostic']['ap']:.2f} %")
    for count, right in results.get("windows", {}).items():
        lines.append(f"{count:>5} windows: detection@5 {100 * right['detection5']:6.2f} %, "
                     f"classification@5 {100 * right['classification5']:6.2f} %")  # fmt: skip
    return "\n".join(lines)
