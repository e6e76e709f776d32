"""Greedy box merging on a CPU, compiled by numba: exact, and nearly linear in time if boxes are spread out.

Every box keeps its best partner among those after it, and a tournament tree over these pairs yields the best pair.
Candidate partners come from a hashed grid over the boxes' centres, one for every power of two of their diagonals,
since a pair within the threshold is near and, mostly, similar in size. A merge inserts the new box into the grid and
offers it to its neighbours. A box whose partner has changed is dirty: it keeps its old score, a lower bound by then,
and searches for a new partner only when its turn comes. Boxes that equal another wait behind the first of them, which
merges with them before all others: their pairs with further boxes would come after its own.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from overfeat.ops.backends.numba_compile import compiled
from overfeat.ops.backends.numba_index import SLACK, previous_equal

LEVELS, MIN_LEVEL = 64, -24  # powers of two of the diagonals, from 2^-24
UNDERFLOW = 1e-18  # pixels; the squares of shorter distances are inexact or 0
CHUNKS = 8  # of groups for each thread, which takes the next when it is done: groups differ in their time
NORMALISED, SUM, CENTRES = range(3)
MATCH_METRICS = {"normalised": NORMALISED, "sum": SUM, "centres": CENTRES}


def merge_boxes(
    boxes: Tensor, scores: Tensor, lengths: list[int], *,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Merge within runs of `lengths` boxes: see ops.merge_boxes, which checks the arguments, and ops.reference."""
    corners, sums = (values.detach().cpu().numpy().copy() for values in (boxes, scores))
    max_score, counts, merged_into = sums.copy(), np.ones(len(sums), np.int64), np.full(len(sums), -1, np.int64)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - np.asarray(lengths, dtype=np.int64)
    number = corners.dtype.type
    with np.errstate(over="ignore"):  # beyond the largest number it is as good as infinite
        threshold = number(match_threshold)
    rule = (MATCH_METRICS[match_metric], box_average == "counts", threshold, number(min_iou), number(0.5), number(1.0))
    if match_metric == "sum":  # equal boxes are no better a match than others
        equal = np.full(len(sums), -1, np.int64)
    else:
        equal = previous_equal(corners, np.repeat(np.arange(len(lengths)), lengths))

    def run(first: int, last: int) -> None:
        _merge_groups(corners, sums, max_score, counts, merged_into, equal, starts[first:last], ends[first:last], rule)

    threads = min(torch.get_num_threads(), len(lengths))
    if threads > 1:
        chunks = min(CHUNKS * threads, len(lengths))
        at = np.searchsorted(ends, np.linspace(0, ends[-1], chunks + 1)[1:-1]).tolist()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [0, *at], [*at, len(lengths)]))
    elif threads:
        run(0, len(lengths))
    results = (corners, sums, max_score, counts, merged_into)
    return tuple(torch.from_numpy(values).to(boxes.device) for values in results)


@compiled
def _merge_groups(corners, sums, max_score, counts, merged_into, equal, starts, ends, rule):
    for g in range(len(starts)):
        a, b = starts[g], ends[g]
        if b - a > 1:
            results = (sums[a:b], max_score[a:b], counts[a:b], merged_into[a:b])
            _merge_group(corners[a:b], results, equal[a:b] - a, rule)
            for i in range(a, b):
                if merged_into[i] >= 0:
                    merged_into[i] += a


@compiled
def _merge_group(corners, results, equal, rule):
    """Merge one group in place. equal: the last box before each that equals it, or a negative number."""
    # geometry: [8, n], corners, centre (doubled), diagonal and area. pairs: int32 [n, 3], each box's partner, the
    # partner's version at the time of best_score, and the box's own version; a pair is dirty if its partner's version
    # has changed. tree: the tournament, whose root tree[1] is the box with the best pair. following: the next box that
    # equals a box; only the first of them is in the grid and the tournament.
    n = len(corners)
    geometry, grid, tree = _new_geometry(corners), _new_grid(n), _new_tree(n)
    best_score, weights = np.full(n, np.inf, corners.dtype), np.ones(n, corners.dtype)
    pairs, following = np.full((n, 3), 0, np.int32), np.full(n, -1, np.int64)
    pairs[:, 0] = -1
    state = (geometry, grid, best_score, pairs, tree, following, np.empty(n, np.int32), np.empty(n, corners.dtype))
    for i in range(n - 1, -1, -1):  # so that only boxes after i are in the grid yet
        if equal[i] >= 0:
            following[equal[i]] = i
        else:
            _search(i, False, state, rule)
            _insert(i, geometry, grid, rule)
    for node in range(len(tree) // 2 - 1, 0, -1):
        tree[node] = _winner(tree[2 * node], tree[2 * node + 1], best_score)
    while True:
        i = np.int64(tree[1])  # one type of index compiles once
        j = np.int64(pairs[i, 0])
        if j < 0 or not best_score[i] <= rule[2]:
            break
        best_score[i], pairs[i, 0] = np.inf, -1
        is_clean = pairs[i, 1] == pairs[j, 2]
        if is_clean and j != following[i]:
            _merge_pair(i, j, weights, results, state, rule)
        else:
            _search_again(i, is_clean, weights, results, state, rule)
        _replay(i, tree, best_score)
    corners[:] = geometry[:4].T


@compiled
def _merge_pair(i, j, weights, results, state, rule):
    """Merge box j into box i; boxes that equalled them come forward."""
    geometry, grid, best_score, pairs, tree, following = state[:6]
    pending = (following[i], following[j])
    following[i] = following[j] = -1
    _remove(i, grid)
    _remove(j, grid)
    _average(i, j, geometry, weights, rule)
    _count(i, j, results)
    pairs[i, 2], pairs[j, 2] = pairs[i, 2] + 1, pairs[j, 2] + 1
    best_score[j], pairs[j, 0] = np.inf, -1
    _replay(j, tree, best_score)
    for k in (i, pending[0], pending[1]):
        if k >= 0:
            _search(k, True, state, rule)
            _insert(k, geometry, grid, rule)
            _replay(k, tree, best_score)


@compiled
def _search_again(i, merge, weights, results, state, rule):
    """Search a new partner of box i; `merge`: merge with those that equal it before, in turn.

    Another box may match as well as the next that equals it, and come before.
    """
    best_score, pairs, following = state[2], state[3], state[5]
    j = following[i]
    following[i] = -1
    _search(i, False, state, rule)
    while merge and j >= 0 and not (best_score[i] == 0 and pairs[i, 0] < j):
        _count(i, j, results)
        if rule[1]:
            weights[i] += weights[j]
        j = following[j]
    following[i] = j
    _offer_equal(i, state)


@compiled
def _offer_equal(i, state):
    """The next box that equals box i is its partner unless another matches as well and comes before."""
    best_score, pairs, following = state[2], state[3], state[5]
    j = following[i]
    if j >= 0 and not (best_score[i] == 0 and pairs[i, 0] < j):
        best_score[i], pairs[i, 0], pairs[i, 1] = 0, j, pairs[j, 2]


@compiled
def _count(i, j, results):
    """Box j is part of box i from now on."""
    sums, max_score, counts, merged_into = results
    sums[i], max_score[i] = sums[i] + sums[j], max(max_score[i], max_score[j])
    counts[i], counts[j], merged_into[j] = counts[i] + counts[j], 0, i


@compiled
def _new_grid(n):
    """An empty grid: the first box of each bucket, the boxes after and before in its chain, the cell, boxes a level."""
    buckets = 1
    while buckets < 2 * n:
        buckets *= 2
    head = np.full(buckets, -1, np.int32)
    links = np.full((n, 2), -1, np.int32)
    cell = np.full(n, -1, np.int64)  # bucket * LEVELS + level, or -1
    return head, links, cell, np.zeros(LEVELS, np.int64)


@compiled
def _new_tree(n):
    leaves = 1
    while leaves < n:
        leaves *= 2
    tree = np.full(2 * leaves, -1, np.int32)
    tree[leaves : leaves + n] = np.arange(n)
    return tree


@compiled
def _new_geometry(corners):
    geometry = np.empty((8, len(corners)), corners.dtype)
    for i in range(len(corners)):
        geometry[:4, i] = corners[i]
        _measure(geometry, i)
    return geometry


@compiled
def _average(i, j, geometry, weights, rule):
    """Box i becomes the weighted mean of boxes i and j."""
    total = weights[i] + weights[j]
    for k in range(4):
        first, second = geometry[k, i], geometry[k, j]
        mean = (first * weights[i] + second * weights[j]) / total
        geometry[k, i] = min(max(mean, min(first, second)), max(first, second))  # rounding may exceed the two
    _measure(geometry, i)
    if rule[1]:
        weights[i] = total


@compiled
def _measure(geometry, i):
    x1, y1, x2, y2 = geometry[0, i], geometry[1, i], geometry[2, i], geometry[3, i]
    width, height = x2 - x1, y2 - y1
    geometry[4, i], geometry[5, i] = x1 + x2, y1 + y2
    geometry[6, i], geometry[7, i] = np.sqrt(width * width + height * height), width * height


@compiled
def _match_scores(i, nearby, geometry, scores, rule):
    """The match scores of box i with the boxes `nearby`, without branches, for the processor's vector units."""
    match_metric, min_iou, half, one = rule[0], rule[3], rule[4], rule[5]
    x1, y1, x2, y2, x, y, diagonal, area = geometry[:, i]
    zero, inf = one - one, one * np.inf
    for at in range(len(nearby)):
        k = nearby[at]
        dx, dy = x - geometry[4, k], y - geometry[5, k]
        distance = np.sqrt(dx * dx + dy * dy)
        width = min(x2, geometry[2, k]) - max(x1, geometry[0, k])
        height = min(y2, geometry[3, k]) - max(y1, geometry[1, k])
        shared = max(width, zero) * max(height, zero)
        diagonals = diagonal + geometry[6, k]
        union = area + geometry[7, k] - shared
        same = (x1 == geometry[0, k]) & (y1 == geometry[1, k]) & (x2 == geometry[2, k]) & (y2 == geometry[3, k])
        relative = zero if same else (distance / diagonals if diagonals > 0 else inf)
        if match_metric == SUM:
            scores[at] = distance * half + shared
        elif match_metric == CENTRES:
            iou = shared / union if union > 0 else (one if same else zero)
            scores[at] = relative if iou >= min_iou else inf
        else:
            scores[at] = relative + ((union - shared) / union if union > 0 else (zero if same else one))


@compiled
def _cell_size(level, rule):
    """Side of a grid's cells, in doubled centres."""
    return max(2.0 * rule[2], 1e-3) if rule[0] == SUM else 2.0 ** (level + MIN_LEVEL + 1)


@compiled
def _bucket(level, x, y, size, head):
    hashed = math.floor(x / size) * 73856093 ^ math.floor(y / size) * 19349663 ^ level * 83492791
    return hashed & (len(head) - 1)


@compiled
def _insert(i, geometry, grid, rule):
    head, links, cell, population = grid
    level = 0
    if rule[0] != SUM and geometry[6, i] > 0:
        level = min(max(math.frexp(geometry[6, i])[1] - 1 - MIN_LEVEL, 0), LEVELS - 1)
    bucket = _bucket(level, geometry[4, i], geometry[5, i], _cell_size(level, rule), head)
    links[i, 0], links[i, 1], cell[i] = head[bucket], -1, bucket * LEVELS + level
    if head[bucket] >= 0:
        links[head[bucket], 1] = i
    head[bucket] = i
    population[level] += 1


@compiled
def _remove(i, grid):
    head, links, cell, population = grid
    after, before = links[i]
    if before >= 0:
        links[before, 0] = after
    else:
        head[cell[i] // LEVELS] = after
    if after >= 0:
        links[after, 1] = before
    population[cell[i] % LEVELS] -= 1
    cell[i] = -1


@compiled
def _search(i, both, state, rule):
    """Search the partner of box i among those after it in the grid; `both`: offer i to those before it, too."""
    geometry, grid, best_score, pairs, tree, _, nearby, scores = state
    cell = grid[2]
    count = _candidates(i, both, geometry, grid, nearby, rule)
    if count < 0:
        count = 0
        for k in range(0 if both else i + 1, len(cell)):
            if cell[k] >= 0 and k != i:
                nearby[count] = k
                count += 1
    _match_scores(i, nearby[:count], geometry, scores, rule)
    for at in range(count):
        k, score = nearby[at], scores[at]
        first, second = min(i, k), max(i, k)
        if score <= best_score[first] and score <= rule[2] and score < np.inf:
            if score < best_score[first] or second <= pairs[first, 0]:
                best_score[first], pairs[first, 0], pairs[first, 1] = score, second, pairs[second, 2]
                if first == k:
                    _replay(k, tree, best_score)
    _offer_equal(i, state)


@compiled
def _candidates(i, both, geometry, grid, nearby, rule):
    """Collect the boxes that may be within the threshold of box i: their number, or -1 if scoring all is cheaper.

    A chain may serve several cells: boxes that are far away may come up, or one box twice.
    """
    head, links, _, population = grid
    match_metric, threshold = rule[0], float(rule[2])
    x, y, diagonal = float(geometry[4, i]), float(geometry[5, i]), float(geometry[6, i])
    # The smaller of two boxes within the threshold has at least this fraction of the other's width and height.
    min_ratio = 0.0
    if match_metric != SUM:
        min_ratio = (float(rule[3]) if match_metric == CENTRES else 1.0 - threshold) / SLACK
    count = 0
    for level in range(LEVELS):
        if population[level] == 0:
            continue
        size = _cell_size(level, rule)  # centres are doubled, so diagonals lie in size / 2 .. size
        if match_metric == SUM:
            reach = 2 * SLACK * threshold + UNDERFLOW
        elif min_ratio > 0 and (size < min_ratio * diagonal or (level > 0 and min_ratio * size > 2 * diagonal)):
            continue
        else:
            reach = SLACK * threshold * (diagonal + size)
        if not (2 * reach / size + 1) ** 2 < 2 * population[level] + 16:
            return -1
        for row in range(math.floor((y - reach) / size), math.floor((y + reach) / size) + 1):
            for column in range(math.floor((x - reach) / size), math.floor((x + reach) / size) + 1):
                k = head[_bucket(level, (column + 0.5) * size, (row + 0.5) * size, size, head)]
                while k >= 0:
                    if k > i or (both and k != i):
                        if count == len(nearby):
                            return -1
                        nearby[count] = k
                        count += 1
                    k = links[k, 0]
    return count


@compiled
def _winner(i, j, best_score):
    """Of two boxes, i < j or -1, the one with the better pair; of equal ones, the first."""
    return i if j < 0 or (i >= 0 and best_score[i] <= best_score[j]) else j


@compiled
def _replay(i, tree, best_score):
    """Replay the matches of box i in the tournament."""
    node = (len(tree) // 2 + i) // 2
    while node >= 1:
        tree[node] = _winner(tree[2 * node], tree[2 * node + 1], best_score)
        node //= 2
