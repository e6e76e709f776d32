"""Class scores of flat logits."""

import pytest
import torch
from kernel_checks import made

from bench.tolerance import assert_matches
from overfeat.kernels import class_scores
from overfeat.ops import reference


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_class_scores(dtype, classes):
    counts = [1, 40, 16, 3]
    scores = made((60, classes + 3), dtype)[:, :classes] * 5
    actual = class_scores.forward(scores, counts)
    assert actual.dtype == torch.float32
    assert_matches(actual, reference.class_scores(scores, counts), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_class_scores_of_non_finite_logits(value):
    scores = made((20, 7))
    scores[3, 2] = value
    scores[18] = value
    assert_matches(class_scores.forward(scores, [10, 5, 5]), reference.class_scores(scores, [10, 5, 5]), torch.float32)
