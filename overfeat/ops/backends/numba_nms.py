"""Non-maximum suppression on a CPU, compiled by numba: nearly linear in time where the kept boxes are spread out.

Every box is compared with the kept boxes near it, which a hashed grid over their top left corners holds, one for every
power of two of their longer sides.
"""

import math

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_merge import LEVELS, MIN_LEVEL, SLACK, compiled


def nms(boxes: Tensor, order: Tensor, groups: Tensor, iou_threshold: float, across_iou_threshold: float) -> Tensor:
    """See ops.boxes.nms, which checks the arguments. order: indices of the boxes, highest score first."""
    corners, of_group = (values.detach()[order].cpu().numpy() for values in (boxes, groups))
    number = corners.dtype.type
    keep = _keep(corners, of_group, (number(iou_threshold), number(across_iou_threshold), number(0.0)))
    return order[torch.from_numpy(keep).to(order.device)]


@compiled
def _keep(corners, groups, rule):
    """Which boxes are kept, bool [n]. rule: threshold within a group, of two groups, and 0 in the boxes' dtype."""
    n = len(corners)
    keep = np.zeros(n, np.bool_)
    grid = _new_grid(n)
    for i in range(n):
        keep[i] = not _suppressed(i, corners, groups, grid, rule)
        if keep[i]:
            _insert(i, corners, grid)
    return keep


@compiled
def _new_grid(n):
    """The last box of each bucket and level; the boxes before it in its bucket and level; the number of a level."""
    buckets = 1
    while buckets < 2 * n:
        buckets *= 2
    heads, of_level = np.full(buckets, -1, np.int32), np.full(LEVELS, -1, np.int32)
    return heads, of_level, np.full((n, 2), -1, np.int32), np.zeros(LEVELS, np.int64)


@compiled
def _level(box):
    """The power of two of a box's longer side, as a level of the grid."""
    side = max(box[2] - box[0], box[3] - box[1])
    return min(max(math.frexp(side)[1] - MIN_LEVEL, 0), LEVELS - 1) if side > 0 else 0


@compiled
def _bucket(level, column, row, heads):
    return (column * 73856093 ^ row * 19349663 ^ level * 83492791) & (len(heads) - 1)


@compiled
def _insert(i, corners, grid):
    heads, of_level, links, population = grid
    level = _level(corners[i])
    size = 2.0 ** (level + MIN_LEVEL)
    bucket = _bucket(level, math.floor(corners[i, 0] / size), math.floor(corners[i, 1] / size), heads)
    links[i, 0], links[i, 1] = heads[bucket], of_level[level]
    heads[bucket], of_level[level] = i, i
    population[level] += 1


@compiled
def _suppressed(i, corners, groups, grid, rule):
    """Whether a kept box overlaps box i by more than the threshold."""
    heads, of_level, links, population = grid
    x1, y1, x2, y2 = float(corners[i, 0]), float(corners[i, 1]), float(corners[i, 2]), float(corners[i, 3])
    side = max(x2 - x1, y2 - y1) * SLACK
    least = float(min(rule[0], rule[1])) / SLACK  # the IoU of two boxes is at most the ratio of their longer sides
    for level in range(LEVELS):
        size = 2.0 ** (level + MIN_LEVEL)  # longer sides lie in size / 2 .. size
        if population[level] == 0 or (level > 0 and (size < least * side or size / 2 * least > side)):
            continue
        first_column, last_column = math.floor((x1 - size * SLACK) / size), math.floor(x2 / size)
        first_row, last_row = math.floor((y1 - size * SLACK) / size), math.floor(y2 / size)
        if level == LEVELS - 1 or (last_column - first_column + 1.0) * (last_row - first_row + 1.0) > population[level]:
            k = of_level[level]
            while k >= 0:
                if _overlap(corners[i], corners[k], groups[i] == groups[k], rule):
                    return True
                k = links[k, 1]
            continue
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                k = heads[_bucket(level, column, row, heads)]
                while k >= 0:
                    if _overlap(corners[i], corners[k], groups[i] == groups[k], rule):
                        return True
                    k = links[k, 0]
    return False


@compiled
def _overlap(a, b, same_group, rule):
    """Whether the IoU of two boxes is above the threshold, in the steps of ops.boxes.iou."""
    zero = rule[2]
    threshold = rule[0] if same_group else rule[1]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, zero) * max(height, zero)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    if union > zero:
        return shared / union > threshold
    return threshold < 1 and a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]
