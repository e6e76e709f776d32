"""Confusion between classes: the objects of each by the class that was detected there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.errors import printable
from overfeat.metrics.average_precision import Boxes
from overfeat.metrics.matching import ImageMatch, match_image

BACKGROUND = "background"
MAX_COLUMNS = 12  # classes of a table; of more, the most frequent confusions are listed
MAX_LISTED = 20


def confusion_matrix(
    detections: Sequence[Boxes],
    truths: Sequence[Boxes],
    num_classes: int,
    *,
    min_iou: float,
    min_score: float | Sequence[float],
) -> list[list[int]]:
    """Counts of objects by their class (row) and the class that was detected there (column).

    The diagonal counts the true positives of `operating_points`. The detections that these leave, with a score of
    `min_score` or more, match the objects that they leave whatever their classes: the pair with the largest IoU first,
    of equal ones that with the highest score, down to an IoU of `min_iou`. The last column counts objects without a
    detection, the last row detections without an object (both "background"). Difficult objects do not count.
    """
    counts = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
    for detected, truth in zip(detections, truths, strict=True):
        match = match_image(detected, truth, min_iou=min_iou, min_score=min_score)
        partners = torch.where(match.selected & (match.verdicts == 1), match.partners, -1)
        _match_across_classes(partners, match, detected, min_iou)
        kept = match.selected & (match.verdicts >= 0)
        lost = match.counted.clone()
        lost[partners[partners >= 0]] = False
        background = torch.tensor([num_classes])
        columns = torch.cat([detected.labels[kept], background.expand(int(lost.sum()))])
        rows = torch.cat([torch.cat([truth.labels, background])[partners[kept]], truth.labels[lost]])
        counts.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)
    return counts.tolist()


def _match_across_classes(partners: Tensor, match: ImageMatch, detected: Boxes, min_iou: float) -> None:
    """Add partners of the false positives among the missed objects."""
    assert detected.scores is not None
    missed = match.missed
    close = (match.overlaps >= min_iou) & match.false_positives[:, None] & missed
    i, j = close.nonzero().unbind(1)
    order = zip((-match.overlaps[i, j]).tolist(), (-detected.scores[i]).tolist(), i.tolist(), j.tolist(), strict=True)
    for _, _, detection, truth in sorted(order):
        if partners[detection] < 0 and missed[truth]:
            partners[detection], missed[truth] = truth, False


def confusion_table(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix as aligned lines of text: of classes that occur, or of many the most frequent confusions."""
    labels = [*map(printable, names), BACKGROUND]
    used = [k for k in range(len(names)) if any(counts[k]) or any(row[k] for row in counts)] + [len(names)]
    if len(used) > MAX_COLUMNS + 1:
        return _most_frequent(counts, labels)
    shown = [label if len(label) <= 16 else f"{label[:15]}." for label in labels]
    cells = [["" if i == k == len(names) else str(counts[i][k]) for k in used] for i in used]
    first = max(len(labels[k]) for k in used)
    widths = [2 + max(len(shown[k]), *(len(row[c]) for row in cells)) for c, k in enumerate(used)]
    lines = [
        "objects of each class (row) by the class detected there (column); background: without a partner",
        " " * first + "".join(f"{shown[k]:>{width}}" for k, width in zip(used, widths, strict=True)),
    ]
    for i, row in zip(used, cells, strict=True):
        lines.append(f"{labels[i]:{first}}" + "".join(f"{c:>{width}}" for c, width in zip(row, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def _most_frequent(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """The largest counts of objects detected as another class, a line each."""
    classes = range(len(labels) - 1)
    pairs = [(i, k) for i in classes for k in classes if i != k and counts[i][k]]
    pairs.sort(key=lambda pair: -counts[pair[0]][pair[1]])
    lines = [f"{counts[i][k]:7}  {labels[i]} detected as {labels[k]}" for i, k in pairs[:MAX_LISTED]]
    more = f", {MAX_LISTED} of {len(pairs)} pairs of classes" if len(pairs) > MAX_LISTED else ""
    return "\n".join([f"most frequent confusions of classes{more}:", *(lines or ["none"])])
