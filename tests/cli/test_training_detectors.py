"""`overfeat train detector`: what it refuses, chooses and resumes."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from detector_commands import run, train_detector
from voc_files import voc

from overfeat import load, load_regressor
from overfeat.data.images import read_image
from overfeat.detection.predict import detect


@pytest.fixture(autouse=True)
def short_validation(monkeypatch):
    """Few tiles, and no choice of thresholds, which takes minutes for a net that has hardly learned."""
    monkeypatch.setattr("overfeat.detection.train.VALIDATION_TILES", 40)
    monkeypatch.setattr("overfeat.detection.train.choose_thresholds", lambda *_, **__: None)


def test_from_scratch_and_resumed(multi_object, tmp_path, capsys):
    """Random weights, scales chosen from the boxes; a resumed run ends with the same weights."""
    given = "--no-context --per-class --box-features pooled --from-scratch --batch-size 4 --num-workers 0 --device cpu"
    given += " --samples-per-image 1 --no-flip --lr-schedule step --warmup 0 --negative-sampling half_hard"
    command = ["train", "detector", "--data", multi_object, *given.split()]
    for out, runs in (("once", [["--epochs", 2]]), ("twice", [["--epochs", 1], ["--epochs", 2, "--resume"]])):
        for more in runs:
            assert run(*command, "--out", tmp_path / out, *more) == 0
    assert "times their size (of the cost), so that objects measure about 0.65" in capsys.readouterr().out
    once, twice = (load(tmp_path / out / "net.safetensors") for out in ("once", "twice"))
    assert len(once.scale_factors) >= 4
    assert load_regressor(tmp_path / "once/net.safetensors").num_classes == once.num_classes - 1
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["--net", "small"], "does not go with init"),
        (["--dropout", "1"], "dropout must be at least 0"),
        (["--from-scratch"], "does not go with init"),
        (["--init", "nothing.safetensors"], "no such file"),
        (["--scales", "60.0"], "no object of the training data fits the window"),
    ],
)
def test_bad_settings(multi_object, tmp_path, capsys, setting, words):
    assert train_detector(multi_object, tmp_path / "run", *setting) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


# Other data sets


def test_bad_images_are_listed_before_training(tmp_path, capsys):
    folder = voc(tmp_path / "photos", 6)
    for xml in folder.glob("*.xml"):  # with the size in the annotation, its image is not read with it
        size = "</filename><size><width>200</width><height>150</height></size>"
        xml.write_text(xml.read_text().replace("</filename>", size))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:300])
    (folder / "3.png").write_bytes(b"no picture")
    options = "--epochs 1 --samples-per-image 4 --batch-size 4 --device cpu --scales 1.0 --net small --num-workers 0"
    command = ["train", "detector", "--data", folder, "--out", tmp_path / "run", *options.split()]
    assert run(*command) == 1
    messages = capsys.readouterr().err
    assert all(word in messages for word in ("2 of 6 images cannot be used", "2.png", "3.png", "--skip-invalid"))
    assert not (tmp_path / "run").exists()
    assert run(*command, "--skip-invalid") == 0
    out, messages = capsys.readouterr()
    assert "left out: 2 images" in messages and "4 images with" in out and ", 1 without a box" in out
    assert "too few to tell" in out and "thresholds: the defaults, without validation data" in out


def test_choices_are_described(tmp_path, capsys, monkeypatch):
    """The scales resize the boxes to the window; the number of tiles follows from that of the images."""
    folder = voc(tmp_path / "photos", 3, size=(400, 500), objects=6)
    edges = (("xmin", 5), ("ymin", 5), ("xmax", 5), ("ymax", 6))
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    dot = f"<object><name>dot</name><bndbox>{box}</bndbox></object></annotation>"
    (folder / "0.xml").write_text((folder / "0.xml").read_text().replace("</annotation>", dot))
    monkeypatch.setattr("overfeat.training.trainer.train", lambda *_, **__: [])
    assert run("train", "detector", "--data", folder, "--out", tmp_path / "run") == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "3 images with 13 boxes of 3 classes" in lines["data"] and ", 1 without a box" in lines["data"]
    assert lines["boxes"].startswith("longer sides of 2 to ") and "SqueezeNet fire5, window 55 px" in lines["net"]
    assert "epochs of 1002 tiles" in lines["training"]
    scales = lines["scales"].split(" evaluated at ")[1].split(" times")[0].split(", ")
    scale_factors = [float(scale.split(" (")[0]) for scale in scales]
    assert scale_factors[0] < 1 < scale_factors[-1] and all(1 < b / a < 1.41 for a, b in pairwise(scale_factors))


def test_objects_that_cannot_train(tmp_path, capsys):
    """Difficult objects and those as large as their image have their own messages."""
    folder, out = voc(tmp_path / "photos", 3), tmp_path / "run"
    texts = {xml: xml.read_text() for xml in folder.glob("*.xml")}
    for xml, text in texts.items():
        xml.write_text(text.replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    assert run("train", "detector", "--data", folder, "--out", out, "--device", "cpu") == 1
    assert "every object of the training data is marked difficult" in capsys.readouterr().err
    edges = (("xmin", 1), ("ymin", 1), ("xmax", 200), ("ymax", 150))
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    for xml in texts:
        whole = f"<object><name>all</name><bndbox>{box}</bndbox></object>"
        xml.write_text(f"<annotation><filename>{xml.stem}.png</filename>{whole}</annotation>")
    assert run("train", "detector", "--data", folder, "--out", out, "--device", "cpu", "--reach", 0) == 1
    message = capsys.readouterr().err
    assert "no object of the training data fits" in message and "a larger reach" in message
    for xml, text in texts.items():
        xml.write_text(text.replace("disc", "background"))
    assert run("train", "detector", "--data", folder, "--out", out, "--device", "cpu") == 1
    assert 'called "background"' in capsys.readouterr().err and not out.exists()


def test_two_processes_with_images_too_small_for_context(tmp_path):
    """All weights have gradients in every process, whatever its images are; and both end with the same weights."""
    folder = voc(tmp_path / "photos", 8, size=(60, 64), objects=1)
    options = "--epochs 2 --samples-per-image 2 --batch-size 4 --device cpu --num-workers 0 --scales 1.0 --per-class"
    options += " --net small"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641", "-m"]
    command += ["overfeat", "train", "detector", "--data", folder, "--out", tmp_path / "run", *options.split()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    net, regressor = load(tmp_path / "run/net.safetensors"), load_regressor(tmp_path / "run/net.safetensors")
    assert net.context is not None and regressor.num_classes == 2
    image = read_image(folder / "0.png")
    detections = detect(net, regressor, image, score_threshold=0.01, min_score=0)
    assert len(detections) and detections.boxes.isfinite().all()


def test_out_of_memory_is_reported(tmp_path, capsys):
    command = ["train", "detector", "--data", voc(tmp_path / "photos", 4), "--out", tmp_path / "run", "--device", "cpu"]
    assert run(*command, "--hidden", "99999999,99999999") == 1
    assert "out of memory" in capsys.readouterr().err
