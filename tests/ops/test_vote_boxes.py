"""Box voting against every pair of boxes, one after the other."""

import pytest
import torch

from overfeat.errors import InputError
from overfeat.ops.boxes import iou
from overfeat.ops.vote_boxes import averages, support


def crowd(count, seed, dtype):
    """Boxes of many sizes, near each other, some equal, without area, or huge."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60 - 20
    boxes = torch.cat([corner, corner + 2 ** (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6)], 1)
    boxes[1::9] = boxes[::9][: len(boxes[1::9])]
    boxes[2::50, 2:] = boxes[2::50, :2]
    boxes[3::50] = boxes[2::50][: len(boxes[3::50])]
    boxes[4::60] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    scores[::11] = 0
    return boxes.to(dtype), scores.to(dtype), torch.randint(3, (count,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.6, 0.9])
def test_all_pairs(min_iou, dtype):
    for count, seed in ((400, 0), (1, 1), (0, 2), (37, 3)):
        boxes, scores, groups = crowd(count, seed, dtype)
        overlaps, exact = iou(boxes.double(), boxes.double()), scores.double()
        near = (groups[:, None] == groups) & (overlaps >= min_iou) & (overlaps > 0)
        expected = (((overlaps - min_iou) / (1 - min_iou)).clamp(min=0) * near * exact).sum(dim=1)
        sums = support(boxes, scores, groups, min_iou=min_iou)
        torch.testing.assert_close(sums, expected.to(dtype), rtol=1e-5, atol=1e-5)
        chosen = torch.arange(count).flip(0)[::2]
        means, counts, max_score = averages(boxes, scores, groups, chosen=chosen, min_iou=min_iou)
        assert counts.tolist() == near.sum(dim=1)[chosen].tolist() and means.dtype == dtype
        strong = torch.where(near, exact, 0)[chosen]
        weights = strong * ((overlaps - min_iou) / (1 - min_iou))[chosen]
        expected = (weights @ boxes.double()) / weights.sum(dim=1, keepdim=True)
        expected = torch.where(weights.sum(dim=1, keepdim=True) > 0, expected, boxes[chosen].double())
        torch.testing.assert_close(means, expected.to(dtype), rtol=1e-5, atol=1e-3)
        assert torch.equal(max_score, strong.amax(dim=1).to(dtype) if count else max_score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_equal_boxes(dtype):
    """Each is counted once for all: in a time that is linear, and with equal sums."""
    boxes = torch.tensor([[1.0, 2, 11, 12], [1, 2, 11, 12], [2, 2, 12, 12]], dtype=dtype)[torch.arange(90_000) % 3]
    groups, scores = torch.arange(90_000) % 2, torch.full((90_000,), 0.5, dtype=dtype)
    sums = support(boxes, scores, groups, min_iou=0.4)
    near = 15_000 * (9 / 11 - 0.4) / 0.6  # of the third box for the first, in sums of 45,000 boxes a group
    assert sums.unique().tolist() == pytest.approx([0.5 * (15_000 + 2 * near), 0.5 * (30_000 + near)])
    means, counts, max_score = averages(boxes, scores, groups, chosen=torch.tensor([0, 2]), min_iou=0.4)
    assert (counts.tolist(), max_score.tolist()) == ([45_000] * 2, [0.5] * 2)
    assert means[:, 0].tolist() == pytest.approx([1 + near / (30_000 + near), 2 - 2 * near / (15_000 + 2 * near)])


def test_by_hand():
    """IoU of the first two boxes 9 / 11; the third is of another group."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]])
    scores, groups = torch.tensor([0.8, 0.4, 0.9]), torch.tensor([0, 0, 1])
    weight = (9 / 11 - 0.5) / 0.5
    assert support(boxes, scores, groups, min_iou=0.5).tolist() == pytest.approx(
        [0.8 + 0.4 * weight, 0.4 + 0.8 * weight, 0.9]
    )
    means, counts, _ = averages(boxes, scores, groups, chosen=torch.tensor([1, 2]), min_iou=0.5)
    assert counts.tolist() == [2, 1]
    share = 0.4 / (0.4 + 0.8 * weight)
    assert means[0].tolist() == pytest.approx([share, 0, 10 + share, 10]) and means[1].tolist() == [0, 0, 10, 10]
    assert averages(boxes, scores, chosen=torch.tensor([0]), min_iou=0.9)[1].tolist() == [2]
    with pytest.raises(InputError, match="min_iou must be less than 1"):
        support(boxes, scores, min_iou=1)
    with pytest.raises(InputError, match="x2 < x1"):
        support(-boxes, scores)
    with pytest.raises(InputError, match="chosen must be indices of the 3 boxes"):
        averages(boxes, scores, chosen=torch.tensor([3]))
