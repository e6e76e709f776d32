"""An index of boxes for numba: the boxes that may overlap a box lie in few ranges of one sorted order.

Boxes are sorted by group, by the power of two of their longer sides, by row of a grid and by their left edge. NMS and
voting compare a box with whole ranges, without branches, for the processor's vector units: the time is nearly linear
where boxes are spread out.
"""

import math
from typing import NamedTuple

import numpy as np

from overfeat.ops.backends.numba_compile import compiled

SLACK = 1.001  # more than rounding can add to a distance
MIN_EXPONENT = -24  # boxes with shorter sides count as boxes of 2^-24 pixels
ROWS = 4  # of the grid in the longest side of its boxes
TINY_AREA = 1e-30  # the IoU of smaller boxes is imprecise in float32


class Index(NamedTuple):
    """Boxes in sorted order: segments have one group and size, their runs one row of the grid."""

    order: np.ndarray  # int64 [n], the boxes by position
    corners: np.ndarray  # [5, n], x1, y1, x2, y2 and area by position
    groups_of: np.ndarray  # int64 [n], by position
    segments: np.ndarray  # int64 [segments + 1], the first run of each
    groups: np.ndarray  # int64 [segments]
    sizes: np.ndarray  # float64 [segments], longer sides are at most this and, above the smallest, more than half of it
    tiny: np.ndarray  # bool [segments], whether areas are below TINY_AREA
    runs: np.ndarray  # int64 [runs + 1], the first position of each
    rows: np.ndarray  # float64 [runs]


def new_index(corners: np.ndarray, groups: np.ndarray) -> Index:
    """The index of boxes [n, 4] with groups, int64 [n]."""
    sides = corners[:, 2:] - corners[:, :2]
    area = sides[:, 0] * sides[:, 1]
    exponents = np.frexp(sides.max(axis=1, initial=0.0))[1].clip(min=MIN_EXPONENT)
    kinds = (exponents - MIN_EXPONENT) * 2 + (area < TINY_AREA)
    rows = np.floor(corners[:, 1] / np.ldexp(1.0 / ROWS, exponents))
    order = np.lexsort((corners[:, 0], rows, kinds, groups))
    values = np.empty((5, len(order)), corners.dtype)
    values[:4], values[4] = corners[order].T, area[order]
    kinds, groups, rows = kinds[order], groups[order], rows[order]
    new_segment = np.diff(kinds, prepend=-1).astype(bool)
    new_segment[1:] |= groups[1:] != groups[:-1]
    new_run = new_segment.copy()
    new_run[1:] |= rows[1:] != rows[:-1]
    firsts, runs = np.flatnonzero(new_segment), np.flatnonzero(new_run)
    segments = np.append(np.searchsorted(runs, firsts), len(runs))
    sizes = np.ldexp(1.0, kinds[firsts] // 2 + MIN_EXPONENT)
    return Index(
        order,
        values,
        groups,
        segments,
        groups[firsts],
        sizes,
        kinds[firsts] % 2 > 0,
        np.append(runs, len(order)),
        rows[runs],
    )


@compiled
def first_segment(group, index):
    """The first segment of a group, or of the first group after it."""
    return np.searchsorted(index.groups, group)


@compiled
def list_ranges(at, segment, index, min_iou, ranges):
    """Write the ranges of positions whose boxes may have an IoU of min_iou or more, and above 0, with that at `at`.

    Args:
        segment: The first of the group to be searched.
        ranges: int64 [runs, 2].

    Returns:
        Their number. Position `at` is in one of them if it is of the group.
    """
    x1, y1 = float(index.corners[0, at]), float(index.corners[1, at])
    width, height = float(index.corners[2, at]) - x1, float(index.corners[3, at]) - y1
    side, smallest, count = max(width, height), 2.0**MIN_EXPONENT, 0
    group = index.groups[segment]
    while segment < len(index.groups) and index.groups[segment] == group:
        size = index.sizes[segment]
        # Two boxes share at least the fraction min_iou of either's width and height.
        tiny = index.tiny[segment] or index.corners[4, at] < TINY_AREA
        lowest = 0.0 if tiny else min_iou / SLACK
        if lowest * side <= size and (size == smallest or lowest * size <= 2 * side):
            reach = (1 - lowest) * SLACK
            right, bottom = x1 + reach * max(width, smallest), y1 + reach * max(height, smallest)
            left, cell = x1 - reach * size, size / ROWS
            last_row = math.floor(bottom / cell)
            run, end = index.segments[segment], index.segments[segment + 1]
            run += np.searchsorted(index.rows[run:end], math.floor((y1 - reach * size) / cell))
            while run < end and index.rows[run] <= last_row:
                first, last = index.runs[run], index.runs[run + 1]
                start = first + np.searchsorted(index.corners[0, first:last], left)
                stop = start + np.searchsorted(index.corners[0, start:last], right, side="right")
                if stop > start:
                    ranges[count, 0], ranges[count, 1] = start, stop
                    count += 1
                run += 1
        segment += 1
    return count


@compiled
def iou_of_range(at, start, stop, corners, one, ious):
    """The IoUs of the box at `at` with those from `start` to `stop`, in the steps of ops.boxes.iou, without branches.

    one: 1 in the boxes' dtype, as is ious, [n], whose first stop - start are written.
    """
    x1, y1, x2, y2, area = corners[:, at]
    zero = one - one
    left, top, right, bottom, areas = corners[0], corners[1], corners[2], corners[3], corners[4]
    for k in range(start, stop):
        width, height = min(x2, right[k]) - max(x1, left[k]), min(y2, bottom[k]) - max(y1, top[k])
        shared = max(width, zero) * max(height, zero)
        union = area + areas[k] - shared
        same = (x1 == left[k]) & (y1 == top[k]) & (x2 == right[k]) & (y2 == bottom[k])
        ious[k - start] = shared / union if union > zero else (one if same else zero)


def previous_equal(corners: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each of boxes [n, 4] the last box before it with the same bits and group, or -1: int64 [n]."""
    bits = np.ascontiguousarray(corners).view(f"u{corners.itemsize}").astype(np.uint64)
    return _previous_equal(bits, groups)


@compiled
def _previous_equal(bits, groups):
    n, buckets = len(bits), 16
    while buckets < 2 * n:
        buckets *= 2
    mask, multiplier, shift = np.uint64(buckets - 1), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
    latest, previous = np.full(buckets, -1, np.int64), np.empty(n, np.int64)
    for i in range(n):
        hashed = np.uint64(groups[i]) * multiplier
        for side in range(4):
            hashed = (hashed ^ (hashed >> shift) ^ bits[i, side]) * multiplier
        bucket = (hashed ^ (hashed >> shift)) & mask
        k = latest[bucket]
        while k >= 0 and not (groups[k] == groups[i] and (bits[k] == bits[i]).all()):
            bucket = (bucket + np.uint64(1)) & mask
            k = latest[bucket]
        previous[i], latest[bucket] = k, i
    return previous
