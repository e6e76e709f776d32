"""Figures of DeepMultiBox: detection rate, class-agnostic precision, average precision, and the paper's table 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_annotated, subsample
from overfeat.dense.detections import Detections, best_per_class
from overfeat.errors import InputError
from overfeat.files import Journal
from overfeat.metrics.average_precision import Boxes, curves, ground_truth
from overfeat.metrics.coco import check_installed
from overfeat.metrics.localization import localization_errors
from overfeat.metrics.report import average_precisions
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.multibox.config import ProposalConfig
from overfeat.multibox.predict import SCORE_THRESHOLD, classify_boxes, propose, square_crops, with_classes
from overfeat.ops.boxes import iou, nms

CLASSIFIED_BOXES = (1, 3, 5, 10, 25)  # numbers of boxes that are classified, in the paper's table 2
MAX_RANK = 100  # boxes of an image up to which the detection rate is given
TASKS = ("detection", "classification")
Predictions = Sequence[tuple[Tensor, Tensor]]  # labels [n] and boxes [n, 4] of each image


@dataclass(frozen=True)
class _Predicted:
    """The proposals in an image, the class probabilities [m, num_classes] of the first of them, and its objects."""

    proposals: Detections
    probabilities: Tensor
    truth: Boxes

    @classmethod
    def from_lists(cls, lists: list, truth: Boxes) -> "_Predicted":
        """From what `_predict` returns."""
        boxes, labels, scores, probabilities = map(torch.tensor, lists)
        proposals = Detections.from_boxes(boxes.reshape(-1, 4), labels.long(), scores)
        return cls(proposals, probabilities.reshape(len(probabilities), -1 if len(probabilities) else 0), truth)

    def classified(self, count: int, score_threshold: float) -> Detections:
        """The first `count` boxes with their classes."""
        return with_classes(self.proposals[:count], self.probabilities[:count], score_threshold=score_threshold)


def evaluate_multibox(
    model: MultiBox,
    net: OverFeat | None,
    data: Annotated,
    config: ProposalConfig,
    *,
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    journal: Journal | None = None,
    progress: bool = True,
) -> dict:
    """Figures of proposals and, with classes, of detections over annotated images.

    Raises InputError if no image with an object can be used, or all objects are marked difficult. `net` classifies the
    boxes; None: no classes but those of a model with K boxes per class. For the other arguments see `map_images`.

    Returns:
        {"images", "objects": counts, "crops": evaluations of the model per image, "rate": see `detection_rate`,
        "agnostic": see `class_agnostic`, "unreadable": messages}; with classes, also what `average_precisions` returns
        for the max_detections best boxes; with a net, "windows": {number of boxes classified: see `accuracy_at_5`}.
    """
    if net is not None or model.class_names is not None:
        check_installed()
    samples = subsample(data.samples, max_images)
    if samples and all(sample.difficult.all() for sample in samples):
        raise InputError(f"no object of the {len(samples)} images counts: there are none, or all are marked difficult")
    predict = partial(_predict, model, net, config)
    mapped = map_annotated(
        data.samples, predict, max_images=max_images, max_pixels=max_pixels, journal=journal, progress=progress
    )
    images = [_Predicted.from_lists(lists, ground_truth(sample)) for _, sample, lists in mapped.results]
    crops = sum(len(square_crops(*sample.size, config.crops)) for _, sample, _ in mapped.results) / len(images)
    figures = _figures_of_proposals(images, crops)
    if net is not None or model.class_names is not None:
        figures |= _figures_of_classes(images, data.class_names, config, classified=net is not None)
    return {**figures, "unreadable": mapped.unreadable}


def _predict(model: MultiBox, net: OverFeat | None, config: ProposalConfig, image: Tensor) -> list:
    """The boxes, labels, scores and class probabilities of the proposals in an image, as lists."""
    proposals = propose(model, image, crops=config.crops, nms_iou_threshold=config.nms_iou_threshold)
    boxes = proposals[: max(MAX_RANK, config.max_detections)]
    probabilities = torch.empty(0, dtype=torch.float32)
    if net is not None:
        classified = boxes.boxes[: max(*CLASSIFIED_BOXES, config.max_detections)]
        probabilities = classify_boxes(net, image, classified)
    return [values.tolist() for values in (boxes.boxes, boxes.labels, boxes.scores, probabilities)]


def _figures_of_proposals(images: Sequence[_Predicted], crops: float) -> dict:
    """Counts and the class-agnostic figures."""
    proposals, truths = [image.proposals for image in images], [image.truth for image in images]
    return {
        "images": len(images),
        "objects": sum(len(truth.labels) for truth in truths),
        "crops": crops,
        "rate": detection_rate(proposals, truths),
        "agnostic": class_agnostic(proposals, truths),
    }


def _figures_of_classes(
    images: Sequence[_Predicted], names: list[str], config: ProposalConfig, *, classified: bool
) -> dict:
    """Average precision and, where a net classified the boxes, table 2's accuracies."""
    top, truths = config.max_detections, [image.truth for image in images]
    if not classified:
        return average_precisions([_boxes(image.proposals[:top]) for image in images], truths, names)
    best = [_boxes(image.classified(top, SCORE_THRESHOLD)) for image in images]
    windows = {str(n): accuracy_at_5([i.classified(n, 0.0) for i in images], truths) for n in CLASSIFIED_BOXES}
    return {**average_precisions(best, truths, names), "windows": windows}


def _boxes(detections: Detections) -> Boxes:
    return Boxes(detections.boxes, detections.labels, detections.scores)


def detection_rate(proposals: Sequence[Detections], truths: Sequence[Boxes]) -> list[float]:
    """The fraction of all objects that the best 1, 2, ..., MAX_RANK boxes of their images overlap by half (figure 1).

    Class-agnostic: boxes of several classes go through NMS first. VOC's difficult objects do not count.
    """
    hits, objects = torch.zeros(MAX_RANK, dtype=torch.float64), 0
    for boxes, truth in zip(proposals, truths, strict=True):
        true = truth.boxes[~truth.difficult] if truth.difficult is not None else truth.boxes
        objects += len(true)
        overlaps = iou(_merge_classes(boxes).boxes[:MAX_RANK].double(), true.double()) >= 0.5
        if len(overlaps):
            ranks = torch.where(overlaps.any(dim=0), overlaps.int().argmax(dim=0), MAX_RANK)
            hits += torch.bincount(ranks, minlength=MAX_RANK + 1)[:MAX_RANK]
    return [round(rate, 6) for rate in (hits.cumsum(0) / max(1, objects)).tolist()]


def class_agnostic(proposals: Sequence[Detections], truths: Sequence[Boxes]) -> dict:
    """VOC's class-agnostic average precision (figure 5), and its curve: {"ap", "recall", "precision"}.

    Boxes of several classes go through NMS first, as in the paper with those of one box per class.
    """
    merged = [_merge_classes(boxes) for boxes in proposals]
    predicted = [Boxes(boxes.boxes, torch.zeros_like(boxes.labels), boxes.scores) for boxes in merged]
    objects = [Boxes(t.boxes, torch.zeros_like(t.labels), None, t.difficult) for t in truths]
    (curve,) = curves(predicted, objects, 1, "voc")
    points = torch.linspace(0, max(0, len(curve.scores) - 1), min(len(curve.scores), 300)).long()
    values = {key: [round(v, 4) for v in getattr(curve, key)[points].tolist()] for key in ("recall", "precision")}
    return {"ap": curve.average, **values}


def _merge_classes(proposals: Detections) -> Detections:
    """NMS over the boxes of all classes, where there are several."""
    if len(proposals.labels.unique()) < 2:
        return proposals
    return proposals[nms(proposals.boxes, proposals.scores, iou_threshold=ProposalConfig.nms_iou_threshold)]


def accuracy_at_5(detections: Sequence[Detections], truths: Sequence[Boxes]) -> dict[str, float]:
    """{"detection5", "classification5"}: fractions of the images with objects that are right (table 2).

    One of an image's five best predictions of different classes has the class of an object and, for detection5,
    overlaps it by half, as in ILSVRC's localization task.
    """
    pairs = [(best_per_class(d), truth) for d, truth in zip(detections, truths, strict=True) if len(truth.labels)]
    predicted = [(top.labels, top.boxes) for top, _ in pairs]
    true = [(truth.labels, truth.boxes) for _, truth in pairs]
    return {
        "detection5": 1 - localization_errors(predicted, true)["top5"] / 100,
        "classification5": 1 - localization_errors(_same_box(predicted), _same_box(true))["top5"] / 100,
    }


def _same_box(images: Predictions) -> Predictions:
    """With one box for all, so that labels alone decide."""
    return [(labels, torch.tensor([0.0, 0, 1, 1]).expand(len(labels), 4)) for labels, _ in images]


def rate_table(results: dict) -> str:
    """Detection rate, class-agnostic precision and table 2's accuracies of `evaluate_multibox` as lines of text."""
    numbers = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(results["rate"])]
    lines = ["detection rate by number of boxes:"]
    lines += [f"{n:5} {100 * results['rate'][n - 1]:6.2f} %" for n in numbers]
    lines.append(f"class-agnostic average precision: {100 * results['agnostic']['ap']:.2f} %")
    for count, accuracy in results.get("windows", {}).items():
        detection, classification = (f"{task}@5 {100 * accuracy[task + '5']:6.2f} %" for task in TASKS)
        lines.append(f"{count:>5} boxes classified: {detection}, {classification}")
    return "\n".join(lines)
