"""overfeat classify, features, convert, demo: real files, and what happens to bad ones."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from layer_shape import layer_shape
from PIL import Image
from safetensors import safe_open

import overfeat
from overfeat.cli.assets import ASSETS, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import list_images, read_image
from overfeat.data.synthetic.images import make_image

OVERVIEW = Path(__file__).resolve().parents[2] / "docs" / "overview.jpg"  # README's picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small net of three classes whose scores differ between images."""
    torch.manual_seed(0)
    net = overfeat.build("small", 3)
    net.class_names = ["ash", "birch", "cedar"]
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    overfeat.save(net, path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of six real pictures of different sizes and kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scene = Image.open(list_images(ASSETS / "scenes")[0]).convert("RGB")
    scene.save(folder / "a.jpg")
    scene.resize((90, 130)).convert("L").save(folder / "b.png")
    scene.resize((120, 100)).convert("CMYK").save(folder / "c.jpg")
    scene.resize((70, 64)).convert("RGBA").save(folder / "d.png")
    scene.resize((30, 20)).save(folder / "e.png")  # smaller than the window
    turned = Image.Exif()
    turned[0x0112] = 6
    scene.resize((100, 60)).save(folder / "f.jpg", exif=turned)
    return folder


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "overfeat", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_the_digit_net_classifies_and_localizes_the_shipped_images(capsys):
    coco = json.loads((ASSETS / "scenes" / "labels.json").read_text())
    correct, localized = 0, 0
    for path in list_images(ASSETS / "scenes"):
        assert main(["classify", "-n", "1", "--weights", str(SHIPPED_WEIGHTS), str(path)]) == 0
        name, score = capsys.readouterr().out.split()
        assert 0 < float(score) <= 1
        correct += name == coco[path.name]
        assert main(["localize", str(path)]) == 0
        predictions = [line.split() for line in capsys.readouterr().out.splitlines()]
        true = torch.from_numpy(make_image("test", 0, int(path.stem)).boxes)
        boxes = torch.tensor([[float(edge) for edge in prediction[2:]] for prediction in predictions]).double()
        localized += bool((overfeat.iou(boxes, true)[[p[0] == coco[path.name] for p in predictions]] >= 0.5).any())
    assert correct >= len(coco) - 1 and localized >= len(coco) - 2 and len(coco) >= 4


def test_classify_names_imagenet_s_classes_by_default(tmp_path, capsys):
    photo = ASSETS / "photos" / "coffee.jpg"
    for borders in ("exact", "neighbours"):
        assert main(["classify", str(photo), "--scales", "six:2", "--borders", borders, "-n", "1"]) == 0
        name, score = capsys.readouterr().out.split()
        assert name == "espresso" and float(score) > 0.5


def test_classify_prints_the_library_s_scores(weights, photos, capsys):
    assert main(["classify", "--weights", str(weights), "-n", "9", str(photos / "a.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    net = overfeat.load(weights)
    expected = overfeat.classify(net, read_image(photos / "a.jpg"))[0]
    assert [line.split()[0] for line in lines] == [net.class_names[i] for i in expected.argsort(descending=True)]
    assert np.allclose([float(line.split()[1]) for line in lines], expected.sort(descending=True).values, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["--voting", "centre"],
        ["--voting", "ten"],
        ["--scales", "1.0,100x120", "--stride", "coarse", "--no-flip", "--memory-limit", "8"],
    ],
)
def test_voting(weights, photos, options, capsys):
    assert main(["classify", "--weights", str(weights), *options, str(photos / "a.jpg")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_bad_images_are_skipped_and_a_second_run_continues(weights, photos, tmp_path, capsys):
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("no picture")
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:700])
    out = tmp_path / "results"
    command = ["classify", "--weights", str(weights), str(photos), "-o", str(out)]
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert "3 of 9 images failed" in printed
    assert all(name in printed for name in ("empty.png", "text.jpg", "cut.jpg"))
    done = sorted(path.name for path in out.glob("*.json") if path.name != "settings.json")
    assert done == [f"{name}.json" for name in ("a.jpg", "b.png", "c.jpg", "d.png", "e.png", "f.jpg")]
    assert json.loads((out / "a.jpg.json").read_text())["classes"][0]["class"] in ("ash", "birch", "cedar")

    before = (out / "a.jpg.json").stat().st_mtime_ns
    for bad in ("empty.png", "text.jpg", "cut.jpg"):
        (photos / bad).unlink()
    (out / "b.png.json").unlink()
    assert main(command) == 0
    assert "5 of 6 images are done already" in capsys.readouterr().err
    assert (out / "b.png.json").exists() and (out / "a.jpg.json").stat().st_mtime_ns == before

    assert main([*command, "--stride", "fine"]) == 0  # the default
    assert main([*command, "--stride", "coarse"]) == 1
    assert "other settings" in capsys.readouterr().err
    (out / "settings.json").write_bytes(b"\xff\xfe")
    assert main(command) == 1
    assert "other settings" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    os.link(photos / "b.png", other / "a.jpg")  # another picture of the same name
    assert main([*command[:-3], str(other), "-o", str(out)]) == 1
    assert "other settings" in capsys.readouterr().err


def test_a_killed_folder_run_leaves_whole_files_and_continues(weights, photos, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(40):
        os.link(photos / "a.jpg", many / f"{i:02}.jpg")
    out = tmp_path / "features"
    command = [sys.executable, "-m", "overfeat", "features", "--weights", weights, "-L", "3", many, "-o", out]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(out.glob("[0-9]*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = sorted(out.glob("[0-9]*.npz"))
    assert 3 <= len(first) < 40
    for path in first:
        assert np.load(path)["features"].ndim == 3
    assert subprocess.run(list(map(str, command)), capture_output=True).returncode == 0
    assert len(list(out.glob("[0-9]*.npz"))) == 40
    assert not list(out.glob(".part-*"))


@pytest.mark.parametrize("file_format", ["npz", "safetensors", "text"])
def test_features_are_the_layer_s_output(weights, photos, tmp_path, file_format):
    target = tmp_path / "out.features"
    command = ["features", "--weights", weights, "-L", "9", "--format", file_format, "-o", target, photos / "b.png"]
    assert main(list(map(str, command))) == 0
    expected = overfeat.load(weights).layer_output(read_image(photos / "b.png")[None], 9)[0].detach().numpy()
    if file_format == "npz":
        actual = np.load(target)["features"]
    elif file_format == "safetensors":
        with safe_open(target, "np") as file:
            actual = file.get_tensor("features")
    else:
        head, values, *rest = target.read_text().split("\n")
        actual = np.array(values.split(), dtype=float).reshape([int(side) for side in head.split()])
        assert rest == [""]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_features_as_in_2013(weights, photos, capsys):
    """classify -f and features --format text print the same: channels, rows, columns, then the values."""
    assert main(["classify", "-f", "--weights", str(weights), str(photos / "a.jpg")]) == 0
    first = capsys.readouterr().out
    assert main(["features", "--format", "text", "--weights", str(weights), str(photos / "a.jpg")]) == 0
    assert capsys.readouterr().out == first
    net = overfeat.load(weights)
    image = read_image(photos / "a.jpg")
    shape = layer_shape(net.architecture, net.architecture.feature_layer, *image.shape[1:], 3)
    assert first.splitlines()[0] == " ".join(map(str, shape))


def test_layer_19_of_the_digit_net(photos, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["features", "--weights", str(SHIPPED_WEIGHTS), str(photos / "a.jpg")]
    assert main([*command, "-L", "19"]) == 0
    assert np.load(tmp_path / "a.jpg.npz")["features"].shape[0] == 10
    assert main([*command, "-L", "99"]) == 1
    assert "--layer must be one of 0..19, the layers of the small net, not 99" in capsys.readouterr().err


def test_a_small_image_is_enlarged(weights, photos, tmp_path):
    assert main(["features", "--weights", str(weights), str(photos / "e.png"), "-o", str(tmp_path / "e.npz")]) == 0
    assert np.load(tmp_path / "e.npz")["features"].shape[1:] == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "--weights", "{digits}", "missing.jpg"], "missing.jpg: no such file"),
        (["classify", "--weights", "missing.safetensors", "{photo}"], "missing.safetensors: no such file"),
        (["classify", "-l", "{photo}"], "-l is the accurate net, which needs its weights"),
        (["classify", "-d", "missing", "{photo}"], "net_weight_0: no such file"),
        (["classify", "--weights", "{digits}", "--scales", "20x500", "{photo}"], "smaller than the small net's window"),
        (
            ["features", "--weights", "{digits}", "-o", "/dev/null", "{photo}"],
            "/dev/null: cannot be written; name a file",
        ),
        (["features", "--weights", "{digits}", "{folder}"], "need a folder to go to"),
        (["features", "--weights", "{digits}", "{photo}", "-o", "{photo}"], "is the image itself"),
        (["convert", "--net", "fast", "{photo}", "{photo}"], "is the file to convert"),
        (["convert", "{digits}", "{photo}"], "a.jpg: exists, and may be hard to come by; name another file"),
        (["localize", "--weights", "{state}", "{photo}"], "not a readable safetensors file"),
        (
            ["classify", "--weights", "{digits}", "--scales", "0.001", "{photo}"],
            "at 0.001 times its size the image has less than 4 pixels a side; --scales must be larger",
        ),
        (
            ["evaluate", "detector", "--data", "{folder}", "--max-mistakes", "3"],
            "--max-mistakes does not apply to a run without -o or --mistakes",
        ),
        (
            ["classify", "--weights", "{digits}", "--device", "meta", "{photo}"],
            "--device must be a CPU or CUDA device, not 'meta'",
        ),
        (["classify", "--weights", "{digits}", "--memory-limit", "1", "--scales", "1.0", "{photo}"], None),
        (
            ["classify", "--weights", "{digits}", "--device", "abacus", "{photo}"],
            "--device must be auto, cpu, cuda, cuda:1, ..., not 'abacus'",
        ),
        (["classify", "--weights", "{digits}", "--max-pixels", "100", "{photo}"], "more than the limit of 100"),
        (["classify", "--weights", "{digits}", "--labels", "{photo}", "{photo}"], "not a text file"),
        (["classify", "--weights", "{digits}", "{folder}", "{photo}", "-o", "{out}"], None),
        (["features", "--weights", "{digits}", "-o", "{photo}/x/out.npz", "{photo}"], "cannot be written"),
        (["features", "--weights", "{digits}", "-o", "{photo}/out", "{folder}"], "cannot be made a folder"),
        (["convert", "{photo}", "x.safetensors"], "of which net?"),
        (["convert", "{state}", "x.safetensors"], "state.pt: holds no net of overfeat's; run it with its module"),
        (["convert", "--net", "fast", "{photo}", "x.safetensors"], "583,683,488"),
        (["convert", "{photo}.safetensors", "x"], "no such file"),
        (["classify", "--voting", "ten", "--scales", "0.5", "{photo}"], "--scales does not apply to --voting ten"),
        (["classify", "--voting", "centre", "--flip", "{photo}"], "--flip does not apply to --voting centre"),
        (["classify", "-L", "3", "--stride", "coarse", "{photo}"], "--stride does not apply to -f and -L"),
        (["demo", "-o", "{photo}"], "cannot be made a folder"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"photo": photos / "a.jpg", "folder": photos, "out": tmp_path / "out", "digits": SHIPPED_WEIGHTS}
    torch.save({}, names.setdefault("state", tmp_path / "state.pt"))
    status = main([argument.format(**names) for argument in arguments])
    printed = capsys.readouterr().err
    assert status == (0 if message is None else 1), printed
    if message:
        assert message in printed and "Traceback" not in printed
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.rglob(".part-*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["classify"],
        ["classify", "--scales", "big", "x.jpg"],
        ["classify", "--scales", "six:7", "x.jpg"],
        ["classify", "--scales", "2", "x.jpg"],
        ["classify", "--scale", "six", "x.jpg"],
        ["detect", "--score", "0.5", "x.jpg"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(weights, photos, tmp_path):
    """A limit on the size of files stands for the full disk: both fail in the middle of writing."""
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from overfeat.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["features", "--weights", weights, "-L", "1", photos, "-o", out]
    process = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
    assert process.returncode == 1
    assert "a.jpg.npz: cannot be written" in process.stderr and "Traceback" not in process.stderr
    assert "b.png" not in process.stderr  # the run stops: the next file would not fit either
    assert [path.name for path in out.iterdir()] == ["settings.json"]
    assert run(*command).returncode == 0  # there is room again: the second run continues


def test_an_endless_strip_is_refused(photos, tmp_path, capsys):
    Image.new("RGB", (1, 90_000)).save(tmp_path / "tall.png")
    assert (
        main(["features", str(tmp_path / "tall.png"), "--max-pixels", "100000", "-o", str(tmp_path / "out.npz")]) == 1
    )
    assert "too narrow" in capsys.readouterr().err
    Image.new("RGB", (90_000, 1)).save(tmp_path / "strip.png")
    assert main(["classify", str(tmp_path / "strip.png")]) == 1
    assert "crop it" in capsys.readouterr().err
    assert main(["features", str(tmp_path / "strip.png"), "--max-pixels", "100000"]) == 1
    assert "too narrow" in capsys.readouterr().err


def test_broken_weights_are_refused(weights, photos, tmp_path, capsys):
    net = overfeat.load(weights)
    with torch.no_grad():
        net.conv_layers[2].weight[0, 0, 0, 0] = float("nan")
    overfeat.save(net, tmp_path / "nan.safetensors")
    assert main(["classify", "--weights", str(tmp_path / "nan.safetensors"), str(photos / "a.jpg")]) == 1
    assert "conv_layers.2.weight holds NaN" in capsys.readouterr().err


def test_labels_travel_with_the_weights(weights, photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("red maple\ngreen oak\nblue fir\n")
    named = tmp_path / "named.safetensors"
    assert main(["convert", str(weights), str(named), "--labels", str(tmp_path / "names.txt")]) == 0
    assert overfeat.load(named).class_names == ["red maple", "green oak", "blue fir"]
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert main(["convert", str(weights), str(named), "--labels", str(tmp_path / "names.txt")]) == 1
    assert "2 names for a net of 3 classes" in capsys.readouterr().err
    assert overfeat.load(named).class_names == ["red maple", "green oak", "blue fir"]


def test_demo_draws_every_image(tmp_path):
    process = run("demo", "-o", tmp_path / "pictures")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert f"{len(pictures)} pictures" in lines[0] and "Nothing is downloaded" in lines[0] and "minute" in lines[1]
    assert {line.split(" -> ")[1] for line in lines if " -> " in line} == set(map(str, pictures))
    folders = ("photos", "scenes", "multi-object/test", "cells")
    photos, digits, multi_object, cells = (list_images(ASSETS / name) for name in folders)
    assert len(pictures) == 2 + len(photos) + len(digits) + len(multi_object) + len(cells)
    for picture in pictures:
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[0] > 300 and pixels.std() > 20
    with Image.open(tmp_path / "pictures" / "overview.png") as drawn, Image.open(OVERVIEW) as shown:
        assert drawn.size == shown.size
        difference = np.asarray(drawn.convert("RGB")).astype(int) - np.asarray(shown)
        assert np.abs(difference).mean() < 8  # JPEG
    for line in (
        "chelsea.png: true: a cat; predicted: Egyptian cat 0.",
        "coffee.jpg: true: a cup of espresso; predicted: espresso ",
        "camera.png: true: a photographer with a camera on a tripod; predicted: tripod 0.",
        "BloodImage_00385.jpg: true: Platelets 3, RBC 14, WBC 1; predicted: Platelets 3, RBC 16, WBC 1 ->",
    ):
        assert line in process.stdout
    labels = json.loads((ASSETS / "scenes" / "labels.json").read_text())
    single = re.findall(r"(\d+\.png): true: (\d); predicted: (\d) [01]\.", process.stdout)
    assert {name: true for name, true, _ in single} == labels
    assert sum(true == predicted for _, true, predicted in single) >= 7
    several = re.findall(r"\.png: true: ([\d ]+|none); predicted: ([\d ]+|none) ->", process.stdout)
    assert len(several) == len(multi_object)


def test_output_to_a_closed_pipe_is_no_traceback(weights, photos):
    command = f"{sys.executable} -m overfeat features --format text --weights {weights} {photos}/a.jpg | head -c 5"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in process.stderr


def test_fast_gives_the_same(photos, weights, tmp_path):
    """Six images, so that the weights are used more than once and pre-packed."""
    for out, flags in (("eager", ()), ("fast", ("--fast",))):
        done = run(*flags, "classify", photos, "--weights", weights, "-o", tmp_path / out)
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "eager").glob("*.*.json"))
    assert len(names) == 6
    for name in names:
        eager, fast = (json.loads((tmp_path / out / name).read_text()) for out in ("eager", "fast"))
        assert eager.keys() == fast.keys()
        assert [c["class"] for c in eager["classes"]] == [c["class"] for c in fast["classes"]]
        actual, expected = ([c["score"] for c in results["classes"]] for results in (fast, eager))
        np.testing.assert_allclose(actual, expected, atol=1e-5)
