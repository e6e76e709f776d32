"""What eager PyTorch does in numba's place: the same results, and a line in the status report."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from test_merge_boxes import KINDS, THRESHOLDS, draw
from test_vote_boxes import crowd

from overfeat import fast, ops
from overfeat.ops import boxes as box_ops
from overfeat.ops.backends import eager_boxes, eager_resize, numba_modules, prepacked
from overfeat.ops.vote_boxes import averages, support

compiled = numba_modules.load


@pytest.mark.parametrize("kind", KINDS)
def test_merging_to_the_last_bit(kind):
    rules = itertools.product(box_ops.MATCH_METRICS, ops.BOX_AVERAGES, (torch.float32, torch.float64))
    for seed, (metric, average, dtype) in enumerate(rules):
        corners, scores, _ = draw(kind, 25, seed, dtype)
        rule = {"match_metric": metric, "box_average": average, "min_iou": 0.1}
        for threshold in THRESHOLDS[metric][:: 1 + seed % 2]:
            actual, expected = (
                module.merge_boxes(corners, scores, [10, 1, 14], match_threshold=threshold, **rule)
                for module in (eager_boxes, compiled("numba_merge"))
            )
            assert all(map(torch.equal, actual, expected)), (metric, average, dtype, threshold)


def test_groups_without_boxes():
    corners, scores, _ = draw(KINDS[0], 3, 0, torch.float32)
    rule = {"match_metric": "normalised", "box_average": "pairwise", "min_iou": 0.1, "match_threshold": 0.5}
    every = [m.merge_boxes(corners, scores, [0, 3, 0], **rule) for m in (eager_boxes, compiled("numba_merge"))]
    assert all(map(torch.equal, *every))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_voting(dtype, monkeypatch):
    monkeypatch.setattr(eager_boxes, "PAIRS", 1000)  # several chunks of a group
    for count, min_iou in ((150, 0.3), (150, 0.0), (1, 0.5), (0, 0.5)):
        boxes, scores, groups = crowd(count, count, dtype)
        chosen = torch.arange(count).flip(0)[::2]
        module = compiled("numba_vote")
        sums, expected = (m.support(boxes, scores, groups, min_iou) for m in (eager_boxes, module))
        torch.testing.assert_close(sums, expected)
        merged, expected = (m.averages(boxes, scores, groups, chosen, min_iou) for m in (eager_boxes, module))
        torch.testing.assert_close(merged[0], expected[0], rtol=1e-5, atol=1e-3)
        assert all(map(torch.equal, merged[1:], expected[1:]))


@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.8])
def test_components_of_large_images(min_iou):
    boxes, _, groups = (values.numpy() for values in crowd(200, 0, torch.float64))
    numbers = [m.components(boxes, groups, min_iou) for m in (eager_boxes, compiled("numba_components"))]
    count = len(np.unique(numbers[0]))
    assert 1 < count < 200 and sorted(np.unique(numbers[0])) == list(range(count))
    assert len(np.unique(numbers[1])) == len(np.unique(np.stack(numbers), axis=1).T) == count


def test_resizing_of_large_images_to_the_last_bit():
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    for scaled, start, length in ((13, 0.0, None), (90, 0.0, None), (20, 3.3, 31.5), (50, 0.0, None), (1, 0.0, None)):
        axis = eager_resize.Axis(40, scaled, start, length)
        weights = axis.weights(slice(scaled // 3, scaled), axis.precision())
        span = weights.span
        for name, part in (("weigh_rows", image[:, span]), ("weigh_columns", image[:, :, span])):
            actual, expected = (
                getattr(module, name)(part, span.start, weights) for module in (eager_resize, compiled("numba_resize"))
            )
            assert np.array_equal(actual, expected) and actual.dtype == np.uint8


def test_public_functions_use_it(monkeypatch):
    monkeypatch.setattr(numba_modules, "numba_problem", lambda: "numba is not installed")
    monkeypatch.setattr(box_ops, "COMPILED_NMS", 0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 0, 50, 10]])
    scores = torch.tensor([0.5, 0.25, 1.0])
    merged = ops.merge_boxes(boxes, scores)
    assert merged.boxes.tolist() == [[0.5, 0, 10.5, 10], [40, 0, 50, 10]] and merged.scores.tolist() == [0.75, 1.0]
    assert box_ops.nms(boxes, scores).tolist() == [2, 0]
    assert support(boxes, scores, min_iou=0.5).tolist() == pytest.approx([0.5 + 0.25 * 7 / 11, 0.25 + 0.5 * 7 / 11, 1])
    assert averages(boxes, scores, chosen=torch.tensor([0]), min_iou=0.5)[1].tolist() == [2]


def test_the_status_report_says_so_once(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(numba_modules, "numba_problem", lambda: "numba is not installed")
        report = fast.status()
    lines = str(report).splitlines()
    note = 'numba is not installed: eager PyTorch does its work on CPUs, slower; pip install "overfeat[boxes]"'
    assert lines[-1] == note and len(lines) == len(report) + 2
    assert str(report).count("numba") == 1 and "numba" not in str(fast.status())


def test_why_numba_cannot_be_used(monkeypatch):
    problem = numba_modules.numba_problem.__wrapped__
    assert problem() is None

    def fails(message, **options):
        def import_module(name):
            raise ImportError(message, **options)

        monkeypatch.setattr(importlib, "import_module", import_module)
        return problem()

    assert fails("No module named 'numba'", name="numba") == "numba is not installed"
    assert fails("Numba needs NumPy 2.4 or less") == "numba fails to import: Numba needs NumPy 2.4 or less"


def test_small_layers_run_in_eager_pytorch(monkeypatch):
    monkeypatch.setattr(numba_modules, "numba_problem", lambda: "numba is not installed")
    monkeypatch.setattr(prepacked, "_load_compiled", prepacked._load_compiled.__wrapped__)
    maps, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    for _ in range(3):
        actual = prepacked.convolution(maps, weight, None, 1, 0, True, 1)
    assert torch.equal(actual, torch.nn.functional.conv2d(maps, weight).relu())
