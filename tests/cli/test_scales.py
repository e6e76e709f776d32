"""The text of --scales."""

import argparse

import pytest

from overfeat.cli.dense import scale_list
from overfeat.dense.config import SixScales


def test_factors_and_sizes():
    assert scale_list("0.5, 1.0,.25,2.,90x100") == [0.5, 1.0, 0.25, 2.0, (90, 100)]


def test_the_six_scales():
    assert scale_list("six") == SixScales() and scale_list("six:1,2,4,6") == SixScales(1, 2, 4, 6)


@pytest.mark.parametrize(
    "text", ["0.0", "7", "2", "-0.5", "1e3", "nan", ".", "0.5x2", "0x90", "six:", "six:7", "six:1,x", ""]
)
def test_other_texts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        scale_list(text)


def test_a_number_is_not_reinterpreted():
    with pytest.raises(argparse.ArgumentTypeError, match=r"a factor is written 2.0, the net's own scale six:2"):
        scale_list("2")
