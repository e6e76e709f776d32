"""Wrong lowest scores are named as they are given."""

import re

import pytest

from overfeat.errors import ArgumentError
from overfeat.models.thresholds import check_min_score


@pytest.mark.parametrize(("value", "shown"), [("0.3", "'0.3'"), (True, "True"), ([0.5, True], "True")])
def test_texts_and_truth_values_are_no_scores(value, shown):
    with pytest.raises(ArgumentError, match=re.escape(f"min_score must be between 0 and 1, not {shown}")):
        check_min_score(value)
