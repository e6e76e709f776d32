"""Greedy merging of boxes (section 4.3, steps d-g)."""

import sys
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from overfeat.errors import ArgumentError, check_choice
from overfeat.ops.boxes import MATCH_METRICS, check_boxes, check_values
from overfeat.ops.library import operator
from overfeat.ops.registry import implementation
from overfeat.ops.transforms import refuse_transforms

BOX_AVERAGES = ("pairwise", "counts")


@dataclass(frozen=True)
class Merged:
    """The M boxes that `merge_boxes` made of T, ordered by group, then by their first box."""

    boxes: Tensor  # [M, 4]
    scores: Tensor  # [M], summed over the boxes merged
    groups: Tensor  # int64 [M]
    counts: Tensor  # int64 [M], the number of boxes merged; they add up to T
    max_score: Tensor  # [M], the largest single score
    members: Tensor  # int64 [T], for every input box the index of its merged box


def merge_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor | None = None, *, match_threshold: float = 0.5,
    match_metric: str = "normalised", box_average: str = "pairwise", min_iou: float = 0.5,
) -> Merged:  # fmt: skip
    """Merge boxes greedily: the best matching pair of a group first, while pairs match (section 4.3, d-g).

    Of equal match scores the pair with the first box comes first, then the one with the first second box. A merged
    box takes the position of its first box. It has no gradient: boxes that require one are merged detached. Time grows
    nearly linearly with the number of boxes if they are spread out or equal, quadratically if thousands lie close
    together.

    Args:
        boxes: [T, 4] as (x1, y1, x2, y2), float32 or float64.
        scores: [T], not negative, dtype of the boxes.
        groups: int64 [T] in any order: only boxes of a group merge, such as those of one image and class. None is
            one group.
        match_threshold: the largest boxes.match_score at which a pair merges.
        match_metric, min_iou: see boxes.match_score.
        box_average: "pairwise", the mean of the two boxes, as in the paper, or "counts", their mean weighted by
            the boxes already merged.

    Raises:
        TypeError: for what is not a tensor.
        ValueError: for wrong shapes and dtypes (InputError, a subclass, for invalid values), and inside torch.func's
            transforms.
    """
    if groups is None and isinstance(boxes, Tensor):
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    check_boxes(boxes, scores, groups)
    refuse_transforms("merge_boxes", boxes, scores)
    _check_rule(match_threshold, match_metric, box_average, min_iou)
    rule = (float(match_threshold), match_metric, box_average, float(min_iou))
    return Merged(*torch.ops.overfeat.merge_boxes(boxes.detach(), scores.detach(), groups, *rule))


def _check_rule(match_threshold: float, match_metric: str, box_average: str, min_iou: float) -> None:
    check_choice("match_metric", match_metric, MATCH_METRICS)
    check_choice("box_average", box_average, BOX_AVERAGES)
    too_large = isinstance(match_threshold, Integral) and match_threshold > sys.float_info.max
    if not isinstance(match_threshold, Real) or not match_threshold >= 0 or too_large:
        raise ArgumentError("match_threshold", f"must be a number, 0 or more, not {match_threshold!r}")
    if not isinstance(min_iou, Real) or not 0 <= min_iou <= 1:
        raise ArgumentError("min_iou", f"must be a number from 0 to 1, not {min_iou!r}")


@operator("overfeat::merge_boxes")
def _merge_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    check_values(boxes, scores)
    sorted_groups, order = groups.sort(stable=True)
    lengths = sorted_groups.unique_consecutive(return_counts=True)[1].tolist()
    merged, sums, max_score, counts, merged_into = implementation("merge_boxes", boxes)(
        boxes[order], scores[order], lengths,
        match_threshold=match_threshold, match_metric=match_metric, box_average=box_average, min_iou=min_iou,
    )  # fmt: skip
    alive = counts > 0
    index = alive.cumsum(0) - 1
    members = torch.empty_like(order)
    members[order] = index[_final(merged_into)]
    return merged[alive], sums[alive], sorted_groups[alive], counts[alive], max_score[alive], members


def _final(merged_into: Tensor) -> Tensor:
    """For every box the index of the one that it ended in, by pointer doubling; merged_into is -1 for survivors."""
    final = torch.where(merged_into < 0, torch.arange(len(merged_into), device=merged_into.device), merged_into)
    while not torch.equal(final, final[final]):
        final = final[final]
    return final


@_merge_boxes.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    count = torch.library.get_ctx().new_dynamic_size()
    per_box = boxes.new_empty(count, 4), boxes.new_empty(count), groups.new_empty(count), groups.new_empty(count)
    return *per_box, boxes.new_empty(count), groups.new_empty(groups.shape[0])
