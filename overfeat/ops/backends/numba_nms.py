"""Non-maximum suppression on a CPU, compiled by numba: every box is compared with the kept boxes near it."""

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_grid import insert, iou, list_near, new_grid
from overfeat.ops.backends.numba_merge import compiled


def nms(boxes: Tensor, order: Tensor, groups: Tensor, iou_threshold: float, across_iou_threshold: float) -> Tensor:
    """See ops.boxes.nms, which checks the arguments. order: indices of the boxes, highest score first."""
    corners, of_group = (values.detach()[order].cpu().numpy() for values in (boxes, groups))
    rule = tuple(map(corners.dtype.type, (iou_threshold, across_iou_threshold, 0, 1)))
    keep = _keep(corners, of_group, rule)
    return order[torch.from_numpy(keep).to(order.device)]


@compiled
def _keep(corners, groups, rule):
    """Which boxes are kept, bool [n].

    rule: the threshold within a group and that of two groups, 0 and 1, in the boxes' dtype.
    """
    n = len(corners)
    keep, near, grid = np.zeros(n, np.bool_), np.empty(n, np.int32), new_grid(n)
    for i in range(n):
        keep[i] = not _suppressed(i, corners, groups, grid, rule, near)
        if keep[i]:
            insert(i, corners, grid)
    return keep


@compiled
def _suppressed(i, corners, groups, grid, rule, near):
    """Whether a kept box overlaps box i by more than the threshold."""
    own, across, zero, one = rule
    for at in range(list_near(i, corners, grid, float(min(own, across)), near)):
        k = near[at]
        if iou(corners[i], corners[k], zero, one) > (own if groups[i] == groups[k] else across):
            return True
    return False
