"""The programs of examples/ and their notebook, run as a user runs them, with cheap settings."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import overfeat
from overfeat.ops import registry

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(name, arguments): the lines that a program prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_classify(run, tmp_path):
    (line,) = run("classify.py", overfeat.files.ASSETS / "photos" / "coffee.jpg", "--scales", 0.7, "--stride", 64)
    assert line.startswith("coffee.jpg: espresso 0.") and line.endswith(" windows -> out/coffee.png")
    assert Image.open(tmp_path / "out" / "coffee.png").size == (600, 400)


def test_own_network(run, tmp_path):
    lines = run("own_network.py", "--steps", 40, "--stride", 16)
    assert "step 40 of 40" in lines[0]
    (difference,) = (line for line in lines if line.startswith("largest difference from a cropped window: "))
    assert float(difference.split(": ")[1]) < 1e-5
    assert lines[-1].startswith("WBC: best window ") and lines[-1].endswith(", on an annotated one -> out/WBC.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"Platelets.png", "RBC.png", "WBC.png"}


def test_train_detector(run, tmp_path):
    lines = run("train_detector.py", "--epochs", 1, "--tiles", 4)
    assert lines[0].startswith("data: 2 images with 35 boxes of 3 classes")
    assert lines[-1].endswith("annotated {'RBC': 14, 'WBC': 1, 'Platelets': 3}")
    for name in ("objects.png", "truth.png"):
        assert Image.open(tmp_path / "out" / name).size == (640, 480)


def test_register_backend(run):
    lines = run("register_backend.py")
    assert registry._backends.pop("mine").functions.keys() == {"class_scores"}
    assert all(float(line.split(": ")[1]) < 1e-6 for line in (lines[0], lines[2]))
    name, score, windows = re.fullmatch(r"00001.png: (\d), ([\d.]+), of (\d+) windows", lines[1]).groups()
    assert name == "2" and float(score) > 0.9 and int(windows) > 500


def test_notebook(tmp_path):
    """It runs, and shows what the committed outputs show."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    committed = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    notebook = nbformat.from_dict(committed)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [
        [
            [sorted(output.get("data", [output.output_type])) for output in cell.get("outputs", [])]
            for cell in book.cells
        ]
        for book in (committed, notebook)
    ]
    assert kinds[0] == kinds[1]
    pictures = [output for cell in kinds[1] for output in cell if "image/png" in output]
    assert len(pictures) >= 3
    assert (EXAMPLES / "tour.ipynb").stat().st_size < 1_000_000
