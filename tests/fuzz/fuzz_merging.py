"""Boxes with ties, equal or almost: merging, NMS and voting equal brute force; boxes that are none are refused."""

import math
import random
from pathlib import Path

import torch
from harness import refused
from torch import Tensor

from overfeat import backend, merge_boxes, nms
from overfeat.errors import InputError
from overfeat.ops import BOX_AVERAGES, boxes
from overfeat.ops.vote_boxes import averages, support

CASES = 60
MAX_MERGED = 40  # the reference takes cubic time
THRESHOLDS = {"normalised": (0, 0.2, 0.5, 1, 1.5, math.inf), "sum": (0, 1, 30, 1e4), "centres": (0, 0.2, 1, 5)}
IOUS = (0.0, 1e-6, 0.2, 1 / 3, 0.5, 0.7, 0.95, 1.0)
SCALES = (1.0, 1.0, 1.0, 1e-3, 1e5, 1e-20, 1e-30)
INVALID = (math.nan, math.inf, -math.inf, 2e9, -3e38)


def check(rng: random.Random, folder: Path) -> str:
    count = rng.choice((0, 1, 2, 3, rng.randrange(MAX_MERGED), rng.randrange(700)))
    values, scores, groups = problem(rng, count)
    if count and rng.random() < 0.1:
        return broken(rng, values, scores, groups)
    if rng.random() < 0.3:
        values.requires_grad_()
    if count <= MAX_MERGED and rng.random() < 0.6:
        return merging(rng, values, scores, groups)
    return rng.choice((greedy_nms, voting))(rng, values, scores, groups)


def problem(rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [T, 4] of one kind or mixed, some equal, some almost, scores with ties, and groups."""
    g = torch.Generator().manual_seed(rng.getrandbits(32))
    dtype = rng.choice((torch.float32, torch.float64))

    def rand(shape: tuple[int, ...], high: float) -> Tensor:
        return high * torch.rand(shape, generator=g, dtype=torch.float64)

    extent = rng.choice((0, 3, 20, 300, 3000))
    corner, sides = rand((count, 2), extent), rng.choice((rand((count, 2), 30), rand((count, 2), 8).exp2()))
    values = torch.cat([corner, corner + sides], dim=1)
    if rng.random() < 0.4:
        values = values.round()
    values = (values * rng.choice(SCALES)).to(dtype)
    for _ in range(rng.randrange(3)):  # copies, every other number one step of its precision away
        copied, copies = torch.randint(max(count, 1), (2, count // 2), generator=g)
        values[copies] = values[copied]
        if rng.random() < 0.5 and len(copies):
            moved = values[copies[::2]]
            values[copies[::2]] = torch.nextafter(moved, moved + (torch.rand(moved.shape, generator=g) - 0.5).to(moved))
    if rng.random() < 0.3:
        points = torch.rand(count, generator=g) < 0.2
        values[points, 2 + rng.randrange(2)] = values[points, rng.randrange(2)]
    if rng.random() < 0.2:
        values *= -1.0
    values = boxes.sorted_edges(values)
    scores = (rand((count,), 1) * rng.choice((0, 3, 1000))).ceil().to(dtype) / 1000
    return values, scores, torch.randint(rng.choice((1, 2, 5)), (count,), generator=g) - 1


def merging(rng: random.Random, values: Tensor, scores: Tensor, groups: Tensor) -> str:
    """Bit for bit the merges of the reference."""
    metric = rng.choice(boxes.MATCH_METRICS)
    options = {
        "match_metric": metric, "match_threshold": rng.choice(THRESHOLDS[metric]),
        "box_average": rng.choice(BOX_AVERAGES), "min_iou": rng.choice(IOUS),
    }  # fmt: skip
    actual = merge_boxes(values, scores, groups, **options)
    with backend("reference"):
        expected = merge_boxes(values, scores, groups, **options)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(actual, name), value), (name, options)
    return "merged"


def greedy_nms(rng: random.Random, values: Tensor, scores: Tensor, groups: Tensor) -> str:
    """A box is kept unless one kept before overlaps it by more than the threshold."""
    own, across = rng.choice(IOUS), rng.choice((*IOUS, 1.0, 1.0))
    kept = nms(values, scores, groups, iou_threshold=own, across_iou_threshold=across)
    order = scores.argsort(descending=True, stable=True)
    limits = torch.where(groups[:, None] == groups, *values.new_tensor([[own], [across]]))
    above = (boxes.iou(values, values) > limits).tolist()
    expected: list[int] = []
    for i in order.tolist():
        if not any(above[i][k] for k in expected):
            expected.append(i)
    assert kept.tolist() == expected, (own, across)
    return "suppressed"


def voting(rng: random.Random, values: Tensor, scores: Tensor, groups: Tensor) -> str:
    """The sums over every pair of boxes."""
    min_iou = rng.choice(IOUS[:-1])
    exact = values.detach().double()
    overlaps = boxes.iou(exact, exact)
    near = (overlaps >= min_iou) & (overlaps > 0) & (groups[:, None] == groups)
    weights = torch.where(near, scores.double() * (overlaps - min_iou) / (1 - min_iou), 0.0)
    sums = support(values, scores, groups, min_iou=min_iou)
    torch.testing.assert_close(sums, weights.sum(dim=1).to(sums), rtol=1e-5, atol=1e-9)
    chosen = torch.arange(len(values))[rng.randrange(3) :: rng.randrange(1, 5)]
    means, counts, max_score = averages(values, scores, groups, chosen=chosen, min_iou=min_iou)
    assert torch.equal(counts, near.sum(dim=1)[chosen])
    assert torch.equal(max_score, torch.where(near, scores, 0).amax(dim=1)[chosen] if len(near) else max_score)
    totals = weights.sum(dim=1, keepdim=True)
    expected = torch.where(totals > 0, weights @ exact / totals, exact)[chosen]
    largest = float(exact.abs().max()) if len(exact) else 0.0
    torch.testing.assert_close(means.double(), expected, rtol=1e-5, atol=1e-6 * largest)
    return "voted"


def broken(rng: random.Random, values: Tensor, scores: Tensor, groups: Tensor) -> str:
    """One number that is none of a box or a score."""
    at = rng.randrange(len(values))
    if rng.random() < 0.3:
        scores[at] = rng.choice((*INVALID[:3], -1e-9))
    else:
        values[at, rng.randrange(4)] = rng.choice(INVALID)
    function = rng.choice((merge_boxes, nms, support))
    try:
        function(values, scores, groups)
    except InputError as error:
        return refused(error, "boxes have")
    raise AssertionError("not refused")
