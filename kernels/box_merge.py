"""Greedy merging of boxes (4.3): match scores, every box's best partner, and the loop that merges the best pair.

Every box keeps its best partner among those after it in its group. A merge makes a new box in the place
of the first, offers it to those before it, and finds its partner; a box whose partner changed keeps its
old score, a lower bound by then, and looks for a new partner when its turn comes. Sums, products,
quotients and roots are rounded one by one, as everywhere: every backend merges in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.launch import MERGE_TILES, ROWS_BLOCK, ROWS_COLUMNS, ROWS_WARPS

MATCH_METRICS = {"normalised": 0, "sum": 1, "centres": 2}
EXACT = {"enable_fp_fusion": False}  # no product is fused with a sum


@triton.jit
def _divide(a, b):
    if a.dtype == tl.float32:  # where "/" is not rounded to the nearest
        return tl.div_rn(a, b)
    return a / b


@triton.jit
def _average(first, second, a, b):
    """The mean of two coordinates with weights a and b, never outside of them; the first where b is 0."""
    mean = _divide(first * a + second * b, a + b)
    mean = tl.minimum(tl.maximum(mean, tl.minimum(first, second)), tl.maximum(first, second))
    return tl.where(b > 0, mean, first)


@triton.jit
def _root(a):
    if a.dtype == tl.float32:
        return tl.sqrt_rn(a)
    return tl.sqrt(a)


@triton.jit
def _diagonal(x1, y1, x2, y2):
    width, height = x2 - x1, y2 - y1
    return _root(width * width + height * height)


@triton.jit
def _score(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, overlap, MATCH: tl.constexpr):
    """boxes.match_score, step by step."""
    dx, dy = (ax1 + ax2) - (bx1 + bx2), (ay1 + ay2) - (by1 + by2)
    apart = _root(dx * dx + dy * dy)
    shared = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    shared = shared * tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    if MATCH == 1:
        return apart * 0.5 + shared
    equal = (ax1 == bx1) & (ay1 == by1) & (ax2 == bx2) & (ay2 == by2)
    diagonals = _diagonal(ax1, ay1, ax2, ay2) + _diagonal(bx1, by1, bx2, by2)
    far = _divide(apart, tl.where(diagonals > 0, diagonals, 1.0))
    far = tl.where(equal, 0.0, tl.where(diagonals > 0, far, float("inf")))
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)) - shared
    whole = tl.where(union > 0, union, 1.0)
    if MATCH == 2:
        iou = tl.where(union > 0, _divide(shared, whole), tl.where(equal, 1.0, 0.0))
        return tl.where(iou >= overlap, far, float("inf"))
    return far + tl.where(union > 0, _divide(union - shared, whole), tl.where(equal, 0.0, 1.0))


@triton.jit(do_not_specialize=["total"])
def best_partner_kernel(
    boxes,  # [4, T]: x1, y1, x2, y2
    ends,  # int64 [T]: behind the last box of each box's group
    limits,  # [2]: threshold, overlap
    best,  # [T], written: the score with the best partner after it, or infinity
    partner,  # int32 [T], written: that partner's number within [0, T)
    total,  # T
    MATCH: tl.constexpr,
    BLOCK: tl.constexpr,  # boxes that a program finds partners for
    COLUMNS: tl.constexpr,  # boxes that it looks at at a time
):
    total = total.to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    inside = i < total
    end = tl.load(ends + i, mask=inside, other=0)
    threshold, overlap = tl.load(limits), tl.load(limits + 1)
    x1, y1 = tl.load(boxes + i, mask=inside, other=0.0), tl.load(boxes + total + i, mask=inside, other=0.0)
    x2 = tl.load(boxes + 2 * total + i, mask=inside, other=0.0)
    y2 = tl.load(boxes + 3 * total + i, mask=inside, other=0.0)
    low = tl.full([BLOCK], float("inf"), boxes.dtype.element_ty)
    at = tl.full([BLOCK], -1, tl.int32)
    for start in range(first, tl.max(end, axis=0), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        there = k < total
        score = _score(
            x1[:, None], y1[:, None], x2[:, None], y2[:, None],
            tl.load(boxes + k, mask=there, other=0.0)[None],
            tl.load(boxes + total + k, mask=there, other=0.0)[None],
            tl.load(boxes + 2 * total + k, mask=there, other=0.0)[None],
            tl.load(boxes + 3 * total + k, mask=there, other=0.0)[None],
            overlap, MATCH,
        )  # fmt: skip
        pair = (k[None] > i[:, None]) & (k[None] < end[:, None]) & (score <= threshold)
        score = tl.where(pair, score, float("inf"))
        lowest = tl.min(score, axis=1)
        # Of equal scores the first: columns go upwards.
        where = tl.min(tl.where(score == lowest[:, None], k[None], total), axis=1)
        at = tl.where(lowest < low, where.to(tl.int32), at)
        low = tl.minimum(low, lowest)
    tl.store(best + i, low, mask=inside)
    tl.store(partner + i, at, mask=inside)


@triton.jit(do_not_specialize=["total"])
def merge_kernel(
    boxes,  # [4, T], merged in place
    sums,  # [T], in place: scores added up
    largest,  # [T], in place
    counts,  # int64 [T], written: 0 for a box that went into another
    into,  # int64 [T], written: the box that it went into, or -1
    best,  # [T]: from best_partner_kernel
    partner,  # int32 [T]
    groups,  # int64 [programs, 2]: first box of a group, and behind its last
    limits,  # [2]: threshold, overlap
    total,  # T
    MATCH: tl.constexpr,
    WEIGHTED: tl.constexpr,  # average by counts
    BLOCK: tl.constexpr,  # at least the boxes of any group here; all are held in registers
):
    total = total.to(tl.int64)
    start, end = tl.load(groups + 2 * tl.program_id(0)), tl.load(groups + 2 * tl.program_id(0) + 1)
    index = tl.arange(0, BLOCK)
    i_box = start + index
    alive = i_box < end
    threshold, overlap = tl.load(limits), tl.load(limits + 1)
    x1, y1 = tl.load(boxes + i_box, mask=alive, other=0.0), tl.load(boxes + total + i_box, mask=alive, other=0.0)
    x2 = tl.load(boxes + 2 * total + i_box, mask=alive, other=0.0)
    y2 = tl.load(boxes + 3 * total + i_box, mask=alive, other=0.0)
    score_sum, most = tl.load(sums + i_box, mask=alive, other=0.0), tl.load(largest + i_box, mask=alive, other=0.0)
    low = tl.load(best + i_box, mask=alive, other=float("inf"))
    mate = tl.load(partner + i_box, mask=alive, other=-1) - start.to(tl.int32)
    stale = tl.zeros([BLOCK], tl.int32)
    count = tl.where(alive, 1, 0)
    goes_to = tl.full([BLOCK], -1, tl.int32)
    lowest = tl.min(low, axis=0)
    while lowest < float("inf"):
        i = tl.min(tl.where(low == lowest, index, BLOCK), axis=0)
        is_i = index == i
        j = tl.max(tl.where(is_i, mate, -1), axis=0)
        fresh = tl.max(tl.where(is_i, stale, 0), axis=0) == 0
        is_j = (index == j) & fresh
        # The merged box; or the old one, which only looks for a new partner.
        n_i = tl.sum(tl.where(is_i, count, 0), axis=0)
        n_j = tl.sum(tl.where(is_j, count, 0), axis=0)
        a, b = n_i.to(x1.dtype), n_j.to(x1.dtype)
        if not WEIGHTED:
            a, b = (n_i > 0).to(x1.dtype), (n_j > 0).to(x1.dtype)
        new_x1, new_x2 = _mean(x1, is_i, is_j, a, b), _mean(x2, is_i, is_j, a, b)
        new_y1, new_y2 = _mean(y1, is_i, is_j, a, b), _mean(y2, is_i, is_j, a, b)
        x1, x2 = tl.where(is_i & fresh, new_x1, x1), tl.where(is_i & fresh, new_x2, x2)
        y1, y2 = tl.where(is_i & fresh, new_y1, y1), tl.where(is_i & fresh, new_y2, y2)
        score_sum = tl.where(is_i, score_sum + tl.sum(tl.where(is_j, score_sum, 0.0), axis=0), score_sum)
        most = tl.where(is_i, tl.maximum(most, tl.max(tl.where(is_j, most, 0.0), axis=0)), most)
        count = tl.where(is_j, 0, tl.where(is_i, n_i + n_j, count))
        goes_to = tl.where(is_j, i, goes_to)
        # Its scores with all others.
        score = _score(new_x1, new_y1, new_x2, new_y2, x1, y1, x2, y2, overlap, MATCH)
        score = tl.where((count > 0) & (score <= threshold), score, float("inf"))
        after = tl.where(index > i, score, float("inf"))
        low_i = tl.min(after, axis=0)
        mate_i = tl.min(tl.where(after == low_i, index, BLOCK), axis=0)
        changed = fresh & ((mate == i) | (mate == j))
        better = fresh & (index < i) & (score < float("inf")) & ((score < low) | ((score == low) & (i <= mate)))
        stale = tl.where(is_i | better, 0, tl.where(changed, 1, stale))
        mate = tl.where(is_i, mate_i, tl.where(better, i, mate))
        low = tl.where(is_i, low_i, tl.where(is_j, float("inf"), tl.where(better, score, low)))
        lowest = tl.min(low, axis=0)
    tl.store(boxes + i_box, x1, mask=alive)
    tl.store(boxes + total + i_box, y1, mask=alive)
    tl.store(boxes + 2 * total + i_box, x2, mask=alive)
    tl.store(boxes + 3 * total + i_box, y2, mask=alive)
    tl.store(sums + i_box, score_sum, mask=alive)
    tl.store(largest + i_box, most, mask=alive)
    tl.store(counts + i_box, count.to(tl.int64), mask=alive)
    tl.store(into + i_box, tl.where(goes_to < 0, -1, goes_to + start), mask=alive)


@triton.jit
def _mean(values, is_i, is_j, a, b):
    """The weighted mean of two of the values."""
    first, second = tl.sum(tl.where(is_i, values, 0.0), axis=0), tl.sum(tl.where(is_j, values, 0.0), axis=0)
    return _average(first, second, a, b)


@triton.jit(do_not_specialize=["total"])
def merge_tiled_kernel(
    boxes,  # as above, [4, T]
    sums,
    largest,
    counts,  # int64 [T], in place: 1 before
    into,  # int64 [T], in place: -1 before
    best,  # [T], in place
    partner,  # int32 [T], in place: numbers within [0, T)
    stale,  # int32 [T], in place: 0 before
    groups,
    limits,
    total,
    MATCH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,  # boxes that are held at a time; the rest stays in memory
):
    total = total.to(tl.int64)
    start, end = tl.load(groups + 2 * tl.program_id(0)), tl.load(groups + 2 * tl.program_id(0) + 1)
    threshold, overlap = tl.load(limits), tl.load(limits + 1)
    lowest, i = _lowest(best, start, end, BLOCK)
    while lowest < float("inf"):
        j = tl.load(partner + i).to(tl.int64)
        fresh = tl.load(stale + i) == 0
        n_i = tl.load(counts + i)
        n_j = tl.where(fresh, tl.load(counts + j), 0)
        a, b = n_i.to(boxes.dtype.element_ty), n_j.to(boxes.dtype.element_ty)
        if not WEIGHTED:
            a, b = (n_i > 0).to(boxes.dtype.element_ty), (n_j > 0).to(boxes.dtype.element_ty)
        new_x1 = _average(tl.load(boxes + i), tl.load(boxes + j), a, b)
        new_y1 = _average(tl.load(boxes + total + i), tl.load(boxes + total + j), a, b)
        new_x2 = _average(tl.load(boxes + 2 * total + i), tl.load(boxes + 2 * total + j), a, b)
        new_y2 = _average(tl.load(boxes + 3 * total + i), tl.load(boxes + 3 * total + j), a, b)
        new_sum, new_most = tl.load(sums + i), tl.load(largest + i)
        if fresh:
            new_sum, new_most = new_sum + tl.load(sums + j), tl.maximum(new_most, tl.load(largest + j))
        tl.debug_barrier()  # every thread has read what one is about to write
        tl.store(boxes + i, new_x1)
        tl.store(boxes + total + i, new_y1)
        tl.store(boxes + 2 * total + i, new_x2)
        tl.store(boxes + 3 * total + i, new_y2)
        tl.store(sums + i, new_sum)
        tl.store(largest + i, new_most)
        tl.store(counts + i, n_i + n_j)
        tl.store(counts + j, 0, mask=fresh)
        tl.store(into + j, i, mask=fresh)
        tl.store(best + i, float("inf"))
        tl.store(best + j, float("inf"), mask=fresh)
        tl.debug_barrier()
        low_i = tl.full([], float("inf"), boxes.dtype.element_ty)
        mate_i = i * 0
        for first in range(start, end, BLOCK):
            k = first + tl.arange(0, BLOCK)
            there = k < end
            score = _score(
                new_x1, new_y1, new_x2, new_y2,
                tl.load(boxes + k, mask=there, other=0.0), tl.load(boxes + total + k, mask=there, other=0.0),
                tl.load(boxes + 2 * total + k, mask=there, other=0.0),
                tl.load(boxes + 3 * total + k, mask=there, other=0.0), overlap, MATCH,
            )  # fmt: skip
            candidate = there & (tl.load(counts + k, mask=there, other=0) > 0) & (score <= threshold)
            score = tl.where(candidate, score, float("inf"))
            after = tl.where(k > i, score, float("inf"))
            low_here = tl.min(after, axis=0)
            mate_i = tl.where(low_here < low_i, tl.min(tl.where(after == low_here, k, end), axis=0), mate_i)
            low_i = tl.minimum(low_i, low_here)
            low = tl.load(best + k, mask=there, other=float("inf"))
            mate = tl.load(partner + k, mask=there, other=-1)
            better = fresh & (k < i) & (score < float("inf")) & ((score < low) | ((score == low) & (i <= mate)))
            changed = fresh & there & ((mate == i) | (mate == j))
            tl.store(best + k, score, mask=better)
            tl.store(partner + k, i.to(tl.int32), mask=better)
            tl.store(stale + k, tl.where(better, 0, 1), mask=better | (changed & (k != i)))
        tl.debug_barrier()
        tl.store(best + i, low_i)
        tl.store(partner + i, mate_i.to(tl.int32))
        tl.store(stale + i, 0)
        tl.debug_barrier()
        lowest, i = _lowest(best, start, end, BLOCK)


@triton.jit
def _lowest(best, start, end, BLOCK: tl.constexpr):
    """The smallest of best[start:end], and where it is first."""
    lowest = tl.full([], float("inf"), best.dtype.element_ty)
    at = start
    for first in range(start, end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        low = tl.load(best + k, mask=k < end, other=float("inf"))
        here = tl.min(low, axis=0)
        at = tl.where(here < lowest, tl.min(tl.where(low == here, k, end), axis=0), at)
        lowest = tl.minimum(lowest, here)
    return lowest, at


def merge(
    boxes: Tensor, scores: Tensor, lengths: list[int], *,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See ops.merge_boxes, within runs of `lengths` boxes."""
    device, total = boxes.device, len(boxes)
    corners, sums, largest = boxes.t().contiguous(), scores.clone(), scores.clone()
    counts = torch.ones(total, dtype=torch.int64, device=device)
    into = torch.full_like(counts, -1)
    if total:
        each = torch.tensor(lengths, device="cpu")
        table = each.cumsum(0)
        groups = torch.stack([table - each, table], dim=1)
        ends = table.repeat_interleave(each).to(device)
        limits = torch.tensor([match_threshold, min_iou], dtype=boxes.dtype, device=device)
        best, partner = torch.empty_like(sums), torch.empty(total, dtype=torch.int32, device=device)
        rule = {"MATCH": MATCH_METRICS[match_metric], **EXACT}
        best_partner_kernel[(triton.cdiv(total, ROWS_BLOCK),)](
            corners, ends, limits, best, partner, total,
            BLOCK=ROWS_BLOCK, COLUMNS=ROWS_COLUMNS, num_warps=ROWS_WARPS, **rule,
        )  # fmt: skip
        rule["WEIGHTED"] = box_average == "counts"
        smaller = 1
        for tile in MERGE_TILES[boxes.dtype]:
            chosen = groups[[smaller < length <= tile.most for length in lengths]].to(device)
            smaller = tile.most
            if not len(chosen):
                continue
            state = [corners, sums, largest, counts, into, best, partner]
            if tile.tiled:
                state.append(torch.zeros(total, dtype=torch.int32, device=device))
            kernel = merge_tiled_kernel if tile.tiled else merge_kernel
            kernel[(len(chosen),)](
                *state, chosen, limits, total, BLOCK=tile.block, num_warps=tile.warps, **rule
            )  # fmt: skip
    return corners.t().contiguous(), sums, largest, counts, into
