"""The README's path from the user's own module to a heat map, run as it is printed."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import overfeat
from overfeat.cli.main import main
from overfeat.data.images import read_image

README = Path(__file__).resolve().parents[1] / "README.md"
NET = """
from torch import nn

def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )
"""


def test_your_own_network(tmp_path, monkeypatch):
    section = README.read_text().split("## Your own network")[1].split("\n## ")[0]
    code, command = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "net.py").write_text(NET)
    pixels = np.random.default_rng(0).integers(0, 256, (110, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    names = {"overfeat": overfeat, "read_image": read_image}
    exec("import torch, net; torch.save(net.make_net().state_dict(), 'state.pt')", {})
    exec(code, names)
    maps, image = names["maps"], torch.as_tensor(names["image"]).float() / 255
    assert maps[0].scores.shape == (1, 2, 2, 5)
    with torch.no_grad():
        expected = names["module"].eval()(image[None, :, 8:104, 24:120]).softmax(1)[0]
    torch.testing.assert_close(maps[0].scores[0, :, 1, 3], expected, rtol=1e-4, atol=1e-5)
    with Image.open("heat.png") as picture:
        assert min(picture.size) > 100

    assert main(shlex.split(command.replace("\\\n", ""))[1:]) == 0
    written = np.load("out/photo.jpg.npz")
    order = [int(name.removeprefix("class ")) for name in written["classes"]]
    np.testing.assert_allclose(written["scores_0"], maps[0].scores[0, order], atol=1e-5)
    del sys.modules["net"]
