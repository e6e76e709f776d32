"""Greedy merging of boxes on a CPU, compiled by numba: exact, and near-linear where boxes are spread out.

For every box the best partner among those after it is kept, and a tournament over these pairs. Who
can be a partner is looked up in a grid over the boxes' centres, one for every power of two of their
diagonals, since a pair within the threshold is near and, mostly, alike in size. A merge puts the
new box into the grid and offers it to its neighbours; a box whose partner has changed keeps its old
score, which is a lower bound by then, and looks for a new partner only when its turn comes.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

LEVELS, LOWEST = 64, -24  # powers of two of the diagonals, from 2^-24
SLACK = 1.001  # more than rounding can add to a distance
NORMALISED, SUM, CENTRES = range(3)
MATCHES = {"normalised": NORMALISED, "sum": SUM, "centres": CENTRES}


def compiled(function):
    """Compiled when first called, and kept for the next process where there is a place for it."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(function, **options)


def merge_boxes(
    boxes: Tensor, scores: Tensor, lengths: list[int], threshold: float, match: str, average: str, overlap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Merge within runs of `lengths` boxes, as ops.merge_boxes says, whose checks come before this.

    Gives boxes, sums, largest scores, counts (0 for a box that went into another), and for every
    box the number of the one that it went into, or -1.
    """
    corners, sums = (values.detach().cpu().numpy().copy() for values in (boxes, scores))
    largest, counts, into = sums.copy(), np.ones(len(sums), np.int64), np.full(len(sums), -1, np.int64)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - np.asarray(lengths, dtype=np.int64)
    number = corners.dtype.type
    with np.errstate(over="ignore"):  # beyond the largest number is as good as infinite
        threshold = number(threshold)
    rule = (MATCHES[match], average == "counts", threshold, number(overlap), number(0.5), number(1.0))

    def run(first: int, last: int) -> None:
        _merge_groups(corners, sums, largest, counts, into, starts[first:last], ends[first:last], rule)

    shares = min(torch.get_num_threads(), len(lengths))
    if shares > 1:
        at = np.searchsorted(ends, np.linspace(0, ends[-1], shares + 1)[1:-1]).tolist()
        with ThreadPoolExecutor(shares) as pool:
            list(pool.map(run, [0, *at], [*at, len(lengths)]))
    elif shares:
        run(0, len(lengths))
    return tuple(torch.from_numpy(values).to(boxes.device) for values in (corners, sums, largest, counts, into))


@compiled
def _merge_groups(corners, sums, largest, counts, into, starts, ends, rule):
    for g in range(len(starts)):
        a, b = starts[g], ends[g]
        if b - a > 1:
            _merge_group(corners[a:b], sums[a:b], largest[a:b], counts[a:b], into[a:b], rule)
            for i in range(a, b):
                if into[i] >= 0:
                    into[i] += a


@compiled
def _merge_group(corners, sums, largest, counts, into, rule):
    n = len(corners)
    threshold = rule[2]
    geometry = np.empty((8, n), corners.dtype)  # corners, centre (doubled), diagonal, area
    for i in range(n):
        geometry[:4, i] = corners[i]
        _measure(geometry, i)

    # The grid: heads of the chains of boxes in each hashed cell; in which a box is, or -1.
    buckets = 1
    while buckets < 2 * n:
        buckets *= 2
    head = np.full(buckets, -1, np.int32)
    links = np.full((n, 2), -1, np.int32)  # the boxes after and before in the chain
    cell = np.full(n, -1, np.int64)
    inhabitants = np.zeros(LEVELS, np.int64)

    # The tournament: best[i] is the score of i with its partner; tree[1] has the best of all.
    best = np.full(n, np.inf, corners.dtype)
    pairs = np.full((n, 3), 0, np.int32)  # partner, its version at the time of the score; own version
    pairs[:, 0] = -1
    leaves = 1
    while leaves < n:
        leaves *= 2
    tree = np.full(2 * leaves, -1, np.int32)
    weights = np.ones(n, corners.dtype)
    near, found = np.empty(n, np.int32), np.empty(n, corners.dtype)

    for i in range(n - 1, -1, -1):  # so that only boxes after i are in the grid yet
        _search(i, False, geometry, head, links, cell, inhabitants, best, pairs, tree, near, found, rule)
        _insert(i, geometry, head, links, cell, inhabitants, rule)
    for i in range(n):
        tree[leaves + i] = i
    for node in range(leaves - 1, 0, -1):
        tree[node] = _winner(tree[2 * node], tree[2 * node + 1], best)

    while True:
        i = tree[1]
        j = pairs[i, 0]
        if j < 0 or not best[i] <= threshold:
            break
        best[i], pairs[i, 0] = np.inf, -1
        if pairs[i, 1] == pairs[j, 2]:
            _remove(i, head, links, cell, inhabitants)
            _remove(j, head, links, cell, inhabitants)
            whole = weights[i] + weights[j]
            for k in range(4):
                one, other = geometry[k, i], geometry[k, j]
                mean = (one * weights[i] + other * weights[j]) / whole
                geometry[k, i] = min(max(mean, min(one, other)), max(one, other))  # rounding may leave the two
            _measure(geometry, i)
            if rule[1]:
                weights[i] = whole
            sums[i] += sums[j]
            largest[i] = max(largest[i], largest[j])
            counts[i], counts[j] = counts[i] + counts[j], 0
            into[j] = i
            pairs[i, 2] += 1
            pairs[j, 2] += 1
            best[j], pairs[j, 0] = np.inf, -1
            _replay(j, tree, best)
            _search(i, True, geometry, head, links, cell, inhabitants, best, pairs, tree, near, found, rule)
            _insert(i, geometry, head, links, cell, inhabitants, rule)
        else:
            _search(i, False, geometry, head, links, cell, inhabitants, best, pairs, tree, near, found, rule)
        _replay(i, tree, best)
    for i in range(n):
        corners[i] = geometry[:4, i]


@compiled
def _measure(geometry, i):
    x1, y1, x2, y2 = geometry[0, i], geometry[1, i], geometry[2, i], geometry[3, i]
    width, height = x2 - x1, y2 - y1
    geometry[4, i], geometry[5, i] = x1 + x2, y1 + y2
    geometry[6, i], geometry[7, i] = np.sqrt(width * width + height * height), width * height


@compiled
def _scores(i, near, geometry, found, rule):
    """The match scores of box i with the boxes `near`, without a branch, for the processor's vector units."""
    match, overlap, half, one = rule[0], rule[3], rule[4], rule[5]
    x1, y1, x2, y2, x, y, diagonal, area = geometry[:, i]
    zero, inf = one - one, one * np.inf
    for at in range(len(near)):
        k = near[at]
        dx, dy = x - geometry[4, k], y - geometry[5, k]
        apart = np.sqrt(dx * dx + dy * dy)
        width = min(x2, geometry[2, k]) - max(x1, geometry[0, k])
        height = min(y2, geometry[3, k]) - max(y1, geometry[1, k])
        shared = max(width, zero) * max(height, zero)
        diagonals = diagonal + geometry[6, k]
        union = area + geometry[7, k] - shared
        same = (x1 == geometry[0, k]) & (y1 == geometry[1, k]) & (x2 == geometry[2, k]) & (y2 == geometry[3, k])
        far = zero if same else (apart / diagonals if diagonals > 0 else inf)
        if match == SUM:
            found[at] = apart * half + shared
        elif match == CENTRES:
            iou = shared / union if union > 0 else (one if same else zero)
            found[at] = far if iou >= overlap else inf
        else:
            found[at] = far + ((union - shared) / union if union > 0 else (zero if same else one))


@compiled
def _cell_size(level, rule):
    """Of the cells of a grid, with centres counted double."""
    return max(2.0 * rule[2], 1e-3) if rule[0] == SUM else 2.0 ** (level + LOWEST + 1)


@compiled
def _bucket(level, x, y, size, head):
    hashed = math.floor(x / size) * 73856093 ^ math.floor(y / size) * 19349663 ^ level * 83492791
    return hashed & (len(head) - 1)


@compiled
def _insert(i, geometry, head, links, cell, inhabitants, rule):
    level = 0
    if rule[0] != SUM and geometry[6, i] > 0:
        level = min(max(math.frexp(geometry[6, i])[1] - 1 - LOWEST, 0), LEVELS - 1)
    bucket = _bucket(level, geometry[4, i], geometry[5, i], _cell_size(level, rule), head)
    links[i, 0], links[i, 1], cell[i] = head[bucket], -1, bucket * LEVELS + level
    if head[bucket] >= 0:
        links[head[bucket], 1] = i
    head[bucket] = i
    inhabitants[level] += 1


@compiled
def _remove(i, head, links, cell, inhabitants):
    after, before = links[i]
    if before >= 0:
        links[before, 0] = after
    else:
        head[cell[i] // LEVELS] = after
    if after >= 0:
        links[after, 1] = before
    inhabitants[cell[i] % LEVELS] -= 1
    cell[i] = -1


@compiled
def _search(i, both, geometry, head, links, cell, inhabitants, best, pairs, tree, near, found, rule):
    """Find the partner of box i among those after it in the grid; `both`: offer it to those before it, too."""
    count = _in_reach(i, both, geometry, head, links, inhabitants, near, rule)
    if count < 0:
        count = 0
        for k in range(0 if both else i + 1, len(cell)):
            if cell[k] >= 0 and k != i:
                near[count] = k
                count += 1
    _scores(i, near[:count], geometry, found, rule)
    for at in range(count):
        k, score = near[at], found[at]
        first, second = min(i, k), max(i, k)
        if score <= best[first] and score <= rule[2] and score < np.inf:
            if score < best[first] or second <= pairs[first, 0]:
                best[first], pairs[first, 0], pairs[first, 1] = score, second, pairs[second, 2]
                if first == k:
                    _replay(k, tree, best)


@compiled
def _in_reach(i, both, geometry, head, links, inhabitants, near, rule):
    """Collect the boxes that may be within the threshold of box i; how many, or -1 where a look at all is cheaper.

    A chain may serve several cells: boxes may come up that are far away, or twice.
    """
    match, threshold = rule[0], float(rule[2])
    x, y, diagonal = float(geometry[4, i]), float(geometry[5, i]), float(geometry[6, i])
    # The smaller of two boxes within the threshold has at least this share of the other's width and height.
    alike = 0.0
    if match != SUM:
        alike = (float(rule[3]) if match == CENTRES else 1.0 - threshold) / SLACK
    count = 0
    for level in range(LEVELS):
        if inhabitants[level] == 0:
            continue
        size = _cell_size(level, rule)  # centres counted double, so that diagonals lie in size / 2 .. size
        if match == SUM:
            reach = 2 * SLACK * threshold
        elif alike > 0 and (size < alike * diagonal or (level > 0 and alike * size > 2 * diagonal)):
            continue
        else:
            reach = SLACK * threshold * (diagonal + size)
        if not (2 * reach / size + 1) ** 2 < 2 * inhabitants[level] + 16:
            return -1
        for row in range(math.floor((y - reach) / size), math.floor((y + reach) / size) + 1):
            for column in range(math.floor((x - reach) / size), math.floor((x + reach) / size) + 1):
                k = head[_bucket(level, (column + 0.5) * size, (row + 0.5) * size, size, head)]
                while k >= 0:
                    if k > i or (both and k != i):
                        if count == len(near):
                            return -1
                        near[count] = k
                        count += 1
                    k = links[k, 0]
    return count


@compiled
def _winner(i, j, best):
    """Of two boxes, i < j or -1, the one whose pair comes first."""
    return i if j < 0 or (i >= 0 and best[i] <= best[j]) else j


@compiled
def _replay(i, tree, best):
    """The matches of box i in the tournament, once more."""
    node = (len(tree) // 2 + i) // 2
    while node >= 1:
        tree[node] = _winner(tree[2 * node], tree[2 * node + 1], best)
        node //= 2
