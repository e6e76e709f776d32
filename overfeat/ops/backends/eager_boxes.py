"""Operations on boxes in eager PyTorch, which run where numba is not installed: exact, in quadratic time.

The functions are those of numba_components, numba_merge, numba_nms and numba_vote.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.boxes import iou, match_score

PAIRS = 1 << 20  # of boxes that are compared at a time
BLOCK = 500  # boxes that NMS takes at a time


def nms(boxes: Tensor, order: Tensor, groups: Tensor, iou_threshold: float, across_iou_threshold: float) -> Tensor:
    """See ops.boxes.nms, which checks the arguments. order: indices of the boxes, highest score first."""
    boxes, groups = boxes[order], groups[order]

    def excluded(a: Tensor, b: Tensor) -> Tensor:
        """Which boxes cannot both be kept: bool [a, b], for the positions of boxes."""
        overlaps, same = iou(boxes[a], boxes[b]), groups[a][:, None] == groups[b]
        return torch.where(same, overlaps > iou_threshold, overlaps > across_iou_threshold)

    kept = order[:0]  # positions
    for block in torch.arange(len(order), device=order.device).split(BLOCK):
        free = torch.ones(len(block), dtype=torch.bool, device=order.device)
        for earlier in kept.split(PAIRS // BLOCK):
            free &= ~excluded(earlier, block).any(dim=0)
        block = block[free]
        keep = torch.ones(len(block), dtype=torch.bool, device="cpu")
        for i, others in enumerate(excluded(block, block).cpu().triu(1)):
            if keep[i]:
                keep &= ~others
        kept = torch.cat([kept, block[keep.to(block.device)]])
    return order[kept]


def support(boxes: Tensor, scores: Tensor, groups: Tensor, min_iou: float) -> Tensor:
    """See ops.vote_boxes.support, which checks the arguments."""
    sums, everything = torch.zeros_like(scores, dtype=torch.float64), torch.arange(len(boxes), device=boxes.device)
    for rows, members, overlaps in _overlaps(boxes, groups, everything):
        sums[rows] = ((overlaps - min_iou).clamp(min=0) * scores[members].double()).sum(dim=1) / (1 - min_iou)
    return sums.to(boxes)


def averages(boxes: Tensor, scores: Tensor, groups: Tensor, chosen: Tensor, min_iou: float) -> tuple[Tensor, ...]:
    """See ops.vote_boxes.averages, which checks the arguments."""
    means, counts = boxes[chosen].double(), torch.zeros_like(chosen)
    max_score = torch.zeros_like(means[:, 0])
    for rows, members, overlaps in _overlaps(boxes, groups, chosen):
        near = (overlaps >= min_iou) & (overlaps > 0)
        values = torch.where(near, scores[members].double(), 0)
        weights = values * ((overlaps - min_iou) / (1 - min_iou))
        total = weights.sum(dim=1, keepdim=True)
        means[rows] = torch.where(total > 0, weights @ boxes[members].double() / total, means[rows])
        counts[rows], max_score[rows] = near.sum(dim=1), values.amax(dim=1)
    return means.to(boxes), counts, max_score.to(scores)


def _overlaps(boxes: Tensor, groups: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For some of the chosen boxes at a time: their positions in `chosen`, the boxes of their group, the IoUs.

    Yields int64 [n], int64 [m] and float64 [n, m].
    """
    of_chosen = groups[chosen]
    for group in of_chosen.unique():
        members = (groups == group).nonzero()[:, 0]
        for rows in (of_chosen == group).nonzero()[:, 0].split(max(1, PAIRS // len(members))):
            yield rows, members, iou(boxes[chosen[rows]].double(), boxes[members].double())


def components(boxes: np.ndarray, groups: np.ndarray, min_iou: float) -> np.ndarray:
    """See numba_components.components."""
    numbers = torch.arange(len(boxes), device="cpu")
    roots, pairs = numbers, [torch.empty(0, 2, dtype=torch.int64, device="cpu")]
    for rows, members, overlaps in _overlaps(torch.from_numpy(boxes), torch.from_numpy(groups), numbers):
        near = ((overlaps >= min_iou) & (overlaps > 0)).nonzero()
        pairs.append(torch.stack([rows[near[:, 0]], members[near[:, 1]]], dim=1))
    first, second = torch.cat(pairs).unbind(dim=1)
    while True:
        lower = roots.scatter_reduce(0, first, roots[second], "amin")
        if torch.equal(lower, roots):
            return np.unique(roots.numpy(), return_inverse=True)[1]
        roots = lower[lower]


def merge_boxes(
    boxes: Tensor, scores: Tensor, lengths: list[int], *,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Merge within runs of `lengths` boxes: see ops.merge_boxes, which checks the arguments, and ops.reference."""
    corners, sums = boxes.detach().cpu().clone(), scores.detach().cpu().clone()
    max_score, counts = sums.clone(), torch.ones_like(sums, dtype=torch.int64)
    merged_into = torch.full_like(counts, -1)
    limit = corners.new_tensor(match_threshold)
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        group = _Group(corners[own], match_metric, min_iou)
        while (pair := group.best_pair(limit)) is not None:
            i, j = pair[0] + start, pair[1] + start
            weight_i, weight_j = (counts[i], counts[j]) if box_average == "counts" else (1, 1)
            mean = (corners[i] * weight_i + corners[j] * weight_j) / (weight_i + weight_j)
            low, high = corners[i].minimum(corners[j]), corners[i].maximum(corners[j])
            corners[i] = mean.clamp(low, high)  # rounding may exceed the two
            sums[i] += sums[j]
            max_score[i] = torch.maximum(max_score[i], max_score[j])
            counts[i] += counts[j]
            counts[j], merged_into[j] = 0, i
            group.merge(*pair)
        start += length
    return tuple(values.to(boxes.device) for values in (corners, sums, max_score, counts, merged_into))


class _Group:
    """Boxes [n, 4] that are being merged, each with its best partner among those after it.

    The score of a box whose partner has changed is kept, a lower bound by then; the partner is searched when the box's
    turn comes.
    """

    def __init__(self, boxes: Tensor, match_metric: str, min_iou: float):
        self.boxes, self.rule = boxes, dict[str, Any](match_metric=match_metric, min_iou=min_iou)
        self.numbers = torch.arange(len(boxes), device="cpu")
        self.alive = torch.ones_like(self.numbers, dtype=torch.bool)
        self.stale, self.scores, self.partners = ~self.alive, boxes.new_empty(len(boxes)), self.numbers.clone()
        for rows in self.numbers.split(max(1, PAIRS // max(1, len(boxes)))):
            self._search(rows)

    def best_pair(self, limit: Tensor) -> tuple[int, int] | None:
        """The boxes i < j with the smallest score up to the limit, of equal ones the first i, then the first j."""
        while len(self.boxes) > 1:
            i = int(self.scores.argmin())
            if not self.scores[i] <= limit or self.scores[i] == torch.inf:
                return None
            if not self.stale[i]:
                return i, int(self.partners[i])
            self._search(self.numbers[i : i + 1])
        return None

    def merge(self, i: int, j: int) -> None:
        """Box i, which has been replaced, stands for j, too."""
        self.alive[j], self.scores[j] = False, torch.inf
        self.stale |= self.alive & ((self.partners == i) | (self.partners == j))
        self._search(self.numbers[i : i + 1])
        scores = match_score(self.boxes[:i], self.boxes[i : i + 1], **self.rule)[:, 0]
        earlier = (scores == self.scores[:i]) & (i < self.partners[:i]) & ~self.stale[:i]
        better = self.alive[:i] & ((scores < self.scores[:i]) | earlier)
        self.scores[:i][better], self.partners[:i][better], self.stale[:i][better] = scores[better], i, False

    def _search(self, rows: Tensor) -> None:
        """Search the partners of some boxes."""
        if not len(rows):
            return
        first = int(rows[0])
        pairs = match_score(self.boxes[rows], self.boxes[first:], **self.rule)
        pairs = pairs.masked_fill((self.numbers[first:] <= rows[:, None]) | ~self.alive[first:], torch.inf)
        scores, partners = pairs.min(dim=1)
        self.scores[rows], self.partners[rows], self.stale[rows] = scores, partners + first, False
