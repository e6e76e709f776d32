"""Scales and strides as text: what --scales and --stride read."""

import argparse

import pytest

from overfeat.dense.config import DenseConfig, SixScales, format_scales, parse_scales, parse_stride
from overfeat.errors import ArgumentError


def test_factors_and_sizes():
    assert parse_scales("0.5, 1.0,.25,2.,90x100") == (0.5, 1.0, 0.25, 2.0, (90, 100))


def test_the_six_scales():
    assert parse_scales("six") == SixScales() and parse_scales("six:1,2,4,6") == SixScales(1, 2, 4, 6)


@pytest.mark.parametrize(
    "text", ["0.0", "7", "2", "-0.5", "1e3", "nan", ".", "0.5x2", "0x90", "six:", "six:7", "six:1,x", "six,1.0", ""]
)
def test_other_texts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_scales(text)


def test_a_number_is_not_reinterpreted():
    with pytest.raises(argparse.ArgumentTypeError, match=r"a factor is written 2.0, the net's own scale six:2"):
        parse_scales("2")
    with pytest.raises(argparse.ArgumentTypeError, match=r"a factor is written 12.0$"):
        parse_scales("12")
    with pytest.raises(argparse.ArgumentTypeError, match=r"nor HEIGHTxWIDTH$"):
        parse_scales("0")


@pytest.mark.parametrize("text", ["six", "six:1,2,4,6", "0.5,1.0,245x317"])
def test_written_as_read(text):
    assert format_scales(parse_scales(text)) == text == format_scales(DenseConfig(parse_scales(text)).scales)
    assert format_scales(None) is None


@pytest.mark.parametrize("name, value", [("scales", [(0, 60)]), ("scales", [(True, 60)]), ("memory_limit", "1")])
def test_sizes_and_memory_are_positive_numbers(name, value):
    with pytest.raises(ArgumentError, match=name):
        DenseConfig(**{name: value})


def test_strides():
    assert [parse_stride(text) for text in ("fine", " Coarse", "8", "250")] == ["fine", "coarse", 8, 250]
    for text in ("0", "-4", "1.5", "finer", "", "8px"):
        with pytest.raises(argparse.ArgumentTypeError, match="neither fine, coarse, nor a number of pixels from 1 up"):
            parse_stride(text)
