"""`overfeat train multibox`, `train box-classifier`, `evaluate multibox` and `detect --method multibox`."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from killed_evaluation import check_a_killed_evaluation_goes_on
from PIL import Image
from voc_files import voc

from overfeat import load, load_multibox, save_multibox
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.multibox import MultiBox
from overfeat.multibox.predict import detect_multibox
from overfeat.training.trainer import LAST

QUICK = "--batch-size 8 --num-workers 0 --device cpu --epochs 1 --no-flip"
TINY = "--samples-per-image 4 --num-boxes 5 --image-size 47"


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Both nets after a short training on VOC's layout: (photos, boxes, classifier)."""
    root = tmp_path_factory.mktemp("multibox")
    photos = voc(root / "photos", 6)
    head = "--num-boxes 8 --samples-per-image 4 --image-size 59"
    assert run("train", "multibox", "--data", photos, "--out", root / "boxes", *QUICK.split(), *head.split()) == 0
    command = ["train", "box-classifier", "--data", photos, "--out", root / "classifier", *QUICK.split()]
    assert run(*command, "--samples-per-image", 6) == 0
    return photos, root / "boxes" / LAST, root / "classifier" / LAST


def test_training_describes_its_start(nets, tmp_path, capsys):
    photos, boxes, _ = nets
    command = ["train", "multibox", "--data", photos, "--out", tmp_path / "run", *QUICK.split()]
    assert run(*command, "--init", boxes, "--num-boxes", 8, "--samples-per-image", 4, "--freeze-features") == 0
    printed = capsys.readouterr().out
    assert "6 images with 15 boxes of 2 classes" in printed and "input of 59 px" in printed
    assert f"10 of 10 layers have the weights of {boxes}" in printed and "4 squares per image" in printed
    before, after = load_multibox(boxes), load_multibox(tmp_path / "run" / LAST)
    assert torch.equal(before.priors, after.priors) and before.net.architecture == after.net.architecture
    pairs = list(zip(before.net.conv_layers.parameters(), after.net.conv_layers.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)  # frozen
    apart = (before.net.fc_layers[-1].weight - after.net.fc_layers[-1].weight).abs()
    assert (
        0 < apart.max() and apart.mean() < 0.2 * before.net.fc_layers[-1].weight.std()
    )  # a few steps from where it was
    net = load(nets[2])
    assert net.background and net.class_names == ["disc", "square", "background"]


def test_a_resumed_run_ends_with_the_same_weights(multi_object, tmp_path):
    command = ["train", "multibox", "--data", multi_object, *QUICK.split(), *TINY.split()]
    command += ["--matching", "prediction", "--no-priors", "--per-class"]
    assert run(*command, "--out", tmp_path / "once", "--epochs", 2) == 0
    assert run(*command, "--out", tmp_path / "twice") == 0
    assert run(*command, "--out", tmp_path / "twice", "--epochs", 2, "--resume") == 0
    once, twice = (load_multibox(tmp_path / out / LAST) for out in ("once", "twice"))
    assert once.priors is None and len(once.class_names) == 10
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_a_resumed_run_with_other_options_is_refused(multi_object, tmp_path, capsys):
    command = ["train", "multibox", "--data", multi_object, *QUICK.split(), *TINY.split()]
    command += ["--out", tmp_path / "run"]
    assert run(*command) == 0
    assert run(*command, "--epochs", 2, "--resume", "--alpha", 2, "--matching", "prediction") == 1
    printed = capsys.readouterr().err
    assert "alpha was" in printed and "matching was prior and is now prediction" in printed


@pytest.mark.parametrize(
    ("head", "setting", "words"),
    [
        ("multibox", ["--no-priors"], "matching must be prediction"),
        ("multibox", ["--image-size", "20"], "an image of 20 px is too small"),
        ("multibox", ["--from-scratch", "--freeze-features"], "needs the weights of a trained net"),
        ("multibox", ["--num-boxes", "99"], "are too few for 99 priors"),
        ("multibox", ["--alpha", "-1", "--num-boxes", "2"], "alpha must be at least"),
        ("multibox", ["--samples-per-image", "6"], "must be a multiple of 4"),
        ("box-classifier", ["--samples-per-image", "4"], "must be a multiple of 3"),
        ("multibox", ["--init", "nothing.safetensors"], "no such file"),
        ("multibox", ["--net", "small", "--init", str(SHIPPED_WEIGHTS)], "does not go with init"),
        ("multibox", ["--dropout", "1"], "dropout must be at least 0"),
        ("box-classifier", ["--init", "BOXES"], "has no classes"),
        ("box-classifier", ["--lr", "nan"], "lr must be at least 0"),
    ],
)
def test_bad_settings(nets, tmp_path, capsys, head, setting, words):
    given = [str(nets[1]) if part == "BOXES" else part for part in setting]
    command = ["train", head, "--data", nets[0], "--out", tmp_path / "run", *QUICK.split()]
    command += ["--samples-per-image", 4] if head == "multibox" else []
    assert run(*command, *given) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_bad_images_are_listed_before_training(tmp_path, capsys):
    folder = voc(tmp_path / "photos", 4)
    for xml in folder.glob("*.xml"):
        size = "</filename><size><width>200</width><height>150</height></size>"
        xml.write_text(xml.read_text().replace("</filename>", size))
    (folder / "2.png").write_bytes(b"no picture")
    for head in ("multibox", "box-classifier"):
        command = ["train", head, "--data", folder, "--out", tmp_path / head, *QUICK.split()]
        assert run(*command) == 1
        printed = capsys.readouterr().err
        assert "1 of 4 images cannot be used" in printed and "2.png" in printed and not (tmp_path / head).exists()
    assert run(*command, "--skip-invalid", "--samples-per-image", 3) == 0


def test_results_and_pictures(nets, tmp_path, capsys):
    photos, boxes, classifier = nets
    out = tmp_path / "detections"
    command = ["detect", photos, "--method", "multibox", "--weights", boxes, "-o", out, "--min-score", 0]
    command += ["--classifier", classifier, "--max-detections", 3, "--crops", "centre", "--nms-iou", 0.4]
    assert run(*command) == 0
    options = {"crops": "centre", "max_detections": 3, "nms_iou_threshold": 0.4, "score_threshold": 0.0}
    for file in sorted(out.glob("*.png.json")):
        image = read_image(photos / file.name.removesuffix(".json"))
        expected = detect_multibox(load_multibox(boxes), load(classifier), image, **options)
        objects = json.loads(file.read_text())["objects"]
        assert len(objects) == len(expected)
        columns = (expected.boxes.tolist(), expected.labels, expected.scores)
        for one, box, label, score in zip(objects, *columns, strict=True):
            assert one["box"] == pytest.approx(box, abs=0.01) and one["class"] == ["disc", "square"][label]
            assert one["score"] == pytest.approx(float(score), abs=1e-4)
        with Image.open(out / file.name.replace(".json", ".png")) as picture:
            assert picture.width > 400
    assert len(list(out.glob("*.png.json"))) == 6
    assert all(entry["category"] in ("disc", "square") for entry in json.loads((out / "coco.json").read_text()))
    capsys.readouterr()
    assert run(*command) == 0
    assert "6 of 6 images are done already" in capsys.readouterr().err
    assert run(*command, "--max-detections", 4) == 1
    assert "results of other settings" in capsys.readouterr().err


def test_class_agnostic_boxes(nets, capsys):
    """Without a classifier a box is an object."""
    assert run("detect", nets[0] / "0.png", "--method", "multibox", "--weights", nets[1], "--min-score", 0.001) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 10 and all(line.startswith("object ") for line in lines)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["--method", "multibox"], "needs --weights"),
        (
            ["--method", "multibox", "--weights", "BOXES", "--postprocess", "nms"],
            "--postprocess does not apply to --method multibox",
        ),
        (
            ["--method", "multibox", "--weights", "BOXES", "--scales", "six:1"],
            "--scales does not apply to --method multibox",
        ),
        (
            ["--method", "multibox", "--weights", "BOXES", "--memory-limit", "9"],
            "--memory-limit does not apply to --method multibox",
        ),
        (
            ["--method", "multibox", "--weights", "BOXES", "--min-score", "0.5,0.4"],
            "--min-score must be one number for",
        ),
        (["--crops", "centre"], "--crops does not apply to --method overfeat"),
        (["--postprocess", "nms", "--match-threshold", "0.4"], "--match-threshold does not apply to postprocess nms"),
        (["--classifier", "WHAT"], "--classifier does not apply to --method overfeat"),
        (["--method", "multibox", "--weights", "WHAT"], "holds no DeepMultiBox; train one"),
        (["--method", "multibox", "--weights", "BOXES", "--classifier", "BOXES"], "holds a DeepMultiBox"),
        (["--weights", "BOXES"], "holds a DeepMultiBox, whose boxes are class-agnostic"),
        (["--method", "multibox", "--weights", "BOXES", "--labels", "x"], "have no names; give --classifier"),
    ],
)
def test_flags_that_do_not_go_together(nets, capsys, setting, words):
    files = {"BOXES": str(nets[1]), "WHAT": str(nets[2])}
    assert run("detect", nets[0] / "0.png", *(files.get(part, part) for part in setting)) == 1
    assert words in capsys.readouterr().err


def test_bad_images_are_skipped(nets, tmp_path, capsys):
    folder = shutil.copytree(nets[0], tmp_path / "photos")
    (folder / "1.png").write_bytes(b"broken")
    assert run("detect", folder, "--method", "multibox", "--weights", nets[1], "-o", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert "1 of 6 images failed" in printed and "1.png" in printed
    assert len(list((tmp_path / "out").glob("*.png.json"))) == 5


def test_figures_of_a_data_set(nets, tmp_path, capsys):
    photos, boxes, classifier = nets
    results, plot = tmp_path / "r.json", tmp_path / "p.png"
    command = ["evaluate", "multibox", "--data", photos, "--weights", boxes, "-o", results]
    assert run(*command, "--classifier", classifier, "--plot", plot) == 0
    printed, figures = capsys.readouterr().out, json.loads(results.read_text())
    assert figures["images"] == 6 and figures["objects"] == 15 and figures["crops"] == 10
    assert len(figures["rate"]) == 100 and figures["rate"] == sorted(figures["rate"])
    assert set(figures["windows"]) == {"1", "3", "5", "10", "25"} and set(figures["ap"]) == {"disc", "square"}
    assert f"{100 * figures['rate'][9]:6.2f} %" in printed and "detection@5" in printed and "mean of all" in printed
    with Image.open(plot) as picture:
        assert picture.width > 400
    assert run(*command, "--crops", "centre") == 0
    alone = json.loads(results.read_text())
    assert alone["crops"] == 1 and "map" not in alone and "windows" not in alone


def test_classes_that_the_classifier_does_not_know(nets, multi_object, capsys):
    command = ["evaluate", "multibox", "--data", multi_object, "--weights", nets[1], "--classifier", nets[2]]
    assert run(*command) == 1
    assert "classes of the boxes that the net does not know" in capsys.readouterr().err


def test_a_net_with_boxes_of_classes(multi_object, tmp_path, capsys):
    names = [str(digit) for digit in range(10)]
    model = MultiBox(ARCHITECTURES["small"].with_input_size(47, (8,)), 3, names, torch.rand(3, 4).sort().values)
    save_multibox(model, tmp_path / "m.safetensors")
    command = ["evaluate", "multibox", "--data", multi_object, "--weights", tmp_path / "m.safetensors"]
    assert run(*command, "-o", tmp_path / "r.json", "--max-images", 3) == 0
    figures = json.loads((tmp_path / "r.json").read_text())
    assert "map" in figures and "windows" not in figures
    assert run(*command, "--classifier", SHIPPED_WEIGHTS) == 1
    assert "leave --classifier out" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on(nets, tmp_path):
    folder = voc(tmp_path / "photos", 40, size=(90, 110), objects=2)
    given = ["multibox", "--data", folder, "--weights", nets[1], "--classifier", nets[2]]
    check_a_killed_evaluation_goes_on(given, tmp_path)


def test_two_processes_end_with_one_net(tmp_path):
    folder = voc(tmp_path / "photos", 6, size=(60, 64), objects=1)
    options = "--epochs 2 --samples-per-image 4 --batch-size 4 --num-boxes 4 --image-size 47 --dropout 0"
    options += " --device cpu --num-workers 0 --optimizer sgd --lr 0.001"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["overfeat", "train", "multibox", "--data", folder, "--out", tmp_path / "run", *options.split()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert run("train", "multibox", "--data", folder, "--out", tmp_path / "one", *options.split()) == 0
    two, one = (load_multibox(tmp_path / out / LAST) for out in ("run", "one"))
    assert torch.equal(two.priors, one.priors)
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


def test_what_is_refused_leaves_nothing_behind(nets, tmp_path, capsys):
    command = ["detect", nets[0] / "0.png", "--method", "multibox", "--weights", nets[1], "-o", tmp_path / "out"]
    assert run(*command, "--postprocess", "nms") == 1 and not (tmp_path / "out").exists()
    assert run(*command) == 0
    both = tmp_path / "same.png"
    assert run("evaluate", "multibox", "--data", nets[0], "--weights", nets[1], "-o", both, "--plot", both) == 1
    assert "named by -o and by --plot" in capsys.readouterr().err and not both.exists()


def test_difficult_objects_alone_train_nothing(tmp_path, capsys):
    folder = voc(tmp_path / "photos", 3)
    for xml in folder.glob("*.xml"):
        xml.write_text(xml.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    for head in ("multibox", "box-classifier"):
        command = ["train", head, "--data", folder, "--out", tmp_path / head, *QUICK.split()]
        assert run(*command, *(["--num-boxes", 2] if head == "multibox" else [])) == 1
        assert "difficult" in capsys.readouterr().err and not (tmp_path / head).exists()
