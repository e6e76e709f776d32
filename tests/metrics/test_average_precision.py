"""Average precision: cases by hand, and agreement with pycocotools."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_scenes import random_scenes

from overfeat.errors import InputError
from overfeat.metrics.average_precision import ALL_AREAS, PROTOCOLS, Boxes, curves, mean_average_precision
from overfeat.metrics.coco import coco
from overfeat.metrics.operating_points import SIZES


def boxes(*corners, labels=None, scores=None, difficult=None):
    """Boxes of one image; labels are 0 unless given."""
    count = len(corners)
    return Boxes(
        torch.tensor(corners, dtype=torch.float32).view(count, 4),
        torch.tensor(labels if labels is not None else [0] * count, dtype=torch.int64),
        None if scores is None else torch.tensor(scores, dtype=torch.float32),
        None if difficult is None else torch.tensor(difficult),
    )


A, B = (0, 0, 100, 100), (200, 0, 300, 100)
NEAR_A = (0, 0, 100, 80)  # IoU 0.8 with A
FAR = (500, 500, 600, 600)


def only(detections, truth, protocol, **more):
    (curve,) = curves([detections], [truth], 1, protocol, **more)
    return curve


@pytest.mark.parametrize(
    ("protocol", "average"),
    [
        # Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
        ("ilsvrc", 0.5 * 1 + 0.5 * 2 / 3),
        ("voc", 0.5 * 1 + 0.5 * 2 / 3),
        ("voc2007", (6 * 1 + 5 * 2 / 3) / 11),
        ("coco50", (51 * 1 + 50 * 2 / 3) / 101),
    ],
)
def test_averages_by_hand(protocol, average):
    curve = only(boxes(B, FAR, NEAR_A, scores=[0.2, 0.5, 0.9]), boxes(A, B), protocol)
    assert curve.right.tolist() == [True, False, True]
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.average == pytest.approx(average)


def test_second_matches():
    """VOC matches the object with the largest IoU; ILSVRC and COCO the best unmatched one."""
    pair = boxes((0, 0, 100, 100), (0, 20, 100, 120))
    detections = boxes((0, 0, 100, 100), (0, 5, 100, 105), scores=[0.9, 0.8])
    assert only(detections, pair, "ilsvrc").right.tolist() == [True, True]
    assert only(detections, pair, "coco50").right.tolist() == [True, True]
    assert only(detections, pair, "voc").right.tolist() == [True, False]


def test_difficult_objects_are_ignored():
    truth = boxes(A, B, difficult=[True, False])
    detections = boxes(NEAR_A, NEAR_A, B, scores=[0.9, 0.8, 0.7])
    for protocol in ("voc", "voc2007"):
        curve = only(detections, truth, protocol)
        assert (curve.right.tolist(), curve.objects, curve.average) == ([True], 1, 1.0)
    assert only(detections, truth, "ilsvrc").right.tolist() == [True, False, True]


def test_small_objects_need_less_overlap():
    """ILSVRC's threshold for 10 x 10 pixels is 100 / 400 = 0.25."""
    small = boxes((0, 0, 10, 10))
    detections = boxes((0, 0, 10, 26), scores=[1.0])  # IoU 0.385
    assert only(detections, small, "ilsvrc").average == 1.0
    assert only(detections, small, "voc").average == 0.0
    assert only(boxes((0, 0, 10, 41), scores=[1.0]), small, "ilsvrc").average == 0.0  # 0.244


def test_pairs_of_the_ignore_list_are_ignored():
    detections = [boxes(A, FAR, scores=[0.5, 0.9], labels=[0, 1]), boxes(A, scores=[0.4])]
    truths = [boxes(B), boxes(A)]
    plain = curves(detections, truths, 2, "ilsvrc")
    assert (plain[0].objects, plain[0].right.tolist()) == (2, [False, True])
    listed = curves(detections, truths, 2, "ilsvrc", ignore_list=[(0, 0)])
    assert (listed[0].objects, listed[0].right.tolist(), listed[0].average) == (1, [True], 1.0)
    assert listed[1].right.tolist() == [False]


def test_no_detections_and_no_objects():
    empty = boxes(scores=[])
    for protocol in PROTOCOLS:
        assert only(empty, boxes(A), protocol).average == 0.0
        curve = only(boxes(A, scores=[0.5]), boxes(), protocol)
        assert curve.objects == 0 and math.isnan(curve.average) and curve.right.tolist() == [False]
    both = curves([empty, boxes(A, scores=[1.0])], [boxes(B, labels=[1]), boxes(A)], 3, "voc")
    assert mean_average_precision(both) == 0.5  # one class perfect, one missed, one without objects
    assert math.isnan(mean_average_precision(curves([empty], [boxes()], 1)))
    with pytest.raises(InputError, match="protocol must be one of"):
        curves([empty], [boxes()], 1, "imagenet")


def test_equal_scores_keep_their_order():
    detections = [boxes(FAR, scores=[0.5]), boxes(A, scores=[0.5])]
    (curve,) = curves(detections, [boxes(), boxes(A)], 1, "voc")
    assert curve.right.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_pycocotools(seed):
    """COCO's AP at an IoU of 0.5, on crowded images with duplicates, ties and misses, class by class."""
    detections, truths = random_scenes(seed)
    ours = [curve.average for curve in curves(detections, truths, 3, "coco50")]
    assert ours == pytest.approx(of_pycocotools(detections, truths, 3)[0], abs=1e-6)
    assert 0.2 < sum(ours) / 3 < 0.95


@pytest.mark.parametrize("min_iou", [0.4, 0.5, 0.75])
@pytest.mark.parametrize("size", [None, *SIZES])
def test_sizes_and_other_ious_agree_with_pycocotools(min_iou, size):
    """COCO's AP and recall of size groups, with areas of exactly 32 x 32 and 96 x 96 pixels among them."""
    detections, truths = random_scenes(7, images=20, zoom=4)
    exact = [Boxes(torch.tensor([[0.0, 0, s, s]]), torch.tensor([0]), torch.tensor([0.99])) for s in (32, 96)]
    detections, truths = [*detections, *exact], [*truths, *(Boxes(b.boxes, b.labels) for b in exact)]
    areas = SIZES[size] if size else ALL_AREAS
    ours = curves(detections, truths, 3, "coco50", min_iou=min_iou, area=areas)
    averages, recalls = of_pycocotools(detections, truths, 3, min_iou, (None, *SIZES).index(size))
    expected = [value if value >= 0 else math.nan for value in averages]
    assert [curve.average for curve in ours] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    reached = [float(curve.recall[-1]) for curve in ours if curve.objects]
    assert reached == pytest.approx([recall for recall in recalls if recall >= 0])
    assert len(reached) > 0


def of_pycocotools(detections, truths, classes, min_iou=0.5, size=0):
    """Average precisions and recalls of the classes."""

    def entries(images):
        for number, image in enumerate(images):
            for i, ((x1, y1, x2, y2), label) in enumerate(
                zip(image.boxes.tolist(), image.labels.tolist(), strict=True)
            ):
                entry = {"image_id": number, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                yield entry | ({} if image.scores is None else {"score": float(image.scores[i])})

    annotations = [
        entry | {"id": i + 1, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
        for i, entry in enumerate(entries(truths))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": n} for n in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": k} for k in range(classes)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(list(entries(detections))), "bbox")
        evaluation.params.iouThrs = np.array([min_iou])
        evaluation.evaluate()
        evaluation.accumulate()
    figures = evaluation.eval
    return figures["precision"][0, :, :, size, -1].mean(axis=0).tolist(), figures["recall"][0, :, size, -1].tolist()


def test_all_of_coco_s_figures():
    """Perfect boxes, boxes of an IoU of 0.62, none; difficult objects are ignored."""
    truths = [boxes([0, 0, 40, 40]), boxes([5, 5, 45, 45], labels=[1])]
    perfect = [boxes([0, 0, 40, 40], scores=[0.9]), boxes([5, 5, 45, 45], labels=[1], scores=[1.0])]
    figures, of_classes = coco(perfect, truths, 3)
    assert [figures[name] for name in ("AP", "AP50", "AP medium")] == pytest.approx([1, 1, 1])
    assert math.isnan(figures["AP large"])
    assert of_classes[:2] == pytest.approx([1, 1]) and math.isnan(of_classes[2])
    shifted = [boxes([0, 0, 40, 25], scores=[0.9]), boxes([5, 5, 45, 30], labels=[1], scores=[1.0])]
    figures, of_classes = coco(shifted, truths, 3)
    assert (
        figures["AP50"] == pytest.approx(1) and figures["AP75"] == 0 and figures["AP"] == pytest.approx(0.3)
    )  # 0.5, 0.55, 0.6
    empty, _ = coco([boxes(scores=[]), boxes(scores=[])], truths, 3)
    assert empty["AP"] == 0
    hard = [Boxes(truths[0].boxes, truths[0].labels, difficult=torch.tensor([True])), truths[1]]
    figures, of_classes = coco([boxes(scores=[]), perfect[1]], hard, 2)
    assert figures["AP"] == pytest.approx(1) and math.isnan(of_classes[0])
