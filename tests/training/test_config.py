"""Options of the tasks: the command line gives the dataclasses' defaults; resuming compares what decides the result."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from overfeat.classification.config import ClassifierConfig
from overfeat.cli.main import build_parser
from overfeat.cli.options import config_from_args
from overfeat.cli.train import HEADS
from overfeat.detection.config import DetectorConfig
from overfeat.errors import ArgumentError
from overfeat.multibox.config import MultiBoxConfig
from overfeat.training.config import RESUMABLE, TrainConfig
from overfeat.training.task import fingerprint


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_the_command_line_has_the_defaults_of_the_dataclasses(head):
    args = build_parser().parse_args(["train", head.name, "--data", "data", "--out", "run"])
    assert config_from_args(head.options, args) == head.options()
    assert config_from_args(TrainConfig, args) == head.defaults


def test_values_of_the_command_line():
    words = "--scales 0.5,1 --negative-sampling hard --hidden 8,4 --no-flip --init a.safetensors --lr-milestones 2,3"
    args = build_parser().parse_args(["train", "detector", "--data", "data", "--out", "run", *words.split()])
    options = config_from_args(DetectorConfig, args)
    assert options.scales == (0.5, 1.0) and options.hidden == (8, 4) and options.init == Path("a.safetensors")
    assert options.negative_sampling == "hard" and not options.flip
    assert config_from_args(TrainConfig, args).lr_milestones == (2, 3)


def test_the_fingerprint_has_what_decides_the_result():
    train, names = TrainConfig(), {field.name for field in fields(TrainConfig)}
    assert set(fingerprint(train)) == names - set(RESUMABLE)
    assert fingerprint(train) == fingerprint(replace(train, epochs=3, device="cpu", num_workers=1))
    assert fingerprint(train) != fingerprint(replace(train, lr=0.1))
    started = DetectorConfig(init=Path("a.safetensors"))
    assert fingerprint(started) == fingerprint(DetectorConfig(from_scratch=True))  # the checkpoint has the weights
    assert fingerprint(DetectorConfig(negatives_per_tile=3))["negatives_per_tile"] == 3


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TrainConfig, {"lr": float("nan")}, "lr must be at least 0 and finite"),
        (TrainConfig, {"precision": "float8"}, "precision must be one of float32"),
        (TrainConfig, {"lr_milestones": (3, 0)}, "lr_milestones must be at least 1"),
        (ClassifierConfig, {"dropout": 1.0}, "dropout must be at least 0 and less than 1"),
        (DetectorConfig, {"negative_sampling": "mixed"}, "negative_sampling must be one of curriculum"),
        (DetectorConfig, {"init": Path("a"), "from_scratch": True}, "from_scratch does not go with init"),
        (MultiBoxConfig, {"priors": False}, "matching must be prediction without priors"),
    ],
)
def test_bad_values_name_the_argument(config, values, message):
    with pytest.raises(ArgumentError, match=message):
        config(**values)
