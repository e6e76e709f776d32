"""Exported nets in ONNX Runtime and as torch.export programs, at several sizes, beside the library."""

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import overfeat
from overfeat.cli.main import main
from overfeat.densify.plain import PlainDensified
from overfeat.errors import InputError
from overfeat.export import export
from overfeat.files import ASSETS
from overfeat.ops.boxes import decode

SMALL = ASSETS / "small.safetensors"


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


def test_a_converted_net_in_onnx_runtime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, path = converted("boxed", 1), tmp_path / "net.onnx"
    assert export(net, path, stride=4) == ["scores", "boxes"]
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (images(28, 28), images(61, 44, count=2), images(28, 53)):
        scores, boxes = session.run(["scores", "boxes"], {"images": x.numpy()})
        (expected,) = overfeat.score_maps(net, x, scales=[1.0], stride=4)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
        codes = net(x, 4)[1].permute(0, 2, 3, 1).unflatten(-1, (3, 4))
        windows = torch.from_numpy(expected.grid.boxes())[:, :, None].float()
        np.testing.assert_allclose(boxes, decode(codes, windows), atol=1e-3)
    known = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (known["window"], known["stride"], known["class_names"]) == ([28, 28], 4, ["a", "b", "ç"])
    assert (known["mean"], known["outputs"]) == ([120.0, 110.0, 100.0], ["scores", "boxes"])


def test_a_built_in_net_with_boxes_in_onnx_runtime(tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "small.onnx"
    assert main(["export", str(SMALL), str(path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{path}: scores and boxes of windows of 47x47 px, 4 px apart\n"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    net, regressor = overfeat.load(SMALL), overfeat.load_regressor(SMALL)
    for x in (images(47, 47), images(60, 71, count=2)):
        scores, boxes = session.run(["scores", "boxes"], {"images": x.numpy()})
        (expected,) = overfeat.score_maps(net, x, scales=[1.0], stride="fine", flip=False)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
        with torch.no_grad():
            codes, (shape,) = regressor.forward_flat([net.features(x)], "fine")
        windows = torch.from_numpy(expected.grid.boxes())[:, :, None].float()
        decoded = decode(codes.view(*shape, -1, 4), windows, regressor.box_coder)
        np.testing.assert_allclose(boxes, decoded, atol=2e-3)


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
    seeing = make_net("small")
    seeing.add_context()
    with pytest.raises(InputError, match=r"net must have no context, .*; such nets cannot be exported yet"):
        export(seeing, tmp_path / "net.onnx")
    reaching = make_net("small")
    reaching.reach = 0.5
    with pytest.raises(InputError, match="net must have feature layers of its own and no windows beyond the border"):
        export(reaching, tmp_path / "net.onnx")
    other = overfeat.BoxRegressor(make_net("thin fast").architecture)
    with pytest.raises(InputError, match="the regressor was made for another net"):
        export(make_net("small"), tmp_path / "net.onnx", regressor=other)
    mixing = overfeat.densify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(dim=3), nn.Flatten(), nn.Linear(144, 2)), 8,
                              check=False)  # fmt: skip
    with pytest.raises(InputError, match="mixes all cells of a window, which a fully convolutional net cannot"):
        export(mixing, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
