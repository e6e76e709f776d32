"""Sums over the boxes that overlap each box, on a CPU, compiled by numba."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_compile import compiled, reordered
from overfeat.ops.backends.numba_index import first_segment, iou_of_range, list_ranges, new_index, previous_equal

CHUNK = 2048  # boxes that a thread takes at a time


def support(boxes: Tensor, scores: Tensor, groups: Tensor, min_iou: float) -> Tensor:
    """See ops.vote_boxes.support, which checks the arguments."""
    corners, confidence, of_group = _arrays(boxes, scores, groups)
    index, sums = new_index(corners, of_group), np.empty(len(corners))
    values = confidence[index.order]
    equal = previous_equal(corners, of_group)
    distinct = np.flatnonzero(equal[index.order] < 0)  # positions, neighbours in turn
    _in_chunks(len(distinct), lambda a, b: _support(distinct[a:b], index, values, min_iou, sums))
    _copy_equal(equal, sums)
    return torch.from_numpy(sums).to(boxes)


def averages(boxes: Tensor, scores: Tensor, groups: Tensor, chosen: Tensor, min_iou: float) -> tuple[Tensor, ...]:
    """See ops.vote_boxes.averages, which checks the arguments."""
    corners, confidence, of_group = _arrays(boxes, scores, groups)
    index = new_index(corners, of_group)
    positions = np.empty_like(index.order)
    positions[index.order] = np.arange(len(corners))
    positions = positions[chosen.cpu().numpy()]
    count = len(positions)
    means, counts, max_score = np.empty((count, 4)), np.zeros(count, np.int64), np.zeros(count)
    values = confidence[index.order]

    def run(a: int, b: int) -> None:
        _averages(positions[a:b], index, values, min_iou, means[a:b], counts[a:b], max_score[a:b])

    _in_chunks(count, run)
    return (
        torch.from_numpy(means).to(boxes),
        torch.from_numpy(counts).to(groups.device),
        torch.from_numpy(max_score).to(scores),
    )


def _arrays(boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64, float64 and int64."""
    return boxes.detach().cpu().double().numpy(), scores.detach().cpu().double().numpy(), groups.cpu().numpy()


def _in_chunks(count: int, run: Callable[[int, int], None]) -> None:
    """Call run(first, last) for all numbers below count, on as many threads as torch uses."""
    chunks = [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    threads = min(torch.get_num_threads(), len(chunks))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, *zip(*chunks, strict=True)))
    else:
        for chunk in chunks:
            run(*chunk)


@compiled
def _support(positions, index, scores, min_iou, sums):
    """Write the sums of the boxes at these positions. scores: by position; sums: by box."""
    ranges, ious = np.empty((len(index.rows), 2), np.int64), np.empty(len(scores))
    for number in range(len(positions)):
        at, total = positions[number], 0.0
        segment = first_segment(index.groups_of[at], index)
        for r in range(list_ranges(at, segment, index, min_iou, ranges)):
            start, stop = ranges[r]
            iou_of_range(at, start, stop, index.corners, 1.0, ious)
            total += _weighted_sum(ious, scores[start:stop], min_iou)
        sums[index.order[at]] = total / (1 - min_iou)


@reordered
def _weighted_sum(ious, scores, min_iou):
    total = 0.0
    for k in range(len(scores)):
        total += scores[k] * (ious[k] - min_iou) if ious[k] > min_iou else 0.0
    return total


@compiled
def _copy_equal(equal, sums):
    for i in range(len(equal)):
        if equal[i] >= 0:
            sums[i] = sums[equal[i]]


@compiled
def _averages(positions, index, scores, min_iou, means, counts, max_score):
    ranges, ious = np.empty((len(index.rows), 2), np.int64), np.empty(len(scores))
    for number in range(len(positions)):
        at, total, mean = positions[number], 0.0, np.zeros(4)
        segment = first_segment(index.groups_of[at], index)
        for r in range(list_ranges(at, segment, index, min_iou, ranges)):
            start, stop = ranges[r]
            iou_of_range(at, start, stop, index.corners, 1.0, ious)
            for k in range(start, stop):
                overlap = ious[k - start]
                if overlap >= min_iou and overlap > 0:
                    weight = scores[k] * (overlap - min_iou) / (1 - min_iou)
                    total += weight
                    counts[number] += 1
                    max_score[number] = max(max_score[number], scores[k])
                    for side in range(4):
                        mean[side] += weight * index.corners[side, k]
        means[number] = mean / total if total > 0 else index.corners[:4, at]
