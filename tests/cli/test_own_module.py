"""classify, features and compare-borders of the user's own module, against its windows cropped."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import overfeat
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.cli.module import parse_window
from overfeat.cli.module_source import ModuleSource, load_module

NET = """
import torch
from torch import nn

class Scale(nn.Module):
    def forward(self, x):
        return x / 255

def make_net(channels=3, padding=1, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(
        Scale(), nn.Conv2d(channels, 4, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(classes),
    ).eval()

def ready(**arguments):
    net = make_net(**arguments)
    net(torch.zeros(1, arguments.get("channels", 3), 16, 16))
    return net

def padded(): return ready()
def valid(): return ready(padding=0)
def grey(): return ready(channels=1)
def four(): return ready(channels=4)
def one(): return ready(classes=1)
def probabilities(): return nn.Sequential(ready(), nn.Softmax(1))
def maps(): return nn.Sequential(*ready()[:6])
def batch(): return nn.Sequential(ready(), Batch())

class Boxes(nn.Module):
    def __init__(self, logits=True):
        super().__init__()
        self.net, self.boxes, self.logits = ready(), nn.Sequential(*ready(classes=4)), logits

    def forward(self, x):
        scores = self.net(x) * 20
        return self.boxes(x) * 0.1, scores if self.logits else scores.sigmoid()

def boxes(): return Boxes()
def sigmoids(): return Boxes(logits=False)

class Outside(Boxes):
    def forward(self, x):
        return super().forward(x)[0] * 0 + torch.tensor([90.0, 0, 99, 9]), self.net(x)

def outside(): return Outside()

class Batch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)
"""
WINDOW, STRIDE = 16, 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: net.py, its weights, and a photo."""
    (tmp_path / "net.py").write_text(NET)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 42, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def module(folder):
    """The module with weights that are not those of net.py, which are in state.pt."""
    module = load_module(ModuleSource("net.py", "padded"))
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    torch.save(module.state_dict(), folder / "state.pt")
    return module


OWN = ["--module", "net.py:padded", "--weights", "state.pt", "--window", "16"]


def test_windows_are_parsed():
    assert parse_window("96") == 96 and parse_window("96x128") == (96, 128) and parse_window("24X12") == (24, 12)


@pytest.mark.parametrize("text", ["", "0", "-3", "96x", "x", "96x96x3", "9.5", "96,96", "96x0"])
def test_windows_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="HEIGHTxWIDTH"):
        parse_window(text)


def crops(windows):
    """The windows [h, w, 4] of the photo, cropped: [h * w, 3, 16, 16]."""
    image = torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1).float()
    corners = windows.reshape(-1, 4).astype(int)
    return torch.stack([image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in corners])


def test_heat_maps_are_the_scores_of_the_cropped_windows(module, folder, capsys):
    command = ["classify", "photo.png", *OWN, "--scales", "1.0", "--stride", "4", "--heat-map", "-o", "out"]
    assert main(command) == 0
    maps = np.load(folder / "out" / "photo.png.npz")
    assert maps["windows_0"].shape == (6, 7, 4) and set(maps) == {"classes", "scores_0", "windows_0"}
    with torch.no_grad():
        expected = module(crops(maps["windows_0"])).softmax(1)
    order = [int(name.split()[1]) for name in maps["classes"]]
    np.testing.assert_allclose(maps["scores_0"].reshape(3, -1), expected.T[order], atol=1e-5)
    best = expected.amax(0).sort(descending=True)
    assert order == best.indices.tolist()
    results = json.loads((folder / "out" / "photo.png.json").read_text())["classes"]
    np.testing.assert_allclose([entry["score"] for entry in results], best.values, atol=1e-5)
    printed = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(printed, best.values, atol=1e-4)
    with Image.open(folder / "out" / "photo.png.png") as picture:
        assert min(picture.size) > 100

    assert main(command) == 0  # nothing is left to do
    assert "done already" in capsys.readouterr().err
    torch.save({name: value + 1 for name, value in module.state_dict().items()}, folder / "state.pt")
    assert main(command) == 1
    assert "other settings" in capsys.readouterr().err
    torch.save(module.state_dict(), folder / "state.pt")
    assert main(command) == 0
    with open(folder / "net.py", "a") as file:
        file.write("# another net\n")
    assert main(command) == 1
    assert "other settings" in capsys.readouterr().err


def test_classify_with_and_without_heat_maps_is_the_same(module, capsys):
    command = ["classify", "photo.png", *OWN, "--stride", "4", "--mean", "10,20,30", "--std", "2"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--heat-map", "-o", "out"]) == 0
    assert capsys.readouterr().out == plain
    net = overfeat.densify(module, 16, mean=(10, 20, 30), std=2)
    image = torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1)
    score = overfeat.classify(net, image, stride=4).max()
    assert float(plain.splitlines()[0].split()[-1]) == pytest.approx(float(score), abs=1e-4)


def test_without_matplotlib_the_maps_are_written_and_the_picture_is_not(module, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["classify", "photo.png", *OWN, "--stride", "8", "--heat-map", "-n", "2", "-o", "out"]) == 0
    assert "results without pictures: pictures need matplotlib" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "photo.png.json",
        "photo.png.npz",
        "settings.json",
    ]
    assert np.load("out/photo.png.npz")["scores_0"].shape == (2, 3, 4)


@pytest.mark.parametrize("name", ["valid", "grey", "one", "probabilities"])
def test_modules_of_other_kinds(name, capsys):
    more = ["--no-logits"] if name == "probabilities" else []
    assert main(["classify", "photo.png", "--module", f"net.py:{name}", "--window", "16", *more]) == 0
    printed = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == (1 if name == "one" else 3) and all(0 <= score <= 1 for score in printed)


@pytest.mark.parametrize("command", ["classify", "features"])
def test_a_stride_that_leaves_most_of_the_image_out_is_noted(command, module, capsys):
    assert main([command, "photo.png", *OWN, "--stride", "500"]) == 0
    note = "photo.png: 1 window of 16x16 px, less than half of its 37x42; choose a smaller --stride"
    assert note in capsys.readouterr().err
    assert main([command, "photo.png", *OWN, "--stride", "16"]) == 0
    assert "window" not in capsys.readouterr().err


def test_features_are_the_outputs_of_the_module_s_layers(module, folder, capsys):
    command = ["features", "photo.png", *OWN, "--stride", "4", "-o", "out.npz"]
    windows = np.array([[(x, y, x + 16, y + 16) for x in range(0, 27, 4)] for y in range(0, 22, 4)])
    for layer, submodules in {"3": 4, "6": 7, None: 8}.items():
        assert main([*command, *(["-L", layer] if layer else [])]) == 0
        with torch.no_grad():
            expected = module[:submodules](crops(windows)).flatten(1).T.reshape(-1, 6, 7)
        np.testing.assert_allclose(np.load("out.npz")["features"], expected, atol=1e-4)
    capsys.readouterr()
    assert main([*command, "-L", "fc"]) == 1
    assert "has no submodule or node 'fc'" in capsys.readouterr().err
    assert main(["features", "photo.png", *OWN, "-L", "7", "--format", "text"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 11 14"


@pytest.mark.parametrize(
    ("command", "name", "more"),
    [("localize", "boxes", []), ("detect", "boxes", ["--background"]), ("detect", "sigmoids", ["--no-logits"])],
)
def test_boxes_of_a_module(command, name, more, folder, capsys):
    given = ["photo.png", "--module", f"net.py:{name}", "--window", "16", "--stride", "4", *more]
    limits = {"min_score": 0.0} if command == "detect" else {}
    assert main([command, *given, *(["--min-score", "0"] if limits else [])]) == 0
    printed = [line.rsplit(maxsplit=7 if limits else 5) for line in capsys.readouterr().out.splitlines()]
    logits, background = "--no-logits" not in more, "--background" in more
    net = overfeat.densify(load_module(ModuleSource("net.py", name)), 16, logits=logits)
    net.background = background
    image = torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1)
    expected = getattr(overfeat, command)(net, net.regressor, image, stride=4, **limits)
    assert len(printed) == len(expected) > 0
    assert [line[0] for line in printed] == [net.class_names[label] for label in expected.labels]
    boxes = [[float(edge) for edge in line[2:6]] for line in printed]
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.06)


def test_boxes_outside_the_image_are_no_predictions(folder, capsys):
    options = ["--module", "net.py:outside", "--window", "16", "--stride", "4", "--scales", "1.0", "-o", "out"]
    assert main(["localize", "photo.png", *options]) == 0
    out, error = capsys.readouterr()
    assert out == "" and "photo.png: no box within the image" in error
    assert json.loads((folder / "out" / "photo.png.json").read_text())["predictions"] == []


def test_modules_without_boxes_or_background_detect_nothing(capsys):
    assert main(["localize", "photo.png", "--module", "net.py:padded", "--window", "16"]) == 1
    assert "net.py:padded: gives no boxes; return scores [N, classes] and boxes" in capsys.readouterr().err
    assert main(["detect", "photo.png", "--module", "net.py:boxes", "--window", "16"]) == 1
    assert "since it has no background class; give --background" in capsys.readouterr().err
    assert main(["detect", "photo.png", "--background"]) == 1
    assert "--background does not apply to nets without --module" in capsys.readouterr().err
    assert main(["detect", "photo.png", "--window", "16", "--method", "multibox"]) == 1
    assert "--window does not apply to --method multibox" in capsys.readouterr().err


def test_compare_borders_prints_the_library_s_numbers(module, folder, capsys):
    Image.open("photo.png").crop((0, 0, 30, 20)).save(folder / "part.png")
    assert main(["compare-borders", "photo.png", "part.png", *OWN, "--stride", "4"]) == 0
    printed = capsys.readouterr().out
    net = overfeat.densify(module, 16)
    images = [torch.from_numpy(np.array(Image.open(f"{name}.png"))).permute(2, 0, 1) for name in ("photo", "part")]
    assert f"photo.png: {overfeat.compare_borders(net, images[0], stride=4)}" in printed
    assert f"all images: {overfeat.compare_borders(net, images, stride=4)}" in printed
    assert "total" in printed and "50 windows" in printed
    assert main(["compare-borders", "photo.png", "--weights", str(SHIPPED_WEIGHTS)]) == 1
    assert "leave --weights out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--module", "net.py:padded"], "--window must be given with --module"),
        (["--module", "net.py:padded", "--window", "32"], "--window"),
        (["--module", "net.py:padded", "--window", "3"], "--window"),
        ([*OWN, "--mean", "1,2"], "--mean"),
        ([*OWN, "--std", "0"], "--std"),
        ([*OWN, "--mean", "0.485,0.456,0.406"], "--mean must be of pixels in 0..255"),
        ([*OWN, "--mean", "123", "--std", "0.25"], "--std must be of pixels in 0..255"),
        ([*OWN, "--labels", "names.txt"], "names.txt: 2 names for a net of 3 classes"),
        ([*OWN, "-d", "."], "--data-dir does not apply to --module"),
        ([*OWN, "--heat-map"], "--heat-map needs a folder to write to; give -o FOLDER"),
        ([*OWN, "--heat-map", "--voting", "centre", "-o", "out"], "--heat-map does not apply to --voting centre"),
        ([*OWN, "--stride", "-4"], "--stride"),
        (["--weights", "state.pt"], "state.pt: not a net of overfeat's own, which are .safetensors; name the module"),
        (["--weights", str(SHIPPED_WEIGHTS), "--window", "16"], "--window does not apply to nets without --module"),
        (["--weights", str(SHIPPED_WEIGHTS), "--borders", "neighbours"], "--borders does not apply"),
        (["--weights", str(SHIPPED_WEIGHTS), "--stride", "7"], "--stride must be"),
        (["--mean", "3"], "--mean does not apply to the net that ships; leave it out"),
        (["--module", "net.py:four", "--window", "16"], "4 channels"),
        (["--module", "net.py:maps", "--window", "16"], "[N, classes]"),
        (["--module", "net.py:batch", "--window", "16"], "batch"),
        (
            ["--module", "net.py:probabilities", "--window", "16"],
            "--no-logits must be given: the module's scores are",
        ),
        ([*OWN, "--no-logits"], "--no-logits must be left out: there are scores from"),
        (["--module", "net.py:missing", "--window", "16"], "net.py: has no missing; it defines Scale, make_net"),
        (["--module", "net.py:make_net", "--weights", "state.pt", "--window", "9"], None),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, module, folder, capsys):
    (folder / "names.txt").write_text("ash\nbirch\n")
    try:
        status = main(["classify", "photo.png", *arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr().err.strip()
    assert status, printed
    assert message is None or message in printed.splitlines()[-1]
    assert "Traceback" not in printed and not (folder / "out").exists()
