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
def _score(ax1, ay1, ax2, ay2, a_diagonal, bx1, by1, bx2, by2, b_diagonal, min_iou, MATCH_METRIC: tl.constexpr):
    """boxes.match_score, step by step."""
    dx, dy = (ax1 + ax2) - (bx1 + bx2), (ay1 + ay2) - (by1 + by2)
    distance = _root(dx * dx + dy * dy)
    intersection = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    intersection = intersection * tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    if MATCH_METRIC == 1:
        return distance * 0.5 + intersection
    equal = (ax1 == bx1) & (ay1 == by1) & (ax2 == bx2) & (ay2 == by2)
    diagonals = a_diagonal + b_diagonal
    relative = _divide(distance, tl.where(diagonals > 0, diagonals, 1.0))
    relative = tl.where(equal, 0.0, tl.where(diagonals > 0, relative, float("inf")))
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)) - intersection
    divisor = tl.where(union > 0, union, 1.0)
    if MATCH_METRIC == 2:
        iou = tl.where(union > 0, _divide(intersection, divisor), tl.where(equal, 1.0, 0.0))
        return tl.where(iou >= min_iou, relative, float("inf"))
    return relative + tl.where(union > 0, _divide(union - intersection, divisor), tl.where(equal, 0.0, 1.0))


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
    diagonal = _diagonal(x1, y1, x2, y2)
    b_score = tl.full([BLOCK_M], float("inf"), boxes.dtype.element_ty)
    b_partner = tl.full([BLOCK_M], -1, tl.int32)
    for start in range(first, tl.max(end, axis=0), BLOCK_N):
        k = start + tl.arange(0, BLOCK_N)
        valid = k < total
        kx1, ky1, kx2, ky2 = _load_boxes(boxes, total, k, valid)
        score = _score(
            x1[:, None], y1[:, None], x2[:, None], y2[:, None], diagonal[:, None],
            kx1[None], ky1[None], kx2[None], ky2[None], _diagonal(kx1, ky1, kx2, ky2)[None], min_iou, MATCH_METRIC,
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


@triton.jit
def _two_lowest(score_a, low_a, score_b, low_b):
    """The smallest score of a and of b with its low; of equal scores the smaller low. One reduction in float32.

    Scores are 0 or more, so that their bits are ordered as they are; low: int32, 0 or more.
    """
    low = tl.join(low_a, low_b)
    score = tl.join(score_a, score_b)
    if score.dtype == tl.float32:
        keys = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.int64)
        key_a, key_b = tl.split(tl.min(keys, axis=0))
        lowest_a = (key_a >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        lowest_b = (key_b >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        return lowest_a, key_a.to(tl.int32), lowest_b, key_b.to(tl.int32)
    lowest = tl.min(score, axis=0)
    lowest_a, lowest_b = tl.split(lowest)
    low_a, low_b = tl.split(tl.min(tl.where(score == lowest[None, :], low, 0x7FFFFFFF), axis=0))
    return lowest_a, low_a, lowest_b, low_b


@triton.jit
def _merged(boxes, sums, max_score, counts, total, i, j, clean, WEIGHTED: tl.constexpr):
    """Box i merged with box j if clean, else box i as it is: corners, sum, maximum and count."""
    n_i, n_j = tl.load(counts + i), tl.where(clean, tl.load(counts + j), 0)
    a, b = n_i.to(boxes.dtype.element_ty), n_j.to(boxes.dtype.element_ty)
    if not WEIGHTED:
        a, b = (n_i > 0).to(boxes.dtype.element_ty), (n_j > 0).to(boxes.dtype.element_ty)
    x1 = _average(tl.load(boxes + i), tl.load(boxes + j), a, b)
    y1 = _average(tl.load(boxes + total + i), tl.load(boxes + total + j), a, b)
    x2 = _average(tl.load(boxes + 2 * total + i), tl.load(boxes + 2 * total + j), a, b)
    y2 = _average(tl.load(boxes + 3 * total + i), tl.load(boxes + 3 * total + j), a, b)
    new_sum, new_max = tl.load(sums + i), tl.load(max_score + i)
    new_sum = tl.where(clean, new_sum + tl.load(sums + j), new_sum)
    new_max = tl.where(clean, tl.maximum(new_max, tl.load(max_score + j)), new_max)
    return x1, y1, x2, y2, new_sum, new_max, n_i + n_j


@triton.jit(do_not_specialize=["total"])
def merge_kernel(
    boxes,  # [4, T], contiguous, float32 or float64, in place
    sums,  # [T], dtype of the boxes, in place: summed scores
    max_score,  # [T], dtype of the boxes, in place: maximum scores
    counts,  # int64 [T], in place: 1 before; 0 for a box that was merged into another
    merged_into,  # int64 [T], in place: -1 before; the box that it was merged into
    best_score,  # [T], dtype of the boxes, overwritten: from best_partner_kernel
    partner,  # int32 [T], overwritten: from best_partner_kernel
    order,  # int32 [T], scratch: the boxes left in a group
    groups,  # int64 [programs, 2], contiguous: first box of a group, and one past its last
    limits,  # [2], dtype of the boxes: match_threshold, min_iou
    total,  # T
    MATCH_METRIC: tl.constexpr,
    WEIGHTED: tl.constexpr,  # average by counts
    BLOCK: tl.constexpr,  # at least the boxes of any of these groups; at most 16,384
    LEVELS: tl.constexpr,  # block sizes: BLOCK, BLOCK / 2, ...
):
    """Merge one group of at most BLOCK boxes, in the boxes' dtype.

    What is compared with every merged box is in registers: corners, diagonals, best scores and partners. The rest, and
    the two boxes of a merge, are read from memory, where every result is written as it is computed. When half of the
    boxes are left, they are packed into a block of half the size.
    """
    tl.static_assert(BLOCK <= 16384)  # an index, or BLOCK, has 15 bits beside a partner's 15 bits and one for dirty
    total = total.to(tl.int64)
    start, end = tl.load(groups + 2 * tl.program_id(0)), tl.load(groups + 2 * tl.program_id(0) + 1)
    threshold, min_iou = tl.load(limits), tl.load(limits + 1)
    left = (end - start).to(tl.int32)
    index = tl.arange(0, BLOCK)
    i_box = start + index
    x1, y1, x2, y2, diagonal, b_score, b_partner = _load_state(boxes, best_score, partner, total, i_box, index < left)
    # 2 * partner + dirty, where a box has a partner
    b_partner = tl.where(b_score < float("inf"), 2 * (b_partner - start.to(tl.int32)), 0)
    lowest, low, _, _ = _two_lowest(b_score, (index << 16) | b_partner, b_score, b_partner)
    for level in tl.static_range(LEVELS):
        # A smaller block, if any, takes over.
        enough = BLOCK >> (level + 1) if level + 1 < LEVELS else 0
        while (lowest < float("inf")) & (left > enough):
            i, j, clean = low >> 16, (low & 0xFFFF) >> 1, (low & 1) == 0
            p_i, p_j = start + i, start + j
            new_x1, new_y1, new_x2, new_y2, new_sum, new_max, new_count = _merged(
                boxes, sums, max_score, counts, total, p_i, p_j, clean, WEIGHTED
            )
            tl.debug_barrier()  # all threads have read what one is about to write
            _store_boxes(boxes, total, p_i, new_x1, new_y1, new_x2, new_y2, clean)
            tl.store(sums + p_i, new_sum, mask=clean)
            tl.store(max_score + p_i, new_max, mask=clean)
            tl.store(counts + p_i, new_count, mask=clean)
            tl.store(counts + p_j, 0, mask=clean)
            tl.store(merged_into + p_j, p_i, mask=clean)
            left -= clean.to(tl.int32)
            is_i, is_j = index == i, (index == j) & clean
            x1, y1 = tl.where(is_i, new_x1, tl.where(is_j, float("nan"), x1)), tl.where(is_i, new_y1, y1)
            x2, y2 = tl.where(is_i, new_x2, x2), tl.where(is_i, new_y2, y2)
            new_diagonal = _diagonal(new_x1, new_y1, new_x2, new_y2)
            diagonal = tl.where(is_i, new_diagonal, diagonal)
            score = _score(
                new_x1, new_y1, new_x2, new_y2, new_diagonal, x1, y1, x2, y2, diagonal, min_iou, MATCH_METRIC
            )
            score = tl.where(score <= threshold, score, float("inf"))
            # Offer the box to those before it; boxes that had one of the two as partner are dirty.
            changed = clean & (((b_partner | 1) == 2 * i + 1) | ((b_partner | 1) == 2 * j + 1))
            better = clean & (index < i) & (score < float("inf"))
            better = better & ((score < b_score) | ((score == b_score) & (2 * i <= b_partner)))
            b_partner = tl.where(better, 2 * i, tl.where(changed, b_partner | 1, b_partner))
            b_score = tl.where(is_i | is_j, float("inf"), tl.where(better, score, b_score))
            # The best pair of the others, and the best partner of box i after it.
            after = tl.where(index > i, score, float("inf"))
            lowest, low, score_i, partner_i = _two_lowest(b_score, (index << 16) | b_partner, after, index)
            b_score, b_partner = tl.where(is_i, score_i, b_score), tl.where(is_i, 2 * partner_i, b_partner)
            low_i = (i << 16) | (2 * partner_i)
            first = (score_i < lowest) | ((score_i == lowest) & (low_i < low))
            lowest, low = tl.where(first, score_i, lowest), tl.where(first, low_i, low)
            tl.debug_barrier()  # what one thread wrote can be read by all
        if level + 1 < LEVELS:
            kept = x1 == x1
            position = tl.cumsum(kept.to(tl.int32), axis=0) - 1
            tl.debug_barrier()
            tl.store(order + start + position, index, mask=kept)
            tl.store(best_score + i_box, b_score, mask=kept)
            tl.store(partner + i_box, b_partner, mask=kept)
            tl.debug_barrier()
            lane = tl.arange(0, BLOCK >> (level + 1))
            index = tl.load(order + start + lane, mask=lane < left, other=BLOCK)  # that of no box
            i_box = start + index
            x1, y1, x2, y2, diagonal, b_score, b_partner = _load_state(
                boxes, best_score, partner, total, i_box, lane < left
            )


@triton.jit
def _load_state(boxes, best_score, partner, total, i_box, inside):
    """Corners and diagonals of boxes, their best scores and partners. Where there is no box, x1 is NaN."""
    x1, y1, x2, y2 = _load_boxes(boxes, total, i_box, inside)
    x1 = tl.where(inside, x1, float("nan"))  # and its match scores NaN or infinite
    b_score = tl.load(best_score + i_box, mask=inside, other=float("inf"))
    return x1, y1, x2, y2, _diagonal(x1, y1, x2, y2), b_score, tl.load(partner + i_box, mask=inside, other=0)


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
    none = tl.full([BLOCK], float("inf"), boxes.dtype.element_ty)
    lowest, i = _lowest(best_score, start, end, BLOCK)
    while lowest < float("inf"):
        j = tl.load(partner + i).to(tl.int64)
        clean = tl.load(dirty + i) == 0
        new_x1, new_y1, new_x2, new_y2, new_sum, new_max, new_count = _merged(
            boxes, sums, max_score, counts, total, i, j, clean, WEIGHTED
        )
        new_diagonal = _diagonal(new_x1, new_y1, new_x2, new_y2)
        tl.debug_barrier()  # all threads have read what one is about to write
        _store_boxes(boxes, total, i, new_x1, new_y1, new_x2, new_y2, clean)
        tl.store(sums + i, new_sum, mask=clean)
        tl.store(max_score + i, new_max, mask=clean)
        tl.store(counts + i, new_count, mask=clean)
        tl.store(counts + j, 0, mask=clean)
        tl.store(merged_into + j, i, mask=clean)
        tl.store(best_score + i, float("inf"))
        tl.store(best_score + j, float("inf"), mask=clean)
        tl.debug_barrier()
        # For every thread's boxes: the best pair of the others, and the best partner of box i after it.
        b_lowest, b_first, b_after, b_partner_i = none, tl.zeros([BLOCK], tl.int32), none, tl.zeros([BLOCK], tl.int32)
        for first in range(start, end, BLOCK):
            k = first + tl.arange(0, BLOCK)
            valid = k < end
            index = (k - start).to(tl.int32)
            x1, y1, x2, y2 = _load_boxes(boxes, total, k, valid)
            score = _score(
                new_x1, new_y1, new_x2, new_y2, new_diagonal, x1, y1, x2, y2, _diagonal(x1, y1, x2, y2),
                min_iou, MATCH_METRIC,
            )  # fmt: skip
            candidate = valid & (tl.load(counts + k, mask=valid, other=0) > 0) & (score <= threshold)
            score = tl.where(candidate, score, float("inf"))
            b_score = tl.load(best_score + k, mask=valid, other=float("inf"))
            b_partner = tl.load(partner + k, mask=valid, other=-1)
            better = (
                clean & (k < i) & (score < float("inf")) & ((score < b_score) | ((score == b_score) & (i <= b_partner)))
            )
            changed = clean & valid & ((b_partner == i) | (b_partner == j))
            tl.store(best_score + k, score, mask=better)
            tl.store(partner + k, i.to(tl.int32), mask=better)
            tl.store(dirty + k, tl.where(better, 0, 1), mask=better | (changed & (k != i)))
            b_score = tl.where(better, score, b_score)
            b_first, b_lowest = tl.where(b_score < b_lowest, index, b_first), tl.minimum(b_lowest, b_score)
            after = tl.where(k > i, score, float("inf"))
            b_partner_i, b_after = tl.where(after < b_after, index, b_partner_i), tl.minimum(b_after, after)
        lowest, low, score_i, partner_i = _two_lowest(b_lowest, b_first, b_after, b_partner_i)
        tl.store(best_score + i, score_i)
        tl.store(partner + i, start.to(tl.int32) + partner_i)
        tl.store(dirty + i, 0)
        other = start + low
        i = tl.where((score_i < lowest) | ((score_i == lowest) & (i < other)), i, other)
        lowest = tl.minimum(lowest, score_i)
        tl.debug_barrier()


@triton.jit
def _lowest(best_score, start, end, BLOCK: tl.constexpr):
    """The smallest of best_score[start:end], and its first index."""
    b_lowest, b_first = tl.full([BLOCK], float("inf"), best_score.dtype.element_ty), tl.zeros([BLOCK], tl.int32)
    for first in range(start, end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        b_score = tl.load(best_score + k, mask=k < end, other=float("inf"))
        b_first = tl.where(b_score < b_lowest, (k - start).to(tl.int32), b_first)
        b_lowest = tl.minimum(b_lowest, b_score)
    lowest, low, _, _ = _two_lowest(b_lowest, b_first, b_lowest, b_first)
    return lowest, start + low


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
        end_of_box = ends.to(device).repeat_interleave(length.to(device), output_size=total)
        best_partner_kernel[(triton.cdiv(total, PARTNER_BLOCK_M),)](
            corners, end_of_box, limits, best_score, partner, total,
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
        options = tile.options(device) | rule
        if tile.tiled:
            dirty = torch.zeros(total, dtype=torch.int32, device=device)
            merge_tiled_kernel[(len(selected),)](*state, dirty, selected, limits, total, **options)
        else:
            order = torch.empty(total, dtype=torch.int32, device=device)
            merge_kernel[(len(selected),)](*state, order, selected, limits, total, LEVELS=tile.levels, **options)
