"""Greedy box merging (section 4.3): match scores, every box's best partner, and the loop that merges the best pair.

Every box keeps its best partner among those after it in its group. A merge puts the new box in the position of the
first, offers it to the boxes before it, and searches its partner. A box whose partner changed is dirty: it keeps its
old score, a lower bound by then, and searches for a new partner when its turn comes. Sums, products, quotients and
roots are rounded one by one, so that every backend merges in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.launch import MERGE_TILES, PARTNER_BLOCK_M, PARTNER_BLOCK_N, PARTNER_WARPS

MATCH_METRICS = {"normalised": 0, "sum": 1, "centres": 2}
EXACT = {"enable_fp_fusion": False}  # no fused multiply-add


@triton.jit
def _divide(a, b):
    if a.dtype == tl.float32:  # where "/" is not rounded to the nearest
        return tl.div_rn(a, b)
    return a / b


@triton.jit
def _average(first, second, a, b):
    """The mean of two coordinates with weights a and b, clamped between them; the first if b is 0."""
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
def _score(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, min_iou, MATCH_METRIC: tl.constexpr):
    """boxes.match_score, step by step."""
    dx, dy = (ax1 + ax2) - (bx1 + bx2), (ay1 + ay2) - (by1 + by2)
    distance = _root(dx * dx + dy * dy)
    shared = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    shared = shared * tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    if MATCH_METRIC == 1:
        return distance * 0.5 + shared
    equal = (ax1 == bx1) & (ay1 == by1) & (ax2 == bx2) & (ay2 == by2)
    diagonals = _diagonal(ax1, ay1, ax2, ay2) + _diagonal(bx1, by1, bx2, by2)
    relative = _divide(distance, tl.where(diagonals > 0, diagonals, 1.0))
    relative = tl.where(equal, 0.0, tl.where(diagonals > 0, relative, float("inf")))
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)) - shared
    divisor = tl.where(union > 0, union, 1.0)
    if MATCH_METRIC == 2:
        iou = tl.where(union > 0, _divide(shared, divisor), tl.where(equal, 1.0, 0.0))
        return tl.where(iou >= min_iou, relative, float("inf"))
    return relative + tl.where(union > 0, _divide(union - shared, divisor), tl.where(equal, 0.0, 1.0))


@triton.jit
def _load_boxes(boxes, total, i, mask):
    """x1, y1, x2, y2 of boxes i."""
    x1, y1 = tl.load(boxes + i, mask=mask, other=0.0), tl.load(boxes + total + i, mask=mask, other=0.0)
    x2 = tl.load(boxes + 2 * total + i, mask=mask, other=0.0)
    y2 = tl.load(boxes + 3 * total + i, mask=mask, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _store_boxes(boxes, total, i, x1, y1, x2, y2, mask):
    tl.store(boxes + i, x1, mask=mask)
    tl.store(boxes + total + i, y1, mask=mask)
    tl.store(boxes + 2 * total + i, x2, mask=mask)
    tl.store(boxes + 3 * total + i, y2, mask=mask)


@triton.jit(do_not_specialize=["total"])
def best_partner_kernel(
    boxes,  # [4, T], contiguous, float32 or float64: x1, y1, x2, y2
    ends,  # int64 [T]: one past the last box of each box's group
    limits,  # [2], dtype of the boxes: match_threshold, min_iou
    best_score,  # [T], dtype of the boxes, written: match score with the best partner after it, or infinity
    partner,  # int32 [T], written: that partner's index in [0, T), or -1
    total,  # T
    MATCH_METRIC: tl.constexpr,
    BLOCK_M: tl.constexpr,  # boxes of a program
    BLOCK_N: tl.constexpr,  # candidates at a time
):
    """Every box's best partner among those after it in its group, in the boxes' dtype."""
    total = total.to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)
    inside = i < total
    end = tl.load(ends + i, mask=inside, other=0)
    threshold, min_iou = tl.load(limits), tl.load(limits + 1)
    x1, y1, x2, y2 = _load_boxes(boxes, total, i, inside)
    b_score = tl.full([BLOCK_M], float("inf"), boxes.dtype.element_ty)
    b_partner = tl.full([BLOCK_M], -1, tl.int32)
    for start in range(first, tl.max(end, axis=0), BLOCK_N):
        k = start + tl.arange(0, BLOCK_N)
        valid = k < total
        kx1, ky1, kx2, ky2 = _load_boxes(boxes, total, k, valid)
        score = _score(
            x1[:, None], y1[:, None], x2[:, None], y2[:, None], kx1[None], ky1[None], kx2[None], ky2[None],
            min_iou, MATCH_METRIC,
        )  # fmt: skip
        pair = (k[None] > i[:, None]) & (k[None] < end[:, None]) & (score <= threshold)
        score = tl.where(pair, score, float("inf"))
        lowest = tl.min(score, axis=1)
        # Of equal scores the first: columns go upwards.
        index = tl.min(tl.where(score == lowest[:, None], k[None], total), axis=1)
        b_partner = tl.where(lowest < b_score, index.to(tl.int32), b_partner)
        b_score = tl.minimum(b_score, lowest)
    tl.store(best_score + i, b_score, mask=inside)
    tl.store(partner + i, b_partner, mask=inside)


@triton.jit(do_not_specialize=["total"])
def merge_kernel(
    boxes,  # [4, T], contiguous, float32 or float64, in place
    sums,  # [T], dtype of the boxes, in place: summed scores
    max_score,  # [T], dtype of the boxes, in place: maximum scores
    counts,  # int64 [T], written: 0 for a box that was merged into another
    merged_into,  # int64 [T], written: the box that it was merged into, or -1
    best_score,  # [T], dtype of the boxes: from best_partner_kernel
    partner,  # int32 [T]: from best_partner_kernel
    groups,  # int64 [programs, 2], contiguous: first box of a group, and one past its last
    limits,  # [2], dtype of the boxes: match_threshold, min_iou
    total,  # T
    MATCH_METRIC: tl.constexpr,
    WEIGHTED: tl.constexpr,  # average by counts
    BLOCK: tl.constexpr,  # at least the boxes of any of these groups
):
    """Merge one group of at most BLOCK boxes, which is held in registers; in the boxes' dtype."""
    total = total.to(tl.int64)
    start, end = tl.load(groups + 2 * tl.program_id(0)), tl.load(groups + 2 * tl.program_id(0) + 1)
    index = tl.arange(0, BLOCK)
    i_box = start + index
    alive = i_box < end
    threshold, min_iou = tl.load(limits), tl.load(limits + 1)
    x1, y1, x2, y2 = _load_boxes(boxes, total, i_box, alive)
    b_sum, b_max_score = tl.load(sums + i_box, mask=alive, other=0.0), tl.load(max_score + i_box, mask=alive, other=0.0)
    b_score = tl.load(best_score + i_box, mask=alive, other=float("inf"))
    b_partner = tl.load(partner + i_box, mask=alive, other=-1) - start.to(tl.int32)
    b_dirty = tl.zeros([BLOCK], tl.int32)
    b_count = tl.where(alive, 1, 0)
    b_merged_into = tl.full([BLOCK], -1, tl.int32)
    lowest = tl.min(b_score, axis=0)
    while lowest < float("inf"):
        i = tl.min(tl.where(b_score == lowest, index, BLOCK), axis=0)
        is_i = index == i
        j = tl.max(tl.where(is_i, b_partner, -1), axis=0)
        clean = tl.max(tl.where(is_i, b_dirty, 0), axis=0) == 0
        is_j = (index == j) & clean
        # The merged box; or the old one, if it is dirty and only searches for a new partner.
        n_i = tl.sum(tl.where(is_i, b_count, 0), axis=0)
        n_j = tl.sum(tl.where(is_j, b_count, 0), axis=0)
        a, b = n_i.to(x1.dtype), n_j.to(x1.dtype)
        if not WEIGHTED:
            a, b = (n_i > 0).to(x1.dtype), (n_j > 0).to(x1.dtype)
        new_x1, new_x2 = _mean(x1, is_i, is_j, a, b), _mean(x2, is_i, is_j, a, b)
        new_y1, new_y2 = _mean(y1, is_i, is_j, a, b), _mean(y2, is_i, is_j, a, b)
        x1, x2 = tl.where(is_i & clean, new_x1, x1), tl.where(is_i & clean, new_x2, x2)
        y1, y2 = tl.where(is_i & clean, new_y1, y1), tl.where(is_i & clean, new_y2, y2)
        b_sum = tl.where(is_i, b_sum + tl.sum(tl.where(is_j, b_sum, 0.0), axis=0), b_sum)
        b_max_score = tl.where(
            is_i, tl.maximum(b_max_score, tl.max(tl.where(is_j, b_max_score, 0.0), axis=0)), b_max_score
        )
        b_count = tl.where(is_j, 0, tl.where(is_i, n_i + n_j, b_count))
        b_merged_into = tl.where(is_j, i, b_merged_into)
        # Its match scores with all others.
        score = _score(new_x1, new_y1, new_x2, new_y2, x1, y1, x2, y2, min_iou, MATCH_METRIC)
        score = tl.where((b_count > 0) & (score <= threshold), score, float("inf"))
        after = tl.where(index > i, score, float("inf"))
        score_i = tl.min(after, axis=0)
        partner_i = tl.min(tl.where(after == score_i, index, BLOCK), axis=0)
        changed = clean & ((b_partner == i) | (b_partner == j))
        better = (
            clean & (index < i) & (score < float("inf")) & ((score < b_score) | ((score == b_score) & (i <= b_partner)))
        )
        b_dirty = tl.where(is_i | better, 0, tl.where(changed, 1, b_dirty))
        b_partner = tl.where(is_i, partner_i, tl.where(better, i, b_partner))
        b_score = tl.where(is_i, score_i, tl.where(is_j, float("inf"), tl.where(better, score, b_score)))
        lowest = tl.min(b_score, axis=0)
    _store_boxes(boxes, total, i_box, x1, y1, x2, y2, alive)
    tl.store(sums + i_box, b_sum, mask=alive)
    tl.store(max_score + i_box, b_max_score, mask=alive)
    tl.store(counts + i_box, b_count.to(tl.int64), mask=alive)
    tl.store(merged_into + i_box, tl.where(b_merged_into < 0, -1, b_merged_into + start), mask=alive)


@triton.jit
def _mean(values, is_i, is_j, a, b):
    """The weighted mean of two of the values."""
    first, second = tl.sum(tl.where(is_i, values, 0.0), axis=0), tl.sum(tl.where(is_j, values, 0.0), axis=0)
    return _average(first, second, a, b)


@triton.jit(do_not_specialize=["total"])
def merge_tiled_kernel(
    boxes,  # [4, T], contiguous, float32 or float64, in place
    sums,  # [T], dtype of the boxes, in place: summed scores
    max_score,  # [T], dtype of the boxes, in place: maximum scores
    counts,  # int64 [T], in place: 1 before; 0 for a box that was merged into another
    merged_into,  # int64 [T], in place: -1 before; the box that it was merged into
    best_score,  # [T], dtype of the boxes, in place: from best_partner_kernel
    partner,  # int32 [T], in place: from best_partner_kernel
    dirty,  # int32 [T], in place: 0 before
    groups,  # int64 [programs, 2], contiguous: first box of a group, and one past its last
    limits,  # [2], dtype of the boxes: match_threshold, min_iou
    total,  # T
    MATCH_METRIC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,  # boxes that are loaded at a time
):
    """Merge one group of any size, whose state stays in memory; in the boxes' dtype."""
    total = total.to(tl.int64)
    start, end = tl.load(groups + 2 * tl.program_id(0)), tl.load(groups + 2 * tl.program_id(0) + 1)
    threshold, min_iou = tl.load(limits), tl.load(limits + 1)
    lowest, i = _lowest(best_score, start, end, BLOCK)
    while lowest < float("inf"):
        j = tl.load(partner + i).to(tl.int64)
        clean = tl.load(dirty + i) == 0
        n_i = tl.load(counts + i)
        n_j = tl.where(clean, tl.load(counts + j), 0)
        a, b = n_i.to(boxes.dtype.element_ty), n_j.to(boxes.dtype.element_ty)
        if not WEIGHTED:
            a, b = (n_i > 0).to(boxes.dtype.element_ty), (n_j > 0).to(boxes.dtype.element_ty)
        new_x1 = _average(tl.load(boxes + i), tl.load(boxes + j), a, b)
        new_y1 = _average(tl.load(boxes + total + i), tl.load(boxes + total + j), a, b)
        new_x2 = _average(tl.load(boxes + 2 * total + i), tl.load(boxes + 2 * total + j), a, b)
        new_y2 = _average(tl.load(boxes + 3 * total + i), tl.load(boxes + 3 * total + j), a, b)
        new_sum, new_max = tl.load(sums + i), tl.load(max_score + i)
        if clean:
            new_sum, new_max = new_sum + tl.load(sums + j), tl.maximum(new_max, tl.load(max_score + j))
        tl.debug_barrier()  # all threads have read what one is about to write
        _store_boxes(boxes, total, i, new_x1, new_y1, new_x2, new_y2, None)
        tl.store(sums + i, new_sum)
        tl.store(max_score + i, new_max)
        tl.store(counts + i, n_i + n_j)
        tl.store(counts + j, 0, mask=clean)
        tl.store(merged_into + j, i, mask=clean)
        tl.store(best_score + i, float("inf"))
        tl.store(best_score + j, float("inf"), mask=clean)
        tl.debug_barrier()
        score_i = tl.full([], float("inf"), boxes.dtype.element_ty)
        partner_i = i * 0
        for first in range(start, end, BLOCK):
            k = first + tl.arange(0, BLOCK)
            valid = k < end
            x1, y1, x2, y2 = _load_boxes(boxes, total, k, valid)
            score = _score(new_x1, new_y1, new_x2, new_y2, x1, y1, x2, y2, min_iou, MATCH_METRIC)
            candidate = valid & (tl.load(counts + k, mask=valid, other=0) > 0) & (score <= threshold)
            score = tl.where(candidate, score, float("inf"))
            after = tl.where(k > i, score, float("inf"))
            score_here = tl.min(after, axis=0)
            partner_i = tl.where(score_here < score_i, tl.min(tl.where(after == score_here, k, end), axis=0), partner_i)
            score_i = tl.minimum(score_i, score_here)
            b_score = tl.load(best_score + k, mask=valid, other=float("inf"))
            b_partner = tl.load(partner + k, mask=valid, other=-1)
            better = (
                clean & (k < i) & (score < float("inf")) & ((score < b_score) | ((score == b_score) & (i <= b_partner)))
            )
            changed = clean & valid & ((b_partner == i) | (b_partner == j))
            tl.store(best_score + k, score, mask=better)
            tl.store(partner + k, i.to(tl.int32), mask=better)
            tl.store(dirty + k, tl.where(better, 0, 1), mask=better | (changed & (k != i)))
        tl.debug_barrier()
        tl.store(best_score + i, score_i)
        tl.store(partner + i, partner_i.to(tl.int32))
        tl.store(dirty + i, 0)
        tl.debug_barrier()
        lowest, i = _lowest(best_score, start, end, BLOCK)


@triton.jit
def _lowest(best_score, start, end, BLOCK: tl.constexpr):
    """The smallest of best_score[start:end], and its first index."""
    lowest = tl.full([], float("inf"), best_score.dtype.element_ty)
    at = start
    for first in range(start, end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        b_score = tl.load(best_score + k, mask=k < end, other=float("inf"))
        here = tl.min(b_score, axis=0)
        at = tl.where(here < lowest, tl.min(tl.where(b_score == here, k, end), axis=0), at)
        lowest = tl.minimum(lowest, here)
    return lowest, at


def merge(
    boxes: Tensor, scores: Tensor, lengths: list[int], *,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Merge within runs of `lengths` boxes: see ops.merge_boxes, and ops.reference.merge_boxes for the results."""
    device, total = boxes.device, len(boxes)
    corners, sums, max_score = boxes.t().contiguous(), scores.clone(), scores.clone()
    counts = torch.ones(total, dtype=torch.int64, device=device)
    merged_into = torch.full_like(counts, -1)
    if total:
        length = torch.tensor(lengths, device="cpu")
        ends = length.cumsum(0)
        limits = torch.tensor([match_threshold, min_iou], dtype=boxes.dtype, device=device)
        best_score, partner = torch.empty_like(sums), torch.empty(total, dtype=torch.int32, device=device)
        rule = {"MATCH_METRIC": MATCH_METRICS[match_metric], **EXACT}
        best_partner_kernel[(triton.cdiv(total, PARTNER_BLOCK_M),)](
            corners, ends.repeat_interleave(length).to(device), limits, best_score, partner, total,
            BLOCK_M=PARTNER_BLOCK_M, BLOCK_N=PARTNER_BLOCK_N, num_warps=PARTNER_WARPS, **rule,
        )  # fmt: skip
        rule["WEIGHTED"] = box_average == "counts"
        state = (corners, sums, max_score, counts, merged_into, best_score, partner)
        _merge_by_length(state, lengths, torch.stack([ends - length, ends], dim=1), limits, rule)
    return corners.t().contiguous(), sums, max_score, counts, merged_into


def _merge_by_length(
    state: tuple[Tensor, ...], lengths: list[int], groups: Tensor, limits: Tensor, rule: dict[str, int]
) -> None:
    """Launch the kernel of each MergeTile on the groups of its lengths; groups of one box are done."""
    device, total = limits.device, len(state[-1])
    shorter = 1
    for tile in MERGE_TILES[limits.dtype]:
        selected = groups[[shorter < length <= tile.max_boxes for length in lengths]].to(device)
        shorter = tile.max_boxes
        if not len(selected):
            continue
        options = {"BLOCK": tile.block, "num_warps": tile.warps, **rule}
        if tile.tiled:
            dirty = torch.zeros(total, dtype=torch.int32, device=device)
            merge_tiled_kernel[(len(selected),)](*state, dirty, selected, limits, total, **options)
        else:
            merge_kernel[(len(selected),)](*state, selected, limits, total, **options)
