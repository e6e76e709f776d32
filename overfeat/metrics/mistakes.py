"""Missed objects and false positives one by one, the worst first, each with its likely reason."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat.metrics.average_precision import Boxes
from overfeat.metrics.matching import match_image
from overfeat.ops.boxes import areas

MISS, FALSE_POSITIVE = "miss", "false positive"
PLURALS = {MISS: "misses", FALSE_POSITIVE: "false positives"}
# The likely reasons of each kind, in the order in which they are considered.
REASONS = {
    MISS: ("wrong class", "poor box", "low score", "not detected"),
    FALSE_POSITIVE: ("duplicate", "second class", "wrong class", "poor box", "background"),
}
POOR_IOU = 0.1  # smallest IoU at which a box is a poor one of an object, as in Hoiem's and TIDE's analyses


@dataclass(frozen=True)
class Mistake:
    """A missed object or a false positive.

    Attributes:
        image: Its index.
        kind: MISS or FALSE_POSITIVE.
        reason: One of REASONS[kind].
        label, box: Of the object or the detection.
        score: Of the false positive; of a miss the score of the detection below the threshold that matches it, else 0.
        other, iou: Label and IoU of what the reason refers to: of a miss a detection, of a false positive an object;
            else None and 0.
    """

    image: int
    kind: str
    reason: str
    label: int
    box: tuple[float, ...]
    score: float
    other: int | None
    iou: float


def list_mistakes(
    detections: Sequence[Boxes], truths: Sequence[Boxes], *, min_iou: float, min_score: float | Sequence[float]
) -> list[Mistake]:
    """All misses, then all false positives, each the worst first, at one IoU and score threshold.

    The matching is that of `operating_points`. A miss is worse the lower the score of the detection that matches it (0
    without one) and, of equal scores, the larger the object; a false positive the higher its score.

    A false positive is
        a "duplicate" if it overlaps an object of its class by `min_iou`,
        a "second class" if it overlaps another object so that is detected as what it is,
        of the "wrong class" if it overlaps another object so that is not,
        a "poor box" if it overlaps an object of its class by POOR_IOU,
        else "background".
    A miss is
        of the "wrong class" if a false positive of another class overlaps it by `min_iou`,
        a "poor box" if a false positive of its class overlaps it by POOR_IOU,
        a "low score" if a detection below the score threshold matches it,
        else "not detected".
    """
    mistakes = [
        mistake
        for index, (detected, truth) in enumerate(zip(detections, truths, strict=True))
        for mistake in _mistakes_in(index, detected, truth, min_iou, min_score)
    ]
    misses = [mistake for mistake in mistakes if mistake.kind == MISS]
    misses.sort(key=lambda miss: (miss.score, -float(areas(torch.tensor(miss.box)))))
    false_positives = [mistake for mistake in mistakes if mistake.kind == FALSE_POSITIVE]
    return misses + sorted(false_positives, key=lambda mistake: -mistake.score)


def _mistakes_in(
    index: int, detected: Boxes, truth: Boxes, min_iou: float, min_score: float | Sequence[float]
) -> Iterator[Mistake]:
    """The mistakes in one image."""
    assert detected.scores is not None
    match = match_image(detected, truth, min_iou=min_iou, min_score=min_score)
    for i in match.false_positives.nonzero()[:, 0].tolist():
        own, close = truth.labels == detected.labels[i], match.overlaps[i] >= min_iou
        choices = {
            "duplicate": own & close,
            "second class": ~own & close & match.matched,
            "wrong class": ~own & close,
            "poor box": own & (match.overlaps[i] >= POOR_IOU),
        }
        reason = _first(choices, match.overlaps[i], truth.labels) or ("background", None, 0.0)
        box, score = tuple(detected.boxes[i].tolist()), float(detected.scores[i])
        yield Mistake(index, FALSE_POSITIVE, reason[0], int(detected.labels[i]), box, score, *reason[1:])
    for j in match.missed.nonzero()[:, 0].tolist():
        own, overlaps = detected.labels == truth.labels[j], match.overlaps[:, j]
        choices = {
            "wrong class": match.false_positives & ~own & (overlaps >= min_iou),
            "poor box": match.false_positives & own & (overlaps >= POOR_IOU),
        }
        low = detected.scores[(match.partners == j) & (match.verdicts == 1)]
        without = ("low score" if len(low) else "not detected", None, 0.0)
        reason = _first(choices, overlaps, detected.labels) or without
        score = float(low[0]) if len(low) else 0.0
        yield Mistake(index, MISS, reason[0], int(truth.labels[j]), tuple(truth.boxes[j].tolist()), score, *reason[1:])


def count_reasons(mistakes: Sequence[Mistake]) -> dict[str, dict[str, int]]:
    """{kind: {reason: number of mistakes}}."""
    counts = Counter((mistake.kind, mistake.reason) for mistake in mistakes)
    return {kind: {reason: counts[kind, reason] for reason in reasons} for kind, reasons in REASONS.items()}


def mistake_table(mistakes: dict) -> str:
    """Mistakes by their likely reasons as lines of text: {"iou", "counts": see `count_reasons`}."""
    lines = [f"mistakes at an IoU of {mistakes['iou']:g} by their likely reasons"]
    for kind, plural in PLURALS.items():
        reasons = mistakes["counts"][kind]
        parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        lines.append(f"{plural}: {sum(reasons.values())} ({parts})")
    return "\n".join(lines)


def _first(choices: dict[str, Tensor], overlaps: Tensor, labels: Tensor) -> tuple[str, int, float] | None:
    """The first choice that has a candidate: its name, and the label and IoU of the candidate with the largest IoU."""
    for name, candidates in choices.items():
        if candidates.any():
            best = int(overlaps.where(candidates, -1.0).argmax())
            return name, int(labels[best]), float(overlaps[best])
    return None
