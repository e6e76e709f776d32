"""Context of the first fully connected layer: in place without gradients, to the same values."""

import pytest
import torch

from overfeat.models import fc_layers
from overfeat.models.fc_layers import ContextLogits, _add_context


@pytest.mark.parametrize("relu", [True, False])
def test_in_place_and_with_gradients(relu, monkeypatch):
    monkeypatch.setattr(fc_layers, "ROWS_AT_ONCE", 4)
    x = torch.randn(10, 3)
    x[2, 1] = float("nan")
    logits = torch.randn(5, 3)
    logits[4] = 0  # of positions without context, which are -1
    positions = torch.tensor([0, 3, 1, -1, 2, 2, -1, 0, 1, 3])
    expected = x.clone()
    for row, position in zip(expected, positions, strict=True):
        row += logits[position]
    expected = expected.relu() if relu else expected
    assert _add_context(x.clone().requires_grad_(), ContextLogits(logits, positions), relu).requires_grad
    with torch.no_grad():
        given = x.clone()
        actual = _add_context(given, ContextLogits(logits, positions), relu)
    assert actual.data_ptr() == given.data_ptr()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    with_gradients = _add_context(x.clone().requires_grad_(), ContextLogits(logits, positions), relu).detach()
    torch.testing.assert_close(with_gradients, expected, rtol=0, atol=0, equal_nan=True)
