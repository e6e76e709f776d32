"""Connected components of boxes that overlap, on a CPU, compiled by numba."""

import numpy as np

from overfeat.ops.backends.numba_compile import compiled
from overfeat.ops.backends.numba_index import first_segment, iou_of_range, list_ranges, new_index


def components(boxes: np.ndarray, groups: np.ndarray, min_iou: float) -> np.ndarray:
    """The component of each box: boxes of a group whose IoU is min_iou or more, and above 0, are in one.

    Args:
        boxes: float64 [n, 4].
        groups: int64 [n].

    Returns:
        int64 [n]: numbers from 0, without gaps.
    """
    index = new_index(boxes, groups)
    roots = np.empty(len(boxes), np.int64)
    roots[index.order] = index.order[_roots(index, min_iou)]
    return np.unique(roots, return_inverse=True)[1]


@compiled
def _roots(index, min_iou):
    """The root of the component of each box, both by position."""
    n = len(index.order)
    parents = np.arange(n)
    ranges, ious = np.empty((len(index.rows), 2), np.int64), np.empty(n)
    for at in range(n):
        segment = first_segment(index.groups_of[at], index)
        for number in range(list_ranges(at, segment, index, min_iou, ranges)):
            start, stop = ranges[number]
            iou_of_range(at, start, stop, index.corners, 1.0, ious)
            for k in range(start, stop):
                if ious[k - start] >= min_iou and ious[k - start] > 0:
                    a, b = _root(parents, at), _root(parents, k)
                    parents[max(a, b)] = min(a, b)
    for at in range(n):
        parents[at] = _root(parents, at)
    return parents


@compiled
def _root(parents, at):
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at
