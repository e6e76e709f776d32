"""Non-maximum suppression on a CPU, compiled by numba: every kept box removes those around it."""

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_compile import compiled
from overfeat.ops.backends.numba_index import first_segment, iou_of_range, list_ranges, new_index


def nms(boxes: Tensor, order: Tensor, groups: Tensor, iou_threshold: float, across_iou_threshold: float) -> Tensor:
    """See ops.boxes.nms, which checks the arguments. order: indices of the boxes, highest score first."""
    corners, of_group, ranks = (values.detach().cpu().numpy() for values in (boxes, groups, order))
    across = across_iou_threshold < 1
    index = new_index(corners, np.zeros_like(of_group) if across else of_group)
    rule = tuple(map(corners.dtype.type, (iou_threshold, across_iou_threshold, 1)))
    of_group = of_group[index.order]
    positions = np.empty_like(index.order)
    positions[index.order] = np.arange(len(corners))
    keep = _keep(positions[ranks], index, of_group, rule)
    return order[torch.from_numpy(keep).to(order.device)]


@compiled
def _keep(positions, index, groups, rule):
    """Which boxes are kept, bool [n], by rank. positions: of the boxes in the index; groups: by position.

    rule: the threshold within a group and that of two groups, and 1, in the boxes' dtype.
    """
    own, across, one = rule
    n = len(positions)
    keep, removed = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    ranges, ious = np.empty((len(index.rows), 2), np.int64), np.empty(n, index.corners.dtype)
    for rank in range(n):
        at = positions[rank]
        if removed[at]:
            continue
        keep[rank] = True
        segment = first_segment(index.groups_of[at], index)
        for number in range(list_ranges(at, segment, index, float(min(own, across)), ranges)):
            start, stop = ranges[number]
            iou_of_range(at, start, stop, index.corners, one, ious)
            _remove(ious, groups[at], groups[start:stop], own, across, removed[start:stop])
    return keep


@compiled
def _remove(ious, group, groups, own, across, removed):
    for k in range(len(removed)):
        removed[k] |= ious[k] > (own if groups[k] == group else across)
