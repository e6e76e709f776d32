"""Sums over the boxes that overlap each box, on a CPU, compiled by numba; the grid is that of numba_nms."""

import math

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_merge import LEVELS, MIN_LEVEL, SLACK, compiled
from overfeat.ops.backends.numba_nms import _bucket, _insert, _level, _new_grid


def support(boxes: Tensor, scores: Tensor, groups: Tensor, min_iou: float) -> Tensor:
    """See ops.vote_boxes.support, which checks the arguments."""
    corners, confidence, of_group = _arrays(boxes, scores, groups)
    return torch.from_numpy(_support(corners, confidence, of_group, min_iou)).to(boxes)


def averages(boxes: Tensor, scores: Tensor, groups: Tensor, chosen: Tensor, min_iou: float) -> tuple[Tensor, ...]:
    """See ops.vote_boxes.averages, which checks the arguments."""
    corners, confidence, of_group = _arrays(boxes, scores, groups)
    means, counts, max_score = _averages(corners, confidence, of_group, chosen.cpu().numpy(), min_iou)
    return (
        torch.from_numpy(means).to(boxes),
        torch.from_numpy(counts).to(groups.device),
        torch.from_numpy(max_score).to(scores),
    )


def _arrays(boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64, float64 and int64."""
    return boxes.detach().cpu().double().numpy(), scores.detach().cpu().double().numpy(), groups.cpu().numpy()


@compiled
def _full_grid(corners):
    grid = _new_grid(len(corners))
    for i in range(len(corners)):
        _insert(i, corners, grid)
    return grid


@compiled
def _support(corners, scores, groups, min_iou):
    grid, sums = _full_grid(corners), np.zeros(len(corners))
    nearby, ious = np.empty(len(corners), np.int32), np.empty(len(corners))
    for i in range(len(corners)):
        for at in range(_overlapping(i, corners, groups, grid, min_iou, nearby, ious)):
            sums[i] += scores[nearby[at]] * (ious[at] - min_iou) / (1 - min_iou)
    return sums


@compiled
def _averages(corners, scores, groups, chosen, min_iou):
    grid, means, counts = _full_grid(corners), np.empty((len(chosen), 4)), np.zeros(len(chosen), np.int64)
    max_score = np.zeros(len(chosen))
    nearby, ious = np.empty(len(corners), np.int32), np.empty(len(corners))
    for number in range(len(chosen)):
        i, total = chosen[number], 0.0
        means[number] = 0.0
        counts[number] = _overlapping(i, corners, groups, grid, min_iou, nearby, ious)
        for at in range(counts[number]):
            k = nearby[at]
            weight = scores[k] * (ious[at] - min_iou) / (1 - min_iou)
            total += weight
            max_score[number] = max(max_score[number], scores[k])
            for side in range(4):
                means[number, side] += weight * corners[k, side]
        if total > 0:
            means[number] /= total
        else:
            means[number] = corners[i]
    return means, counts, max_score


@compiled
def _overlapping(i, corners, groups, grid, min_iou, nearby, ious):
    """Collect the boxes of box i's group with an IoU of at least min_iou, itself too, and these IoUs: their number."""
    heads, of_level, links, population = grid
    x1, y1, x2, y2 = corners[i]
    side, count = max(x2 - x1, y2 - y1) * SLACK, 0
    least = min_iou / SLACK  # the IoU of two boxes is at most the ratio of their longer sides
    for level in range(LEVELS):
        size = 2.0 ** (level + MIN_LEVEL)  # longer sides lie in size / 2 .. size
        if population[level] == 0 or (level > 0 and (size < least * side or size / 2 * least > side)):
            continue
        first_column, last_column = math.floor((x1 - size * SLACK) / size), math.floor(x2 / size)
        first_row, last_row = math.floor((y1 - size * SLACK) / size), math.floor(y2 / size)
        if level == LEVELS - 1 or (last_column - first_column + 1.0) * (last_row - first_row + 1.0) > population[level]:
            k = of_level[level]
            while k >= 0:
                count = _collect(i, k, corners, groups, min_iou, nearby, ious, count)
                k = links[k, 1]
            continue
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                k = heads[_bucket(level, column, row, heads)]
                while k >= 0:  # a bucket may hold boxes of other cells, which have their own turn
                    own = math.floor(corners[k, 0] / size) == column and math.floor(corners[k, 1] / size) == row
                    if own and _level(corners[k]) == level:
                        count = _collect(i, k, corners, groups, min_iou, nearby, ious, count)
                    k = links[k, 0]
    return count


@compiled
def _collect(i, k, corners, groups, min_iou, nearby, ious, count):
    """Add box k if it belongs to the boxes of `_overlapping`; returns the number of them."""
    if groups[i] != groups[k]:
        return count
    a, b = corners[i], corners[k]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    same = a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]
    iou = shared / union if union > 0 else (1.0 if same else 0.0)
    if iou < min_iou or iou == 0:
        return count
    nearby[count], ious[count] = k, iou
    return count + 1
