"""Overlaps, match scores and NMS against numbers computed by hand."""

import math

import pytest
import torch

from overfeat.errors import InputError
from overfeat.ops import boxes as box_ops

A = torch.tensor([[0.0, 0.0, 10.0, 10.0]], dtype=torch.float64)


def one(*corners):
    return torch.tensor([corners], dtype=torch.float64)


@pytest.mark.parametrize(
    ("other", "shared"),
    [((0, 0, 10, 10), 100), ((5, 5, 15, 15), 25), ((10, 0, 20, 10), 0), ((20, 20, 30, 30), 0), ((2, 3, 4, 8), 10)],
)
def test_overlaps(other, shared):
    other = one(*other)
    assert box_ops.intersections(A, other).item() == shared
    area = box_ops.areas(other).item()
    assert box_ops.iou(A, other).item() == pytest.approx(shared / (100 + area - shared))


def test_every_box_with_every_box():
    many = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 50, 50]])
    assert box_ops.iou(many, many[:2]).tolist() == [[1, pytest.approx(1 / 3)], [pytest.approx(1 / 3), 1], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_overlaps_of_boxes_of_any_dtype(dtype):
    """Areas of these boxes are beyond float16 (65,504) and uint8; those of the large ones beyond int32."""
    a, b = torch.tensor([[0, 0, 240, 240]]), torch.tensor([[0, 0, 240, 120], [240, 240, 250, 250], [0, 120, 240, 240]])
    result = box_ops.iou(a.to(dtype), b.to(dtype))
    assert result.tolist() == [[0.5, 0, 0.5]]
    assert result.dtype == (torch.float32 if dtype.is_floating_point else torch.float64)
    assert box_ops.iou(a.to(dtype), b.double()).dtype == torch.float64
    if dtype in (torch.int32, torch.int64):
        assert box_ops.iou(a * 10**6, b * 10**6).tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("function", [box_ops.iou, box_ops.match_score])
def test_overlaps_of_other_things_are_refused(function):
    for wrong in ([[0, 0, 1, 1]], A.numpy(), None, A > 0, A.to(torch.complex64)):
        with pytest.raises(TypeError, match="boxes must be tensors"):
            function(A, wrong)
    for wrong in (A[0], A[:, :3]):
        with pytest.raises(ValueError, match=r"boxes must be \[n, 4\]"):
            function(wrong, A)


def test_boxes_that_require_gradients_are_kept_detached():
    boxes = crowd(600, 0)[0].requires_grad_()
    scores = torch.rand(600, requires_grad=True)
    for count in (600, 20):
        kept = box_ops.nms(boxes[:count], scores[:count])
        assert torch.equal(kept, box_ops.nms(boxes[:count].detach(), scores[:count].detach()))


def test_boxes_without_area():
    point = one(3, 3, 3, 3)
    assert box_ops.iou(point, point).item() == 1
    assert box_ops.iou(point, one(3, 3, 3, 4)).item() == 0
    assert box_ops.match_score(point, point).item() == 0
    assert box_ops.match_score(point, one(4, 4, 4, 4)).item() == math.inf
    assert box_ops.match_score(one(0, 0, 0, 4), one(3, 0, 3, 4)).item() == 3 / 4 + 1


def test_the_normalised_score():
    assert box_ops.match_score(A, A).item() == 0
    # Centres 5 apart, diagonals of 10 root 2, IoU 1/3.
    assert box_ops.match_score(A, one(5, 0, 15, 10)).item() == pytest.approx(5 / (10 * math.sqrt(2)) + 2 / 3)
    # Diagonals of 10 root 2 and 20 root 2, one inside the other.
    assert box_ops.match_score(A, one(0, 0, 20, 20)).item() == pytest.approx(50**0.5 / (15 * 2**0.5) + 0.75)


def test_the_papers_literal_score_prefers_distant_boxes():
    large = one(0, 0, 100, 100)
    assert box_ops.match_score(large, one(2, 0, 102, 100), match_metric="sum").item() == 2 + 98 * 100
    assert box_ops.match_score(large, one(160, 0, 260, 100), match_metric="sum").item() == 160


def test_the_gated_distance():
    other = one(5, 0, 15, 10)  # IoU 1/3
    assert box_ops.match_score(A, other, match_metric="centres", min_iou=0.3).item() == pytest.approx(
        5 / (10 * math.sqrt(2))
    )
    assert box_ops.match_score(A, other, match_metric="centres", min_iou=0.5).item() == math.inf


def test_unknown_score():
    with pytest.raises(ValueError, match="normalised, sum, centres, not 'iou'"):
        box_ops.match_score(A, A, match_metric="iou")


def test_suppression():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 10], [2, 0, 12, 10]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.8, 0.5])
    assert box_ops.nms(boxes, scores).tolist() == [1, 2]
    assert box_ops.nms(boxes, scores, iou_threshold=0.82).tolist() == [
        1,
        3,
        2,
        4,
    ]  # IoU 9/11; the first equals the fourth
    groups = torch.tensor([0, 0, 0, 1, 1])
    assert box_ops.nms(boxes, scores, groups).tolist() == [1, 3, 2]
    assert box_ops.nms(boxes[:0], scores[:0]).tolist() == []


def test_equal_scores_leave_the_first():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    assert box_ops.nms(boxes, torch.ones(3)).tolist() == [0]


# In a window's frame

WINDOW = one(10, 20, 30, 60)


@pytest.mark.parametrize(
    ("form", "values"),
    [("xyxy", [0.25, 0.25, 0.75, 0.75]), ("cxcywh", [0.5, 0.5, math.log(0.5), math.log(0.5)])],
)
def test_boxes_in_a_windows_frame(form, values):
    box, values = one(15, 30, 25, 50), one(*values)
    torch.testing.assert_close(box_ops.encode(box, WINDOW, form), values)
    torch.testing.assert_close(box_ops.decode(values, WINDOW, form), box)
    torch.testing.assert_close(box_ops.BOX_CODERS[form].double()[None], values)
    away = one(-7, 3, 99, 41)
    torch.testing.assert_close(box_ops.decode(box_ops.encode(away, WINDOW, form), WINDOW, form), away)
    mirror = torch.tensor([40 - away[0, 2], 3, 40 - away[0, 0], 41])[None]  # about the window's middle, x = 20
    torch.testing.assert_close(
        box_ops.decode(box_ops.mirrored(box_ops.encode(away, WINDOW, form), form), WINDOW, form), mirror
    )


def test_decoded_boxes_are_boxes():
    assert box_ops.decode(one(0.75, 0.25, 0.25, 0.5), WINDOW).tolist() == [[15, 30, 25, 40]]
    assert box_ops.decode(one(0, 0, 1e9, 1e9), WINDOW, "cxcywh").isfinite().all()


def test_paired_overlaps():
    a, c = torch.cat([A, A, A]), torch.cat([A, one(5, 0, 15, 10), one(20, 0, 30, 10)])
    assert box_ops.paired_iou(a, c).tolist() == pytest.approx([1, 1 / 3, 0])
    assert box_ops.paired_iou(a, c, generalised=True).tolist() == pytest.approx([1, 1 / 3, -1 / 3])
    far = one(20, 0, 30, 10).requires_grad_()
    assert torch.autograd.grad(box_ops.paired_iou(A, far, generalised=True).sum(), far)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scores": torch.ones(2)}, ValueError),
        ({"boxes": torch.zeros(3, 3)}, ValueError),
        ({"boxes": torch.zeros(3, 4).numpy()}, TypeError),
        ({"scores": [1.0, 1, 1]}, TypeError),
        ({"boxes": torch.zeros(3, 4).half()}, ValueError),
        ({"groups": torch.zeros(2, dtype=torch.int64)}, ValueError),
        ({"boxes": torch.full((3, 4), torch.nan)}, InputError),
        ({"boxes": torch.tensor([[5.0, 0, 1, 1]]).expand(3, 4)}, InputError),
        ({"scores": torch.tensor([1.0, torch.nan, 1])}, InputError),
        ({"iou_threshold": -1}, InputError),
        ({"iou_threshold": math.nan}, InputError),
    ],
)
def test_nms_refuses_what_makes_no_sense(change, error):
    good = {"boxes": torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4), "scores": torch.ones(3)}
    assert len(box_ops.nms(**good)) == 1
    with pytest.raises(error):
        box_ops.nms(**good | change)


def test_match_scores_are_of_boxes_of_one_type():
    some = torch.tensor([[0.0, 0, 10, 10]])
    for wrong in (some.half(), some.double(), some[0], some[:, :3]):
        with pytest.raises(ValueError):
            box_ops.match_score(some, wrong)


def crowd(count, seed, dtype=torch.float32):
    """Boxes of many sizes, some of them equal, without area or far apart, with equal scores among them."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 100
    sides = 2 ** (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 8 - 2)
    boxes = torch.cat([corner, corner + sides], dim=1)
    boxes[::7] = boxes[::7].round()
    boxes[1::9] = boxes[::9][: len(boxes[1::9])]
    boxes[2::50, 2:] = boxes[2::50, :2]
    boxes[3::50] = boxes[2::50][: len(boxes[3::50])]
    boxes[4::60] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
    boxes[5::60] *= 1e6
    scores = (torch.rand(count, generator=generator) * 50).round() / 50
    return boxes.to(dtype), scores.to(dtype), torch.randint(4, (count,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("own", "other"), [(0.3, 1.0), (0.0, 1.0), (0.5, 0.7), (1.0, 0.4), (1 / 3, 0.0), (0.95, 0.99), (1.0, 1.0)]
)
def test_compiled_nms_keeps_the_same_boxes(monkeypatch, dtype, own, other):
    """As the loop over boxes does; and of both, no kept box overlaps another by more than the threshold."""
    for seed, count in ((0, 900), (1, 1), (2, 0), (3, 120)):
        boxes, scores, groups = crowd(count, seed, dtype)
        kept = {}
        for path, limit in (("loop", 10**9), ("compiled", -1)):
            monkeypatch.setattr(box_ops, "COMPILED_NMS", limit)
            kept[path] = box_ops.nms(boxes, scores, groups, iou_threshold=own, across_iou_threshold=other)
        assert torch.equal(kept["loop"], kept["compiled"]) and kept["loop"].dtype == torch.int64
        overlaps = box_ops.iou(boxes[kept["loop"]], boxes[kept["loop"]]).fill_diagonal_(0)
        same = groups[kept["loop"], None] == groups[kept["loop"]]
        assert (overlaps <= torch.where(same, torch.tensor(own, dtype=dtype), torch.tensor(other, dtype=dtype))).all()
        assert len(kept["loop"]) < count or count <= 1 or min(own, other) == 1


def test_suppression_across_groups():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [2, 0, 12, 10]])
    scores, groups = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 1, 2])
    assert box_ops.nms(boxes, scores, groups, iou_threshold=0.3).tolist() == [0, 1, 3]
    assert box_ops.nms(boxes, scores, groups, iou_threshold=1.0, across_iou_threshold=0.5).tolist() == [0, 2]
    # The second box is removed by the first, so it removes neither the third nor the fourth.
    assert box_ops.nms(boxes, scores, groups, iou_threshold=1.0, across_iou_threshold=0.7).tolist() == [0, 2, 3]
    with pytest.raises(InputError, match="across_iou_threshold must be between 0 and 1, not 2"):
        box_ops.nms(boxes, scores, across_iou_threshold=2)
