"""How well DeepMultiBox does: objects found by so many boxes, average precision, the paper's table 2."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.average_precision import Boxes, curves
from overfeat.boxes import SQUARES, iou
from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.evaluation import average_precisions, localization_errors, spaced
from overfeat.files import InputError, Journal, named
from overfeat.heads import MultiBox
from overfeat.localize import Detections, guesses
from overfeat.multibox import LEAST, OVERLAP, TOP, classify_boxes, combine, looks, propose
from overfeat.nets import OverFeat

BUDGETS = (1, 3, 5, 10, 25)  # windows that are classified, in the paper's table 2
KEPT = 100  # boxes of an image whose number the detection rate is told for


def evaluate_multibox(
    model: MultiBox,
    net: OverFeat | None,
    data: Annotated,
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
    windows: str = "both",
    top: int = TOP,
    threshold: float = OVERLAP,
    square: str = SQUARES[0],
    least: float = LEAST,
) -> dict:
    """Figures over annotated images.

    data: labels count in the classes of net, if there is one, or of a model with K boxes per class. limit, journal: as
    in evaluation.evaluate_detection; windows, top, threshold, square, least: as in multibox.detect_multibox. Gives
    {"images", "objects": counts, "looks": evaluations of the model an image, "rate": what `detection_rate` gives,
    "agnostic": what `class_agnostic` gives, "unreadable": [messages]}; where there are classes, for the `top` boxes,
    "map", "ap", "coco", "curves" as in evaluate_detection; with a net "windows": {number: what `budget` gives}. Raises
    InputError where no image can be used.
    """
    chosen = spaced(list(enumerate(data.samples)), limit)
    if not any((~sample.difficult).any() for _, sample in chosen):
        raise InputError(f"no objects in the {len(chosen)} images, so there is nothing to find; give others")
    done = {} if journal is None else journal.done
    found, truths, shares, unreadable, looked = [], [], [], [], 0
    for place, sample in tqdm(chosen, unit="image", file=sys.stderr, disable=None):
        key = f"{place} {sample.path.name}"
        if key not in done:
            try:
                image = sample.read(max_pixels)
                boxes, of_classes = propose(model, image, windows, threshold)[: max(KEPT, top)], torch.empty(0)
                if net is not None:
                    of_classes = classify_boxes(net, image, boxes.boxes[: max(*BUDGETS, top)], square)
            except InputError as error:
                unreadable.append(named(sample.path, error))
                continue
            result = [values.tolist() for values in (boxes.boxes, boxes.labels, boxes.scores, of_classes)]
            if journal is not None:
                journal.add(key, result)
            done[key] = result
        boxes, labels, scores, of_classes = done[key]
        boxes, labels, scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores)
        found.append(Detections(boxes, labels, scores, torch.ones_like(labels), scores, scores))
        shares.append(torch.tensor(of_classes).reshape(len(of_classes), net.object_classes if net else 0))
        true, labels, difficult = map(torch.from_numpy, (sample.boxes, sample.labels, sample.difficult))
        truths.append(Boxes(true, labels, difficult=difficult))
        looked += len(looks(*sample.size, windows))
    if not found:
        raise InputError(f"none of the {len(data)} images can be used; the first: {(unreadable or ['no images'])[0]}")
    results = {
        "images": len(found),
        "looks": looked / len(found),
        "objects": sum(int((~truth.difficult).sum()) for truth in truths),
        "rate": detection_rate(found, truths),
        "agnostic": class_agnostic(found, truths),
    }
    if net is not None or model.class_names is not None:
        best = [f[:top] for f in found]
        if net is not None:
            best = [combine(b, s[:top], least) for b, s in zip(best, shares, strict=True)]
        results |= average_precisions([Boxes(b.boxes, b.labels, b.scores) for b in best], truths, data.class_names)
    if net is not None:
        results["windows"] = {str(count): budget(found, shares, truths, count) for count in BUDGETS}
    return {**results, "unreadable": unreadable}


def detection_rate(found: Sequence[Detections], truths: Sequence[Boxes]) -> list[float]:
    """The share of all objects that the best 1, 2, ..., KEPT boxes of their images overlap by half (figure 1).

    Whatever their classes; of VOC's difficult objects none counts.
    """
    hits, objects = torch.zeros(KEPT, dtype=torch.float64), 0
    for boxes, truth in zip(found, truths, strict=True):
        true = truth.boxes[~truth.difficult] if truth.difficult is not None else truth.boxes
        objects += len(true)
        overlaps = iou(boxes.boxes[:KEPT].double(), true.double()) >= 0.5
        first = torch.where(overlaps.any(dim=0), overlaps.int().argmax(dim=0), KEPT) if len(overlaps) else true[:0, 0]
        hits += torch.bincount(first.long(), minlength=KEPT + 1)[:KEPT]
    return [round(rate, 6) for rate in (hits.cumsum(0) / max(1, objects)).tolist()]


def class_agnostic(found: Sequence[Detections], truths: Sequence[Boxes]) -> dict:
    """VOC's average precision of boxes of anything (figure 5), and its curve: {"ap", "recall", "precision"}."""
    ours = [Boxes(f.boxes, torch.zeros_like(f.labels), f.scores) for f in found]
    theirs = [Boxes(t.boxes, torch.zeros_like(t.labels), None, t.difficult) for t in truths]
    (curve,) = curves(ours, theirs, 1, "voc")
    kept = torch.linspace(0, max(0, len(curve.scores) - 1), min(len(curve.scores), 300)).long()
    values = {key: [round(v, 4) for v in getattr(curve, key)[kept].tolist()] for key in ("recall", "precision")}
    return {"ap": curve.average, **values}


def budget(
    found: Sequence[Detections], shares: Sequence[Tensor], truths: Sequence[Boxes], count: int
) -> dict[str, float]:
    """{"detection5", "classification5"} with `count` boxes classified (table 2), as shares of the images with objects.

    Of an image's five guesses of different classes one is to name an object, and for detection5 to overlap it by half.
    """
    best, true = [], []
    for boxes, share, truth in zip(found, shares, truths, strict=True):
        if len(truth.labels):
            guessed = guesses(combine(boxes[:count], share[:count], 0.0))
            best.append((guessed.labels, guessed.boxes))
            true.append((truth.labels, truth.boxes))

    def anywhere(images: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [(labels, torch.tensor([0.0, 0, 1, 1]).expand(len(labels), 4)) for labels, _ in images]

    return {
        "detection5": 1 - localization_errors(best, true)["top5"] / 100,
        "classification5": 1 - localization_errors(anywhere(best), anywhere(true))["top5"] / 100,
    }


def rate_table(results: dict) -> str:
    """The figures that have no table in evaluation, as lines of text in percent."""
    numbers = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(results["rate"])]
    lines = ["objects found by so many boxes:"]
    lines += [f"{n:5} {100 * results['rate'][n - 1]:6.2f} %" for n in numbers]
    lines.append(f"class-agnostic average precision: {100 * results['agnostic']['ap']:.2f} %")
    for count, shares in results.get("windows", {}).items():
        lines.append(f"{count:>5} windows: detection@5 {100 * shares['detection5']:6.2f} %, "
                     f"classification@5 {100 * shares['classification5']:6.2f} %")  # fmt: skip
    return "\n".join(lines)
