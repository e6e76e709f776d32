"""Sums over the boxes that overlap each box, on a CPU, compiled by numba."""

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_grid import insert, iou, list_near, new_grid
from overfeat.ops.backends.numba_merge import compiled


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
    grid = new_grid(len(corners))
    for i in range(len(corners)):
        insert(i, corners, grid)
    return grid


@compiled
def _support(corners, scores, groups, min_iou):
    grid, sums = _full_grid(corners), np.zeros(len(corners))
    near, ious = np.empty(len(corners), np.int32), np.empty(len(corners))
    for i in range(len(corners)):
        for at in range(_overlapping(i, corners, groups, grid, min_iou, near, ious)):
            sums[i] += scores[near[at]] * (ious[at] - min_iou) / (1 - min_iou)
    return sums


@compiled
def _averages(corners, scores, groups, chosen, min_iou):
    grid, means, counts = _full_grid(corners), np.empty((len(chosen), 4)), np.zeros(len(chosen), np.int64)
    max_score = np.zeros(len(chosen))
    near, ious = np.empty(len(corners), np.int32), np.empty(len(corners))
    for number in range(len(chosen)):
        i, total = chosen[number], 0.0
        means[number] = 0.0
        counts[number] = _overlapping(i, corners, groups, grid, min_iou, near, ious)
        for at in range(counts[number]):
            k = near[at]
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
def _overlapping(i, corners, groups, grid, min_iou, near, ious):
    """List the boxes of box i's group with an IoU of at least min_iou, above 0, and these IoUs: their number."""
    count = 0
    for at in range(list_near(i, corners, grid, min_iou, near)):
        k = near[at]
        overlap = iou(corners[i], corners[k], 0.0, 1.0) if groups[i] == groups[k] else 0.0
        if overlap >= min_iou and overlap > 0:
            near[count], ious[count] = k, overlap
            count += 1
    return count
