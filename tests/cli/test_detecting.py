"""`overfeat evaluate detector` and `detect`; from annotated images to boxes."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detector_commands import run, train_detector
from killed_evaluation import check_a_killed_evaluation_goes_on
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from voc_files import voc

from overfeat import load, load_regressor, save
from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.detection.predict import detect
from overfeat.metrics.average_precision import PROTOCOLS
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.thresholds import DetectionThresholds
from overfeat.models.transfer import with_background

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def few_validation_tiles(monkeypatch):
    monkeypatch.setattr("overfeat.detection.train.VALIDATION_TILES", 40)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The shipped classifier as a detector, with an untrained background class and regressor."""
    torch.manual_seed(0)
    net = with_background(load(SHIPPED_WEIGHTS), DIGITS)
    net.scale_factors, net.flip = (0.6, 1.0), False
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    save(net, path, regressor=BoxRegressor(net.architecture, box_features="unpooled"))
    return path


def test_from_annotated_images_to_boxes(multi_object, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train_detector(multi_object, folder, "--context", "--epochs", "2") == 0
    printed = capsys.readouterr().out
    assert "small, window 47 px, as given" in printed and "images are evaluated at 0.5 (28 %), 0.8 (72 %)" in printed
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(log) == 2 and {"validation_loss", "train_missed_error", "train_iou_error"} <= set(log[0])
    weights = folder / "net.safetensors"
    net = load(weights)
    for stated in ("being chosen on up to 60 validation images", str(net.thresholds)):
        assert f"thresholds for net.safetensors: {stated}\n" in printed, stated
    assert net.background and net.scale_factors == (0.5, 0.8) and net.context is not None and not net.flip
    assert net.thresholds is not None, "chosen on the validation data"
    assert load_regressor(weights).num_classes is None

    results, plot = tmp_path / "results.json", tmp_path / "curves.png"
    command = ["evaluate", "detector", "--data", multi_object, "--weights", weights, "-o", results, "--plot", plot]
    assert main([*map(str, command)]) == 0
    figures = json.loads(results.read_text())
    assert figures["images"] == 4 and set(figures["map"]) == {*PROTOCOLS, "coco"}
    for protocol, mean in figures["map"].items():
        averages = [of_class[protocol] for of_class in figures["ap"].values()]
        assert mean == pytest.approx(sum(averages) / len(averages)) and 0 <= mean <= 1
    assert "mean" in capsys.readouterr().out
    with Image.open(plot) as picture:
        assert picture.width > 400

    out = tmp_path / "detections"
    command = ["detect", multi_object / "test", "--weights", weights, "-o", out, "--min-score", "0"]
    assert main([str(part) for part in command]) == 0
    printed = capsys.readouterr().out
    for file in sorted(out.glob("*.png.json")):
        path = multi_object / "test" / file.name.removesuffix(".json")
        expected = detect(net, load_regressor(weights), read_image(path), min_score=0)
        objects = json.loads(file.read_text())["objects"]
        assert len(objects) == len(expected) and str(path) in printed
        columns = (expected.boxes.tolist(), expected.labels, expected.counts)
        for one, box, label, count in zip(objects, *columns, strict=True):
            assert one["box"] == pytest.approx(box, abs=0.01) and one["class"] == net.class_names[label]
            assert one["count"] == count and 0 <= one["score"] < 1
        assert (out / f"{path.name}.png").exists()
    assert main([str(part) for part in command]) == 0
    assert "4 of 4 images are done already" in capsys.readouterr().err


def test_the_shipped_detector_and_coco_s_own_tool(multi_object, tmp_path):
    """That tool reads what `detect` writes and gives what `evaluate` gives; most digits are detected."""
    results, ids = tmp_path / "results.json", multi_object / "test.json"
    assert run("evaluate", "detector", "--data", multi_object, "-o", results) == 0
    figures = json.loads(results.read_text())
    assert run("detect", multi_object / "test", "-o", tmp_path / "coco", "--min-score", 0, "--coco-ids", ids) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(multi_object / "test.json")
        evaluator = COCOeval(truth, truth.loadRes(str(tmp_path / "coco/coco.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert figures["coco"]["AP50"] == pytest.approx(evaluator.stats[1], abs=0.01) and figures["coco"]["AP50"] > 0.5
    detected = json.loads((tmp_path / "coco/coco.json").read_text())
    everything = figures["at_iou"]["0.5"]["all"]
    lowest = dict(zip("0123456789", figures["min_score"], strict=True))  # the weights' own, one for each class
    assert everything["detections"] == sum(entry["score"] >= lowest[entry["category"]] for entry in detected) > 5


def test_lowest_scores_of_the_weights(multi_object, tmp_path, capsys):
    """`detect` and `evaluate` use those of each class, and say so; others can be given."""
    weights, out, results = (tmp_path / name for name in ("net.safetensors", "detections", "results.json"))
    net, lowest = load(SHIPPED_DETECTOR), [1.0, 1.0, *[0.4] * 8]
    net.thresholds = DetectionThresholds(min_score=tuple(lowest))
    save(net, weights, regressor=load_regressor(SHIPPED_DETECTOR))
    assert run("detect", multi_object / "test", "--weights", weights, "-o", out) == 0
    assert "no object with a score of 0.4 to 1, by its class, or more" in capsys.readouterr().err
    detected = json.loads((out / "coco.json").read_text())
    assert detected and min(entry["score"] for entry in detected) >= 0.4
    assert not {"0", "1"} & {entry["category"] for entry in detected}
    command = ["evaluate", "detector", "--data", multi_object, "--weights", weights]
    assert run(*command, "-o", results) == 0
    printed, figures = capsys.readouterr().out, json.loads(results.read_text())
    assert figures["min_score"] == lowest and "min scores: as chosen on validation images" in printed
    points = figures["at_iou"]["0.5"]
    assert points["all"]["detections"] == len(detected) and points["classes"]["1"]["detections"] == 0
    assert run(*command, "--min-score", ",".join(["0.3"] * 10)) == 0
    assert "min scores:" not in capsys.readouterr().out
    for given in ("0.5,0.4", "0.5,2"):
        with contextlib.suppress(SystemExit):
            assert run(*command, "--min-score", given) != 0
        assert "--min-score" in capsys.readouterr().err


def test_figures_and_pictures_of_mistakes(multi_object, tmp_path, capsys):
    """Tables, JSON and pictures agree; a second run replaces the pictures of the first."""
    results, folder = tmp_path / "results.json", tmp_path / "mistakes"
    command = ["evaluate", "detector", "--data", multi_object, "--iou", 0.75, 0.4, "--min-score", 0.2, "-o", results]
    assert run(*command, "--mistakes", folder, "--max-mistakes", 3) == 0
    printed, figures = capsys.readouterr().out, json.loads(results.read_text())
    assert figures["at_iou"].keys() == {"0.4", "0.75"} and figures["min_score"] == 0.2
    for min_iou, points in figures["at_iou"].items():
        everything, counts = points["all"], points["confusion"]
        assert everything["objects"] == figures["objects"] == sum(map(sum, counts[:-1]))
        assert everything["recall"] == pytest.approx(sum(counts[k][k] for k in range(10)) / figures["objects"])
        assert f"at an IoU of {min_iou}; precision, recall and F1" in printed
        assert f"{100 * everything['best_f1']:.2f}" in printed
    assert figures["at_iou"]["0.4"]["all"]["recall"] > figures["at_iou"]["0.75"]["all"]["recall"]
    mistakes = figures["mistakes"]
    missed = sum(mistakes["counts"]["miss"].values())
    assert mistakes["iou"] == 0.75 and len(mistakes["miss"]) == min(3, missed) > 0
    assert f"misses: {missed} (" in printed and f"{len(mistakes['miss'])} misses and " in printed
    index = json.loads((folder / "mistakes.json").read_text())
    listed = [entry["picture"] for kind in ("miss", "false positive") for entry in index[kind]]
    assert {path.name for path in folder.glob("*-0*.png")} == set(listed) and "miss-001.png" in listed
    for entry, drawn in zip(mistakes["miss"], index["miss"], strict=True):
        assert drawn == {"picture": drawn["picture"], **entry} and (multi_object / "test").samefile(
            Path(entry["image"]).parent
        )
    assert (folder / "misses.png").exists()
    assert run(*command, "--mistakes", folder, "--max-mistakes", 1) == 0
    assert [path.name for path in folder.glob("miss-*.png")] == ["miss-001.png"]


def test_mistakes_write_over_nothing_of_others(multi_object, tmp_path, capsys):
    """Refused before the work."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index/mistakes.json").write_text("[1]")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/miss-001.png")
    command = ["evaluate", "detector", "--data", multi_object]
    cases = {
        tmp_path / "index": "exists and holds no results",
        tmp_path / "photos": "was not drawn by overfeat",
        multi_object / "test": "holds the images themselves",
    }
    for folder, words in cases.items():
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert run(*command, "--mistakes", folder) == 1
        assert words in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert run(*command, "--iou", 0.5, 0) == 1
    assert "--iou must be above 0 and at most 1, not 0.5, 0" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on(weights, tmp_path):
    folder = voc(tmp_path / "photos", 8, size=(90, 110), objects=2)
    data = tmp_path / "labelled"
    shutil.copytree(folder, data)
    for path in data.glob("*.xml"):
        path.write_text(path.read_text().replace("disc", "0").replace("square", "1"))
    check_a_killed_evaluation_goes_on(["detector", "--data", data, "--weights", weights], tmp_path)


def test_ignored_pairs(multi_object, tmp_path, capsys):
    """Lines of an image's number and a class take that class's objects there out of ILSVRC's figure alone."""
    truth = json.loads((multi_object / "test.json").read_text())
    name = {category["id"]: category["name"] for category in truth["categories"]}
    label = name[truth["annotations"][0]["category_id"]]
    listed, plain = tmp_path / "ignore_list.txt", ["evaluate", "detector", "--data", multi_object, "-o"]
    listed.write_text("".join(f"{number} {label}\n" for number in range(1, len(truth["images"]) + 1)) + "\n1 zebra\n")
    command = [*plain, tmp_path / "r.json", "--ignore-list", listed]
    assert run(*command) == run(*plain, tmp_path / "all.json") == 0
    figures, every = (json.loads((tmp_path / file).read_text()) for file in ("r.json", "all.json"))
    assert figures["objects"] == every["objects"] == len(truth["annotations"])
    assert figures["ap"][label].pop("ilsvrc") is None and every["ap"][label].pop("ilsvrc") is not None
    assert figures["ap"] == every["ap"]
    listed.write_text(f"1 {label}\nseven 7\n")
    assert run(*command) == 1
    assert "line 2: the number of an image and a class are needed, not 'seven 7'" in capsys.readouterr().err


def test_ids_of_coco(weights, multi_object, tmp_path, capsys):
    """Without annotations images and classes are numbered from 1; annotations of other images are refused."""
    out = tmp_path / "detections"
    assert run("detect", multi_object / "test", "-o", out) == 0
    results = json.loads((out / "coco.json").read_text())
    objects = [json.loads(path.read_text())["objects"] for path in sorted(out.glob("*.png.json"))]
    assert [entry["image_id"] for entry in results] == [i for i, entries in enumerate(objects, 1) for _ in entries]
    classes = [int(entry["class"]) for entries in objects for entry in entries]
    assert [entry["category_id"] for entry in results] == [1 + number for number in classes]
    capsys.readouterr()
    (tmp_path / "two").mkdir()
    shutil.copy(next((multi_object / "test").glob("*.png")), tmp_path / "two" / "other.png")
    command = ["detect", tmp_path / "two", "--weights", weights, "-o", tmp_path / "o2"]
    assert run(*command, "--coco-ids", multi_object / "test.json") == 1
    assert "other.png" in capsys.readouterr().err and not (tmp_path / "o2").exists()


def test_bad_images_are_skipped(weights, tmp_path, capsys):
    folder = voc(tmp_path / "photos", 3)
    (folder / "1.png").write_bytes(b"broken")
    assert run("detect", folder, "--weights", weights, "-o", tmp_path / "out") == 1
    messages = capsys.readouterr().err
    assert "1 of 3 images failed" in messages and "1.png" in messages
    assert sorted(path.name for path in (tmp_path / "out").glob("?.png.json")) == ["0.png.json", "2.png.json"]
    assert (tmp_path / "out/coco.json").exists()


def test_a_classifier_is_no_detector(tmp_path, capsys):
    command = ["detect", voc(tmp_path / "photos", 1), "--weights", SHIPPED_WEIGHTS, "-o", tmp_path / "out"]
    assert run(*command) == 1
    assert "no background class; train one with `overfeat train detector`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_someone_else_s_results_stay(weights, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/coco.json").write_text("mine")
    assert run("detect", voc(tmp_path / "photos", 1), "--weights", weights, "-o", tmp_path / "out") == 1
    assert "holds coco.json of something else" in capsys.readouterr().err
    assert (tmp_path / "out/coco.json").read_text() == "mine"


def test_difficult_objects_alone(weights, tmp_path, capsys):
    """ILSVRC has none, so its figure is there; the others are missing, in valid JSON and a picture without curves."""
    folder, out = voc(tmp_path / "photos", 2), tmp_path / "r.json"
    for xml in folder.glob("*.xml"):
        text = xml.read_text().replace("disc", "0").replace("square", "1")
        xml.write_text(text.replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    command = ["evaluate", "detector", "--data", folder, "--weights", weights, "-o", out, "--plot", tmp_path / "p.png"]
    assert run(*command) == 0
    figures = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert figures["map"]["voc"] is None and figures["map"]["coco"] is None and figures["map"]["ilsvrc"] is not None
    assert figures["objects"] == 3 and (tmp_path / "p.png").exists()
    for xml in folder.glob("*.xml"):
        xml.write_text(f"<annotation><filename>{xml.stem}.png</filename></annotation>")
    assert run(*command) == 1
    assert "no usable box" in capsys.readouterr().err


def test_a_plot_writes_over_nothing_of_others(weights, multi_object, tmp_path, capsys):
    """Earlier plots are replaced; annotations, images and results are refused before the work."""
    folder = tmp_path / "images"
    shutil.copytree(multi_object, folder)
    image = next((folder / "test").glob("*.png"))
    command = ["evaluate", "detector", "--data", folder, "--weights", weights, "--max-images", 2, "--plot"]
    for target, words in ((image, "was not drawn by overfeat"), (folder / "test.json", "end"), (tmp_path / "p", "end")):
        before = target.read_bytes() if target.exists() else None
        assert run(*command, target) == 1
        assert words in capsys.readouterr().err and (target.read_bytes() if target.exists() else None) == before
    for _ in range(2):
        assert run(*command, tmp_path / "p.png") == 0


@pytest.mark.parametrize("name", ["settings", "coco"])
def test_names_of_shared_files_are_refused(weights, tmp_path, capsys, name):
    shutil.copy(voc(tmp_path / "photos", 1) / "0.png", tmp_path / name)
    assert run("detect", tmp_path / name, "--weights", weights, "-o", tmp_path / "out") == 1
    assert f"its result would be called {name}.json" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_second_run_adds_to_the_first(tmp_path):
    shipped, out = ASSETS / "multi-object" / "test", tmp_path / "out"
    for number in (12, 4):
        assert run("detect", shipped / f"{number:05}.png", "-o", out) == 0
    results = json.loads((out / "coco.json").read_text())
    assert {(entry["image_id"], entry["file_name"]) for entry in results} == {(1, "00004.png"), (2, "00012.png")}
    assert run("detect", shipped / "00004.png", "--coco-ids", shipped.parent / "test.json") == 1


def test_too_many_candidates_and_thresholds_of_classes(weights, tmp_path, capsys):
    """A warning of one line, once for all images; a match threshold for each class, of which one is missing."""
    folder = voc(tmp_path / "photos", 2)
    command = ["detect", folder, "--weights", weights, "--score-threshold", "0.01", "--min-score", "0"]
    process = [sys.executable, "-m", "overfeat", *map(str, command), "--max-candidates", "50"]
    done = subprocess.run(process, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("\n") > 2
    lines = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert len(lines) == 2 and lines[0] == f"warning: {folder}: left out 2 .xml"
    assert lines[1].startswith("warning: more than 50 windows score 0.01 or more; only the best are used. A net")
    assert run(*command, "--match-threshold", ",".join(["0.5"] * 9)) == 1
    assert "--match-threshold must be one number or 10, one for each class" in capsys.readouterr().err
    assert run(*command, "--match-threshold", ",".join(["0.5"] * 10), "--class-nms-iou", "0.3") == 0
    fewer = capsys.readouterr().out.splitlines()
    assert run(*command) == 0
    assert 2 < len(fewer) < len(capsys.readouterr().out.splitlines())
