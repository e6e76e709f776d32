"""README's snippets, run as they are printed, from the installed wheel and in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from overfeat.cli import demo
from overfeat.data.images import read_image
from overfeat.files import ASSETS
from overfeat.models.squeezenet import imagenet_classes, pretrained

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
INSTALL = BLOCKS[0][1]
# One process, since each that imports torch takes seconds.
DRIVER = """
import contextlib, io, json, shlex, sys
import numpy
import overfeat
from overfeat.cli.main import main

printed = []
for kind, text in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        if kind == "python":
            names = {"__name__": "__main__"}
            exec(compile(text, "README.md", "exec"), names)
            if "maps" in names:
                numpy.save("scores.npy", names["maps"][0].scores[0].numpy())
        else:
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "overfeat" and main(arguments) == 0, line
    printed.append(output.getvalue())
json.dump({"package": overfeat.__file__, "printed": printed}, open("ran.json", "w"))
"""


def test_snippets_run_as_printed(installed, tmp_path):
    """The user's own annotated photographs, `photos`, are the only thing that the folder holds."""
    shutil.copytree(ASSETS / "cells", tmp_path / "photos")
    assert [kind for kind, _ in BLOCKS] == ["console", "python", "console", "python", "python"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [installed, "-P", "-c", DRIVER], input=json.dumps(BLOCKS[1:]), text=True, cwd=tmp_path, env=environment,
        capture_output=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    ran = json.loads((tmp_path / "ran.json").read_text())
    assert Path(ran["package"]).is_relative_to(Path(installed).parents[1])
    own, _, cells, status = ran["printed"]
    check_heat_map(own, tmp_path)
    check_training(tmp_path)
    lines = [line.split() for line in cells.splitlines()]
    assert sorted(name for name, *_ in lines) == ["Platelets"] * 3 + ["RBC"] * 16 + ["WBC"]  # as README's picture
    assert all(re.fullmatch(r"\w+ \[-?\d+, -?\d+, \d+, \d+\] 0\.\d\d", line) for line in cells.splitlines())
    assert picture_size(tmp_path / "cells.png") >= (640, 480)
    assert re.search(r"cpu +merge_boxes +torch\.float|cpu +merge_boxes +float", status), status


def check_heat_map(printed: str, folder: Path) -> None:
    """The scores are those of cropped windows; the picture is there."""
    scores = np.load(folder / "scores.npy")
    classes = imagenet_classes()
    assert printed.startswith("torch.Size([1, 1000, 11, 24]) 0.9") and scores.shape == (1000, 11, 24)
    image = read_image(ASSETS / "photos" / "coffee.jpg").float()
    windows = torch.stack([image[:, y : y + 227, x : x + 227] for y, x in ((0, 0), (48, 128), (160, 368))])
    with torch.no_grad():
        pixels = windows.flip(1) - torch.tensor([103.9, 116.8, 123.7])[:, None, None]
        expected = pretrained().eval()(pixels).softmax(1)
    actual = torch.from_numpy(scores[:, [0, 3, 10], [0, 8, 23]]).T
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert classes[expected[1].argmax()] == "espresso"
    assert picture_size(folder / "heat.png") >= (600, 400)


def check_training(folder: Path) -> None:
    """The detector has the data's classes, and its results are there, of every image."""
    from overfeat import load

    assert load(folder / "run" / "net.safetensors").class_names[:3] == ["Platelets", "RBC", "WBC"]
    results = {path.name for path in (folder / "detections").iterdir()}
    assert results >= {f"{path.name}.json" for path in (ASSETS / "cells").glob("*.jpg")}


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_install_command_names_known_extras(tmp_path):
    """pip resolves the command as printed, without a network: the test environment has the packages of the extras."""
    environment, command = INSTALL.splitlines()
    assert environment == "python3 -m venv .venv && source .venv/bin/activate"
    for name in ("overfeat", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    pip = command.replace("pip", f"{sys.executable} -m pip", 1) + " --dry-run --no-index --no-build-isolation"
    process = subprocess.run(["bash", "-c", pip], cwd=tmp_path, capture_output=True, text=True)
    printed = process.stdout + process.stderr
    assert process.returncode == 0 and "Would install overfeat" in printed and "does not provide" not in printed, (
        printed
    )


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 130
    assert all(len(code.strip().splitlines()) <= 10 for _, code in BLOCKS)
    assert f"draws {demo.PICTURES} pictures" in TEXT


def test_make_demo_says_what_it_downloads():
    lines = ["make", "--no-print-directory", "--dry-run", "--always-make", f"PYTHON={sys.executable}", "demo"]
    printed = subprocess.run(lines, cwd=ROOT, capture_output=True, text=True).stdout
    said, _, done = printed.partition(" -m pip install")
    assert "downloads" in said and "3 GB" in said and "minutes" in said and "--quiet" not in done
    assert done.rstrip().endswith("overfeat demo")


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    missing = [target for target in targets if "://" not in target and not (ROOT / target.split("#")[0]).exists()]
    assert len(targets) > 20 and not missing
