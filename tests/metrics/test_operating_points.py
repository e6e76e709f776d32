"""Precision, recall, F1, confusions and mistakes: cases by hand, and what must hold of random scenes."""

import pytest
import torch
from random_scenes import random_scenes

from overfeat.metrics.average_precision import Boxes, curves
from overfeat.metrics.confusion import confusion_matrix, confusion_table
from overfeat.metrics.mistakes import FALSE_POSITIVE, MISS, REASONS, count_reasons, list_mistakes, mistake_table
from overfeat.metrics.operating_points import operating_points, operating_table

A, B, C, FAR = (0, 0, 100, 100), (200, 0, 300, 100), (400, 0, 420, 20), (500, 500, 600, 600)
HALF = {"min_iou": 0.5, "min_score": 0.5}


def boxes(*entries, difficult=None):
    """Boxes of one image from (box, label) or (box, label, score)."""
    scored = [entry for entry in entries if len(entry) == 3]
    return Boxes(
        torch.tensor([entry[0] for entry in entries], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([entry[1] for entry in entries], dtype=torch.int64),
        torch.tensor([score for _, _, score in scored]) if scored or not entries else None,
        None if difficult is None else torch.tensor(difficult),
    )


def moved(box, by):
    return (box[0], box[1] + by, box[2], box[3] + by)


def test_points_by_hand():
    """Of class 0 one of two objects is detected above 0.5 beside a false positive; class 1 has no object."""
    truth = [boxes((A, 0), (B, 0), (C, 0))]
    detected = [boxes((A, 0, 0.9), (FAR, 0, 0.8), (B, 0, 0.4), (FAR, 1, 0.7))]
    points = operating_points(detected, truth, ["a", "b", "c"], **HALF)
    assert points["classes"].keys() == {"a", "b"}
    a = points["classes"]["a"]
    assert (a["objects"], a["detections"]) == (3, 2)
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert (a["best_f1"], a["best_f1_score"]) == pytest.approx((2 / 3, 0.4))  # 2 of 3 detected, 2 of 3 right
    b = points["classes"]["b"]
    assert (b["objects"], b["precision"], b["recall"], b["ap"], b["best_f1_score"]) == (0, 0.0, None, None, None)
    everything = points["all"]
    assert (everything["detections"], everything["precision"]) == (3, pytest.approx(1 / 3))
    assert everything["best_f1"] == pytest.approx(4 / 7) and everything["ap"] == a["ap"]
    sizes = points["sizes"]
    assert [sizes[name]["objects"] for name in ("small", "medium", "large")] == [1, 0, 2]
    assert sizes["small"]["precision"] is None and sizes["small"]["recall"] == 0.0
    assert sizes["large"]["recall"] == 0.5 and sizes["medium"]["f1"] is None
    table = operating_table(points, 0.5, 0.5).splitlines()
    assert table[2].split() == ["a", "3", "55.56", "55.45", "50.00", "33.33", "40.00", "66.67", "0.400"]
    assert len(table) == 2 + 2 + 1 + 3 and len({len(line) for line in table[1:3]}) == 1


def test_a_score_threshold_for_each_class():
    """Figures of a class are those of its own, figures of all those of all of them."""
    detections, truths = random_scenes(3, images=4, difficult=True)
    names, lowest = ["a", "b", "c"], (0.2, 0.5, 0.8)
    points = operating_points(detections, truths, names, min_iou=0.5, min_score=lowest)
    alone = [operating_points(detections, truths, names, min_iou=0.5, min_score=score) for score in lowest]
    for one, name in zip(alone, names, strict=True):
        assert points["classes"][name] == one["classes"][name]
    assert points["all"]["detections"] == sum(point["detections"] for point in points["classes"].values())
    assert points["all"]["best_f1"] == alone[0]["all"]["best_f1"]
    matrix = torch.tensor(confusion_matrix(detections, truths, 3, min_iou=0.5, min_score=lowest))
    assert matrix[:, :3].sum(0).tolist() == [points["classes"][name]["detections"] for name in names]
    assert int(matrix.diag().sum()) == round(points["all"]["precision"] * points["all"]["detections"])
    mistakes = list_mistakes(detections, truths, min_iou=0.5, min_score=lowest)
    positives = sum(mistake.kind == FALSE_POSITIVE for mistake in mistakes)
    assert positives == points["all"]["detections"] - int(matrix.diag().sum())
    table = operating_table(points, 0.5, lowest).splitlines()
    assert "the min score of their class or more" in table[0] and "min score" in table[1]
    assert [line.split()[4] for line in table[2:5]] == ["0.2", "0.5", "0.8"]


def test_equal_scores_are_selected_together():
    truth, detected = [boxes((A, 0), (B, 0))], [boxes((A, 0, 0.5), (FAR, 0, 0.5), (FAR, 0, 0.5))]
    point = operating_points(detected, truth, ["a"], **HALF)["all"]
    assert point["best_f1"] == point["f1"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("seed", range(2))
def test_the_best_f1_is_that_of_its_score_and_no_other_score_is_better(seed):
    detections, truths = random_scenes(seed, images=5, zoom=3, difficult=True)
    names, min_iou = ["a", "b", "c"], 0.45
    points = operating_points(detections, truths, names, min_iou=min_iou, min_score=0.0)
    thresholds = torch.cat([image.scores for image in detections]).unique().tolist()
    at = [operating_points(detections, truths, names, min_iou=min_iou, min_score=s) for s in thresholds]
    for group, name in [("classes", "b"), ("sizes", "large"), ("sizes", "medium")]:
        best = max(points_at[group][name]["f1"] for points_at in at)
        assert points[group][name]["best_f1"] == pytest.approx(best)
    best = points["all"]["best_f1_score"]
    again = operating_points(detections, truths, names, min_iou=min_iou, min_score=best)["all"]
    assert again["f1"] == pytest.approx(points["all"]["best_f1"])
    assert again["f1"] == max(points_at["all"]["f1"] for points_at in at)
    for k, name in enumerate(names):
        for protocol, key in (("coco50", "ap"), ("voc", "voc")):
            expected = curves(detections, truths, 3, protocol, min_iou=min_iou)[k].average
            assert points["classes"][name][key] == pytest.approx(expected)


def test_confusions_by_hand():
    truth = [boxes((A, 0), (B, 1), (C, 0), (FAR, 1), difficult=[False, False, False, True])]
    detected = [boxes((moved(A, 10), 0, 0.6), (A, 1, 0.9), (B, 2, 0.7), (moved(B, 5), 0, 0.9), (FAR, 1, 0.8))]
    matrix = confusion_matrix(detected, truth, 3, **HALF)
    # A is right, whatever overlaps it more; B goes to the class that overlaps it most; C is missed; FAR is difficult.
    assert matrix == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert confusion_matrix(detected, truth, 3, min_iou=0.5, min_score=0.75)[0] == [0, 1, 0, 1]
    table = confusion_table(matrix, ["ant", "bee", "caterpillar-like animal"]).splitlines()
    assert table[1].split()[:2] == ["ant", "bee"] and table[2].split() == ["ant", "1", "0", "0", "1"]
    assert table[-1].split() == ["background", "1", "1", "0"]


def test_of_many_classes_confusions_are_listed():
    counts = [[0] * 41 for _ in range(41)]
    for k in range(30):
        counts[k][k + 1] = k + 1
    counts[3][40] = counts[40][3] = 1000  # background: a miss, a false positive
    lines = confusion_table(counts, [f"c{k}" for k in range(40)]).splitlines()
    assert "20 of 30 pairs" in lines[0] and lines[1].split() == ["30", "c29", "detected", "as", "c30"]
    assert len(lines) == 21


@pytest.mark.parametrize("seed", range(3))
def test_all_figures_agree(seed):
    """Sums of the confusion matrix and numbers of mistakes are those of precision and recall."""
    detections, truths = random_scenes(seed, difficult=True)
    given = {"min_iou": 0.5, "min_score": 0.4}
    points = operating_points(detections, truths, ["a", "b", "c"], **given)
    matrix = torch.tensor(confusion_matrix(detections, truths, 3, **given))
    for k, name in enumerate("abc"):
        point = points["classes"][name]
        assert (int(matrix[:, k].sum()), int(matrix[k].sum())) == (point["detections"], point["objects"])
        assert int(matrix[k, k]) / point["detections"] == pytest.approx(point["precision"])
    true = int(matrix.diag().sum())
    mistakes = list_mistakes(detections, truths, **given)
    counts = {kind: sum(mistake.kind == kind for mistake in mistakes) for kind in REASONS}
    assert counts == {MISS: points["all"]["objects"] - true, FALSE_POSITIVE: points["all"]["detections"] - true}
    assert int(matrix[:3, :3].sum()) - true <= sum(m.kind == MISS and m.reason == "wrong class" for m in mistakes)


def test_reasons_by_hand():
    """An image of each reason; the mistakes of each kind come the worst first."""
    cases = {
        (FALSE_POSITIVE, "duplicate"): ([(A, 0)], [(A, 0, 0.9), (moved(A, 5), 0, 0.8)]),
        (FALSE_POSITIVE, "second class"): ([(A, 0)], [(A, 0, 0.9), (A, 1, 0.7)]),
        (FALSE_POSITIVE, "background"): ([(A, 0)], [(A, 0, 0.9), (FAR, 0, 0.95)]),
        (MISS, "low score"): ([(A, 0)], [(A, 0, 0.25)]),
        (MISS, "not detected"): ([(C, 0)], [(C, 1, 0.1)]),
        "wrong class": ([(A, 0)], [(A, 1, 0.85), (A, 0, 0.125)]),
        "poor box": ([(A, 0)], [(moved(A, 60), 0, 0.65)]),
    }
    truths = [boxes(*truth) for truth, _ in cases.values()]
    detections = [boxes(*detected) for _, detected in cases.values()]
    mistakes = list_mistakes(detections, truths, **HALF)
    expected = [
        *((5, MISS, "wrong class"), (3, MISS, "low score"), (6, MISS, "poor box"), (4, MISS, "not detected")),
        *((2, FALSE_POSITIVE, "background"), (5, FALSE_POSITIVE, "wrong class"), (0, FALSE_POSITIVE, "duplicate")),
        *((1, FALSE_POSITIVE, "second class"), (6, FALSE_POSITIVE, "poor box")),
    ]
    assert {(m.image, m.kind, m.reason) for m in mistakes} == set(expected)
    positives = [m.score for m in mistakes if m.kind == FALSE_POSITIVE]
    assert positives == pytest.approx([0.95, 0.85, 0.8, 0.7, 0.65])
    # The large object without any detection, the small one, then by the scores below the threshold.
    assert [(m.image, m.score) for m in mistakes if m.kind == MISS] == [(6, 0.0), (4, 0.0), (5, 0.125), (3, 0.25)]
    (wrong,) = [m for m in mistakes if m.image == 5 and m.kind == FALSE_POSITIVE]
    assert (wrong.label, wrong.other, wrong.iou, wrong.box) == (1, 0, 1.0, A)
    counts = count_reasons(mistakes)
    assert sum(counts[MISS].values()) == 4 and set(counts[FALSE_POSITIVE].values()) == {1}
    assert "misses: 4 (1 wrong class, 1 poor box" in mistake_table({"iou": 0.5, "counts": counts})


def test_nothing_detected_and_nothing_there():
    """No detection, no object, neither; a class that nothing has."""
    empty = Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))
    nothing = Boxes(torch.empty(0, 4, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    detections, truths = [empty, boxes((A, 0, 0.9)), empty], [boxes((A, 0)), nothing, nothing]
    points = operating_points(detections, truths, ["a", "b"], **HALF)
    point = points["all"]
    assert point["precision"] == point["recall"] == point["f1"] == point["best_f1"] == 0.0
    assert point["best_f1_score"] is None and points["classes"].keys() == {"a"}
    assert confusion_matrix(detections, truths, 2, **HALF) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert [m.reason for m in list_mistakes(detections, truths, **HALF)] == ["not detected", "background"]
    points = operating_points([empty], [boxes((A, 0))], ["a"], **HALF)
    assert points["all"]["precision"] is None and points["all"]["best_f1"] == 0.0
    assert "100" not in operating_table(points, 0.5, 0.5)
