"""Exported nets in ONNX Runtime and as torch.export programs, at several sizes, beside the library."""

import contextlib
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import overfeat
from bench.exported import library_outputs
from overfeat.cli.main import main
from overfeat.densify.plain import PlainDensified
from overfeat.errors import InputError
from overfeat.export import export
from overfeat.models.architecture import Architecture, Conv
from overfeat.models.checkpoint import save
from overfeat.models.thresholds import DetectionThresholds


class Boxed(nn.Module):
    """Scores and boxes, with padding, batch normalisation and a mean over the window."""

    def __init__(self, convolutions):
        super().__init__()
        second = [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()] if convolutions == 2 else []
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(),
        )  # fmt: skip
        self.scores, self.boxes = nn.Linear(6, 3), nn.Linear(6, 12)

    def forward(self, x):
        x = self.body(x)
        return self.scores(x), self.boxes(x)


def module(kind, convolutions=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "boxed":
            made = Boxed(convolutions)
            nn.init.normal_(made.body[1].running_mean, 0, 0.2)
            return made.eval()
        second = [nn.Conv2d(6, 8, 3), nn.ReLU()] if convolutions == 2 else []
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), *second, nn.Flatten(),
            nn.Linear(8 * 16 if second else 6 * 36, 10), nn.ReLU(), nn.Linear(10, 3),
        ).eval()  # fmt: skip


def converted(kind, convolutions=2):
    """The converted module; one convolution is exported in half the time."""
    borders = "neighbours" if kind == "boxed" else "refuse"
    return overfeat.densify(
        module(kind, convolutions), 28, mean=(100.0, 110, 120), std=50.0, borders=borders, check=False,
        channel_order="BGR", class_names=["a", "b", "ç"],
    )  # fmt: skip


def images(*size, count=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), generator=generator).float()


@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("kind", ["boxed", "unpadded"])
def test_plain_layers_equal_the_converted_net(kind, stride):
    net = converted(kind)
    plain = PlainDensified(net, stride)
    for x in (images(28, 28), images(45, 60, count=2), images(28, 53)):
        expected = net(x, stride)
        with torch.no_grad():
            actual = plain(x)
        for a, e in zip(actual, expected if isinstance(expected, tuple) else (expected,), strict=True):
            torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-4)


class Session:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path):
        onnxruntime = pytest.importorskip("onnxruntime")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entries = self.session.get_modelmeta().custom_metadata_map.items()
        self.metadata = {key: json.loads(value) for key, value in entries}

    def check(self, net, regressor, stride, *sizes):
        """Scores and boxes are those of dense evaluation, for two images of each size."""
        for size in sizes:
            x = images(*size, count=2)
            scores, boxes = self.session.run(["scores", "boxes"], {"images": x.numpy()})
            expected = library_outputs(net, x, stride, regressor)
            np.testing.assert_allclose(scores, expected[0], atol=2e-5)
            np.testing.assert_allclose(boxes, expected[1], atol=2e-3)


def test_a_converted_net_in_onnx_runtime(tmp_path):
    net, path = converted("boxed", 1), tmp_path / "net.onnx"
    net.reach = 0.25
    assert export(net, path, stride=4) == ["scores", "boxes"]
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    exported = Session(path)
    exported.check(net, net.regressor, 4, (28, 28), (61, 44), (20, 53))
    known = exported.metadata
    assert (known["window"], known["stride"], known["class_names"]) == ([28, 28], 4, ["a", "b", "ç"])
    assert (known["mean"], known["outputs"], known["margin"]) == ([120.0, 110.0, 100.0], ["scores", "boxes"], [6, 6])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The file of a small detector with context and windows beyond the border."""
    architecture = Architecture("tiny", (Conv(4, 5, stride=2, pad=1), Conv(6, 3, pool=2)), 2, (8,), 20, init_std=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = overfeat.OverFeat(architecture, 3, context=True).eval()
        regressor = overfeat.BoxRegressor(architecture, 2, box_features="unpooled", hidden=(8, 8)).eval()
        nn.init.normal_(regressor.fc_layers[-1].weight, 0, 0.1)
    net.class_names, net.background, net.reach, net.scale_factors = ["a", "b", "background"], True, 0.4, (0.5, 1.0)
    net.thresholds = DetectionThresholds(score_threshold=0.2)
    path = tmp_path_factory.mktemp("detector") / "net.safetensors"
    save(net, path, regressor=regressor)
    return path


@pytest.fixture(scope="module")
def onnx_detector(detector):
    """The detector as an ONNX file beside it, written by the command, and what that printed."""
    pytest.importorskip("onnxscript")
    path, output = detector.with_name("net.onnx"), io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["export", str(detector), str(path), "--device", "cpu"]) == 0
    return path, output.getvalue()


def test_a_detector_with_context_and_margins_in_onnx_runtime(detector, onnx_detector):
    path, output = onnx_detector
    net, regressor = overfeat.load(detector), overfeat.load_regressor(detector)
    side, margin = net.architecture.window, net.margin[0]
    assert output == f"{path}: scores and boxes of windows of {side}x{side} px, 2 px apart\n"
    exported, smallest = Session(path), side - 2 * margin
    exported.check(net, regressor, "fine", (side, side), (smallest, 30), (2 * side + 1, 61), (90, 44))
    known = exported.metadata
    assert (known["margin"], known["scale_factors"], known["background"]) == ([margin, margin], [0.5, 1.0], True)
    assert known["thresholds"]["score_threshold"] == 0.2


def test_the_guide_s_program_prints_the_best_object(detector, onnx_detector, monkeypatch, capsys):
    guide = Path(__file__).parents[1] / "docs" / "guides" / "export.md"
    (program,) = re.findall(r"## ONNX Runtime\n\n```python\n(.*?)```", guide.read_text(), re.DOTALL)
    monkeypatch.chdir(detector.parent)
    pixels = images(40, 60)
    Image.fromarray(pixels[0].byte().permute(1, 2, 0).numpy()).save("photo.png")
    exec(compile(program.replace("photo.jpg", "photo.png"), "export.md", "exec"), {})
    scores, boxes = library_outputs(overfeat.load(detector), pixels, "fine", overfeat.load_regressor(detector))
    label, row, column = np.unravel_index(scores[0, :2].argmax(), scores[0, :2].shape)
    printed = capsys.readouterr().out
    name, *numbers = printed.replace("[", " ").replace("]", " ").split()
    assert name == "ab"[label]
    np.testing.assert_allclose(float(numbers[0]), scores[0, label, row, column], atol=1e-4)
    np.testing.assert_allclose([float(n) for n in numbers[1:]], boxes[0, row, column, label], atol=1e-2)


def test_an_interrupted_export_leaves_the_old_file_alone(detector, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    path = tmp_path / "net.pt2"
    path.write_text("old")
    monkeypatch.setattr(torch.export, "save", interrupted)
    monkeypatch.setattr("overfeat.export._program", lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        export(overfeat.load(detector), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.pt2", "old")]


def test_a_torch_export_program(tmp_path):
    net, path = converted("unpadded", 1), tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export(net, path) == ["scores"]
    files = {"overfeat.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    assert json.loads(files["overfeat.json"])["window"] == [28, 28]
    for x in (images(40, 44), images(61, 35, count=3)):
        (expected,) = overfeat.score_maps(net, x, scales=[1.0])
        torch.testing.assert_close(program(x)[0], expected.scores, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported(tmp_path, make_net):
    with pytest.raises(InputError, match=r"net\.bin: must end in \.onnx or \.pt2"):
        export(converted("unpadded", 1), tmp_path / "net.bin")
    with pytest.raises(InputError, match=r"missing/net\.onnx: cannot be written"):
        export(converted("unpadded", 1), tmp_path / "missing" / "net.onnx")
    padded = overfeat.densify(module("boxed"), 28, check=False)
    with pytest.raises(InputError, match="borders must be neighbours: they are exact, and its module pads"):
        export(padded, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="regressor must be left out: a converted net has its own"):
        export(converted("boxed", 1), tmp_path / "net.onnx", regressor=converted("boxed", 1).regressor)
    with pytest.raises(InputError, match="regressor must be a BoxRegressor, not ConvertedRegressor"):
        export(make_net("small"), tmp_path / "net.onnx", regressor=converted("boxed", 1).regressor)
    other = overfeat.BoxRegressor(make_net("thin fast").architecture)
    with pytest.raises(InputError, match="the regressor was made for another net"):
        export(make_net("small"), tmp_path / "net.onnx", regressor=other)
    mixing = overfeat.densify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=3), nn.Flatten(), nn.Linear(144, 2)), 8,
                              check=False)  # fmt: skip
    with pytest.raises(InputError, match="mixes all cells of a window, which a fully convolutional net cannot"):
        export(mixing, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
