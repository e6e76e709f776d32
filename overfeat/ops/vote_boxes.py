"""Box voting: boxes that others of their group confirm, and their averages (after Gidaris & Komodakis 2015)."""

import torch
from torch import Tensor

from overfeat.errors import ArgumentError, check_fraction
from overfeat.ops.backends import eager_boxes, numba_modules
from overfeat.ops.boxes import check_boxes, check_values
from overfeat.ops.transforms import refuse_transforms


def support(boxes: Tensor, scores: Tensor, groups: Tensor | None = None, *, min_iou: float = 0.4) -> Tensor:
    """How far the boxes of its group confirm each box: the sum of their scores, weighted by their overlap.

    A box counts with the weight (IoU - min_iou) / (1 - min_iou), 0 below min_iou and 1 for the box itself.

    Args:
        boxes, scores: [T, 4] and [T], both float32 or both float64.
        groups: int64 [T], or None for one group.
        min_iou: From 0 up, and less than 1.

    Returns:
        [T]. It has no gradient.

    Raises:
        TypeError: for what is not a tensor.
        ValueError: for wrong shapes and dtypes (InputError, a subclass, for invalid values), and inside torch.func's
            transforms.
    """
    groups = _checked("support", boxes, scores, groups, min_iou)
    return (numba_modules.load("numba_vote") or eager_boxes).support(boxes, scores, groups, min_iou)


def averages(
    boxes: Tensor, scores: Tensor, groups: Tensor | None = None, *, chosen: Tensor, min_iou: float = 0.4
) -> tuple[Tensor, ...]:
    """For each chosen box the mean of the boxes of its group, with the weights of `support` times their scores.

    Args:
        boxes, scores, groups: As in `support`.
        chosen: int64 [n], indices of boxes.
        min_iou: As in `support`.

    Returns:
        Boxes [n, 4], the number of boxes averaged in each, int64 [n], and the largest of their scores [n].

    Raises:
        ValueError: As `support`.
    """
    groups = _checked("averages", boxes, scores, groups, min_iou)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.int64:
        raise TypeError(f"chosen must be an int64 tensor, not {getattr(chosen, 'dtype', type(chosen).__name__)}")
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(boxes)):
        raise ArgumentError("chosen", f"must be indices of the {len(boxes)} boxes")
    return (numba_modules.load("numba_vote") or eager_boxes).averages(boxes, scores, groups, chosen, min_iou)


def _checked(op: str, boxes: Tensor, scores: Tensor, groups: Tensor | None, min_iou: float) -> Tensor:
    """The groups. Raises ValueError for invalid arguments."""
    if groups is None and isinstance(boxes, Tensor):
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    check_boxes(boxes, scores, groups)
    refuse_transforms(op, boxes, scores)
    check_values(boxes, scores)
    check_fraction("min_iou", min_iou)
    if min_iou == 1:
        raise ArgumentError("min_iou", "must be less than 1")
    return groups
