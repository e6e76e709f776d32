"""Training on the feature maps of SqueezeNet from the command line: every task, resumed, used."""

import json

import pytest
import torch
from PIL import Image
from voc_files import voc

from overfeat import load, load_multibox, load_regressor
from overfeat.cli.main import main
from overfeat.training.resume import CHECKPOINT, LAST

QUICK = "--batch-size 4 --num-workers 0 --device cpu --epochs 1 --no-flip"
DETECTOR = "--net squeezenet --freeze-features --context --samples-per-image 1 --scales 0.5,0.8"
DETECTOR += " --lr-schedule step --warmup 0 --negative-sampling half_hard"  # with which a run can be made longer


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True, scope="module")
def short_validation():
    """Few tiles, and no choice of thresholds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("overfeat.detection.train.VALIDATION_TILES", 20)
        patch.setattr("overfeat.detection.train.choose_thresholds", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def detector(multi_object, tmp_path_factory):
    """A detector after a few steps."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    command = ["train", "detector", "--data", multi_object, "--out", folder, *QUICK.split(), *DETECTOR.split()]
    assert run(*command) == 0
    return folder


def test_a_detector_is_trained_resumed_and_used(multi_object, detector, tmp_path, capsys):
    first = load(detector / LAST)
    assert first.architecture.name == "SqueezeNet fire5" and first.background and first.context is not None
    assert len(first.class_names) == 11 and load_regressor(detector / LAST).box_features == "pooled"
    command = ["train", "detector", "--data", multi_object, "--out", detector, "--resume"]
    options = [*QUICK.split(), *DETECTOR.split(), "--epochs", 2]
    assert run(*command, *options) == 0
    printed = capsys.readouterr().out
    assert "net: SqueezeNet fire5, window 55 px" in printed and "feature layers trained on ImageNet, frozen" in printed
    assert len((detector / "log.jsonl").read_text().splitlines()) == 2
    second = load(detector / LAST)
    assert not torch.equal(first.fc_layers[0].weight, second.fc_layers[0].weight)
    for a, b in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run(*command, *options, "--node", "fire3") == 1
    error = capsys.readouterr().err
    assert "node was None and is now fire3" in error and "architecture was" in error and len(error) < 1500
    image = sorted((multi_object / "test").glob("*.png"))[0]
    weights = ["--weights", detector / LAST, "-o", tmp_path / "out"]
    assert run("detect", image, *weights, "--postprocess", "nms", "--min-score", 0, "--score-threshold", 0.2) == 0
    assert json.loads((tmp_path / "out" / f"{image.name}.json").read_text())["objects"] is not None


def test_a_detector_starts_from_another_s_weights(multi_object, detector, tmp_path, capsys):
    command = ["train", "detector", "--data", multi_object, "--init", detector / LAST, "--out", tmp_path / "run"]
    assert run(*command, *QUICK.split(), "--samples-per-image", 1, "--scales", "0.6") == 0
    assert "initial weights from" in capsys.readouterr().out
    before, after = load(detector / LAST), load(tmp_path / "run" / LAST)
    assert before.architecture == after.architecture
    assert not torch.equal(next(before.backbone.parameters()), next(after.backbone.parameters()))
    assert (tmp_path / "run" / CHECKPOINT).is_file()


def test_deep_multibox(multi_object, tmp_path, capsys):
    net = ["--data", multi_object, "--net", "squeezenet", *QUICK.split()]
    small = ["--samples-per-image", 4, "--num-boxes", 5, "--node", "fire5", "--image-size", 71, "--hidden", ""]
    assert run("train", "multibox", *net, *small, "--out", tmp_path / "boxes") == 0
    printed = capsys.readouterr().out
    assert "SqueezeNet fire5, input of 71 px" in printed and "start: feature layers trained on ImageNet" in printed
    model = load_multibox(tmp_path / "boxes" / LAST)
    assert model.image_size == 71 and model.net.backbone is not None
    classifier = ["--samples-per-image", 3, "--window", 71, "--node", "fire5", "--out", tmp_path / "classifier"]
    assert run("train", "box-classifier", *net, *classifier) == 0
    assert load(tmp_path / "classifier" / LAST).background


def test_a_classifier_and_its_box_regressor(tmp_path, capsys):
    for split in ("train", "val"):
        for name, color in (("disc", (200, 60, 40)), ("square", (40, 60, 200))):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (80, 80 + i), color).save(folder / f"{i}.png")
    small = ["--net", "squeezenet", "--node", "fire5", "--window", 71, *QUICK.split(), "--epochs", 4, "--lr", 0.01]
    assert run("train", "classifier", "--data", tmp_path / "images", *small, "--out", tmp_path / "net") == 0
    log = [json.loads(line) for line in (tmp_path / "net" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["validation_top1_error"] == 0
    image = tmp_path / "images" / "val" / "disc" / "0.png"
    assert run("classify", image, "--weights", tmp_path / "net" / LAST) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("disc")

    command = ["train", "regressor", "--data", voc(tmp_path / "photos", 3), "--init", tmp_path / "net" / LAST]
    assert run(*command, *QUICK.split()[:-1], "--scales", "71x71", "--out", tmp_path / "boxes") == 0
    assert run("localize", image, "--weights", tmp_path / "boxes" / LAST, "--scales", "six:1") == 0
    assert "disc" in capsys.readouterr().out
