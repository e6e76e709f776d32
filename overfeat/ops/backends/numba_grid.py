"""A hashed grid over the top left corners of boxes, one for every power of two of their longer sides, for numba.

It lists the boxes near a box, so that NMS and voting take a time that is nearly linear where boxes are spread out.
"""

import math

import numpy as np

from overfeat.ops.backends.numba_merge import LEVELS, MIN_LEVEL, SLACK, compiled


@compiled
def new_grid(n):
    """An empty grid for n boxes.

    It holds the last box of each bucket and of each level, the boxes before box i in its bucket and level, and the
    number of boxes of a level.
    """
    buckets = 1
    while buckets < 2 * n:
        buckets *= 2
    heads, of_level = np.full(buckets, -1, np.int32), np.full(LEVELS, -1, np.int32)
    return heads, of_level, np.full((n, 2), -1, np.int32), np.zeros(LEVELS, np.int64)


@compiled
def level_of(box):
    """The power of two of a box's longer side, as a level of the grid."""
    side = max(box[2] - box[0], box[3] - box[1])
    return min(max(math.frexp(side)[1] - MIN_LEVEL, 0), LEVELS - 1) if side > 0 else 0


@compiled
def bucket_of(level, column, row, heads):
    """The bucket of a cell."""
    return (column * 73856093 ^ row * 19349663 ^ level * 83492791) & (len(heads) - 1)


@compiled
def insert(i, corners, grid):
    """Add box i."""
    heads, of_level, links, population = grid
    level = level_of(corners[i])
    size = 2.0 ** (level + MIN_LEVEL)
    bucket = bucket_of(level, math.floor(corners[i, 0] / size), math.floor(corners[i, 1] / size), heads)
    links[i, 0], links[i, 1] = heads[bucket], of_level[level]
    heads[bucket], of_level[level] = i, i
    population[level] += 1


@compiled
def list_near(i, corners, grid, min_iou, near):
    """Write the boxes of the grid into `near` whose IoU with box i may be min_iou, above 0, or more; their number.

    Each is listed once, box i too if it is in the grid, and with them others that are not far.
    """
    heads, of_level, links, population = grid
    x1, y1, x2, y2 = float(corners[i, 0]), float(corners[i, 1]), float(corners[i, 2]), float(corners[i, 3])
    side, count = max(x2 - x1, y2 - y1) * SLACK, 0
    ratio = min_iou / SLACK  # the IoU of two boxes is at most the ratio of their longer sides
    for level in range(LEVELS):
        size = 2.0 ** (level + MIN_LEVEL)  # longer sides lie in size / 2 .. size
        if population[level] == 0 or (level > 0 and (size < ratio * side or size / 2 * ratio > side)):
            continue
        first_column, last_column = math.floor((x1 - size * SLACK) / size), math.floor(x2 / size)
        first_row, last_row = math.floor((y1 - size * SLACK) / size), math.floor(y2 / size)
        if level == LEVELS - 1 or (last_column - first_column + 1.0) * (last_row - first_row + 1.0) > population[level]:
            k = of_level[level]
            while k >= 0:
                near[count] = k
                count += 1
                k = links[k, 1]
            continue
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                k = heads[bucket_of(level, column, row, heads)]
                while k >= 0:  # a bucket may hold boxes of other cells, which have their own turn
                    own = math.floor(corners[k, 0] / size) == column and math.floor(corners[k, 1] / size) == row
                    if own and level_of(corners[k]) == level:
                        near[count] = k
                        count += 1
                    k = links[k, 0]
    return count


@compiled
def iou(a, b, zero, one):
    """The IoU of two boxes in the steps of ops.boxes.iou; zero and one are those numbers in the boxes' dtype."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, zero) * max(height, zero)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    if union > zero:
        return shared / union
    return one if a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3] else zero
