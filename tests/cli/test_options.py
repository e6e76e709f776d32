"""Options made from the fields of a frozen dataclass."""

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from overfeat.cli.options import add_options, config_from_args, flag_of
from overfeat.options import fraction, option


@dataclass(frozen=True)
class Config:
    epochs: int | None = option(90, "passes over 100 % of the samples")
    lr_milestones: tuple[int, ...] = option((30, 50), "epochs")
    precision: Literal["float32", "bfloat16"] = option("float32", "of the passes")
    flip: bool | None = option(None, "mirror images")
    resume: bool = option(False, "continue")
    nms_iou_threshold: float | None = option(None, "IoU", parse=fraction, flags=("-t", "--nms-iou"))
    internal: int = 7


def make(**defaults):
    parser = argparse.ArgumentParser()
    add_options(parser, Config, **defaults)
    return parser


def parse(*arguments, **defaults):
    return config_from_args(Config, make(**defaults).parse_args(arguments))


def test_defaults_are_the_dataclass_s():
    assert parse() == Config()
    assert parse(epochs=3, lr_milestones=()) == Config(epochs=3, lr_milestones=())


def test_values_have_the_types_of_the_annotations():
    given = "--epochs 2 --lr-milestones 1,2 --precision bfloat16 --no-flip --resume --nms-iou 0.5".split()
    assert parse(*given) == Config(2, (1, 2), "bfloat16", False, True, 0.5)


@pytest.mark.parametrize(
    "given", [["--precision", "int8"], ["--lr-milestones", "x"], ["--internal", "3"], ["--nms-iou", "nan"]]
)
def test_other_values_are_refused(given):
    with pytest.raises(SystemExit):
        parse(*given)


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    printed = capsys.readouterr().out
    assert "passes over 100 % of the samples (default: 90)" in printed and "(default: 30,50)" in printed
    assert "None" not in printed and "False" not in printed


def test_help_shows_which_values_are_chosen_from_the_data(capsys):
    with pytest.raises(SystemExit):
        parse("--help", epochs=None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "passes over 100 % of the samples (default: chosen from the data)" in printed
    assert printed.count("chosen from the data") == 1 and parse(epochs=None).epochs is None


def test_flags_of_names():
    assert flag_of(make(), "nms_iou_threshold") == "--nms-iou" and flag_of(make(), "other") is None
