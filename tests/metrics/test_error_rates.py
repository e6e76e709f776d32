"""Error rates of classifiers, by hand."""

import pytest
import torch

from overfeat.errors import InputError
from overfeat.metrics.classification import error_rates


def test_error_rates_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]])
    rates = error_rates(scores, torch.tensor([1, 1, 2, 0]))
    assert rates["top1"] == 50.0  # the second is wrong, and the tie of the last counts as wrong
    assert rates["top5"] == 0.0  # three classes: never five others ahead
    scores = torch.arange(12.0).flip(0).repeat(3, 1)
    assert error_rates(scores, torch.tensor([4, 5, 0])) == {
        "top1": pytest.approx(200 / 3),
        "top5": pytest.approx(100 / 3),
    }
    assert error_rates(torch.full((2, 10), float("nan")), torch.tensor([0, 1])) == {"top1": 100.0, "top5": 100.0}
    with pytest.raises(InputError, match="no images"):
        error_rates(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
