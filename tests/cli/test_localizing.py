"""overfeat localize: real files in, boxes, JSON and pictures out."""

import json
import os

import pytest
import torch
from PIL import Image

import overfeat
from overfeat.cli.assets import ASSETS, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import list_images, read_image
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.models.box_regressor import BoxRegressor


@pytest.fixture
def weights(tmp_path):
    """The shipped net with a regressor that predicts the middle of every window."""
    net = overfeat.load(SHIPPED_WEIGHTS)
    regressor = BoxRegressor(net.architecture)
    torch.nn.init.zeros_(regressor.fc_layers[-1].weight)
    overfeat.save(net, tmp_path / "net.safetensors", regressor=regressor)
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def photos(tmp_path):
    """Three pictures, one smaller than the net's window, one whose name matplotlib could take for a formula."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scene = Image.open(list_images(ASSETS / "scenes")[0]).convert("RGB")
    scene.save(folder / "cash_$5_to_$6_.png")
    scene.resize((90, 130)).save(folder / "b.jpg")
    scene.resize((30, 20)).save(folder / "small.png")
    return folder


def test_prints_the_library_s_predictions(weights, photos, capsys):
    """Boxes are in pixels of the file, also of one smaller than the window."""
    for path in (photos / "b.jpg", photos / "small.png"):
        assert main(["localize", str(path), "--weights", weights, "-n", "3"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        net, regressor = overfeat.load(weights), overfeat.load_regressor(weights)
        image = read_image(path)
        expected = overfeat.localize(net, regressor, image, top_k=3)
        assert [line[0] for line in lines] == [net.class_names[label] for label in expected.labels]
        printed = torch.tensor([[float(number) for number in line[1:]] for line in lines])
        torch.testing.assert_close(printed[:, 1:], expected.boxes, rtol=0, atol=0.06)
        torch.testing.assert_close(printed[:, 0], expected.scores, rtol=1e-4, atol=0)
        assert printed[:, 3].max() <= image.shape[2] and printed[:, 4].max() <= image.shape[1]


def test_a_folder_with_pictures_continues(weights, photos, tmp_path, capsys):
    (photos / "bad.png").write_bytes(b"no image")
    out = tmp_path / "results"
    command = ["localize", str(photos), "--weights", weights, "-o", str(out)]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "1 of 4 images failed" in printed.err and "bad.png" in printed.err
    for name in ("cash_$5_to_$6_.png", "b.jpg", "small.png"):
        predictions = json.loads((out / f"{name}.json").read_text())["predictions"]
        assert predictions[0]["score"] >= predictions[-1]["score"] > 0 and predictions[0]["count"] >= 1
        assert len({prediction["class"] for prediction in predictions}) == len(predictions) <= 5
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 500
    (photos / "bad.png").unlink()
    (out / "b.jpg.json").unlink()
    assert main(command) == 0
    assert "2 of 3 images are done already" in capsys.readouterr().err
    assert main([*command, "--match-threshold", "0.3"]) == 1
    assert "results of other settings" in capsys.readouterr().err


def test_a_name_that_is_not_text(weights, photos, tmp_path):
    name = os.fsdecode(b"bad\xff.png")
    (photos / "b.jpg").rename(photos / name)
    assert main(["localize", str(photos), "--weights", weights, "--scales", "six:1", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"{name}.png").exists() and len(list((tmp_path / "out").glob("*.*.json"))) == 3


@pytest.mark.parametrize("command", ["localize", "classify"])
def test_a_strip_is_not_enlarged_to_gigabytes(weights, tmp_path, capsys, command):
    Image.new("RGB", (3000, 1)).save(tmp_path / "strip.png")
    assert main([command, str(tmp_path / "strip.png"), "--weights", weights]) == 1
    assert "1x3000 px is too narrow" in capsys.readouterr().err


def test_evaluation_writes_over_nothing_but_its_results(weights, tmp_path, capsys):
    coco = write_dataset(tmp_path, "test", 2, progress=False)
    before = coco.read_bytes()
    command = ["evaluate", "localization", "--data", str(tmp_path), "--weights", weights, "--scales", "six:1", "-o"]
    for path, words in ((coco, "holds no results"), (weights, "holds no results"), (tmp_path / "x/y", "cannot be")):
        assert main([*command, str(path)]) == 1
        printed = capsys.readouterr()
        assert words in printed.err and "images of" not in printed.out, "reported before the work"
    assert coco.read_bytes() == before
    for _ in range(2):
        assert main([*command, str(tmp_path / "results.json")]) == 0


def test_other_people_s_files_stay(weights, photos, tmp_path, capsys):
    """Neither a picture of the same name nor the folder of the images is written to."""
    assert main(["localize", str(photos), "--weights", weights, "-o", str(photos)]) == 1
    assert "holds the images themselves" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b.jpg.png").write_bytes(b"mine")
    assert main(["localize", str(photos / "b.jpg"), "--weights", weights, "-o", str(tmp_path / "other")]) == 1
    assert "b.jpg.png of something else" in capsys.readouterr().err
    assert (tmp_path / "other/b.jpg.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--match-threshold", "-1"], "not a number from 0 up"),
        (["--match-threshold", "nan"], "not a number from 0 up"),
        (["--relative-threshold", "1.5"], "not a number from 0 to 1"),
        (["--relative-threshold", "x"], "not a number from 0 to 1"),
        (["--average", "counts"], "unrecognized arguments"),
        (["-d", "x"], "unrecognized arguments"),
    ],
)
def test_bad_flags(weights, photos, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit):
        main(["localize", str(photos / "b.jpg"), "--weights", weights, "-o", str(tmp_path / "out"), *options])
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_without_boxes(photos, tmp_path, capsys):
    net = overfeat.load(SHIPPED_WEIGHTS)
    overfeat.save(net, tmp_path / "net.safetensors")
    assert main(["localize", str(photos / "b.jpg"), "--weights", str(tmp_path / "net.safetensors")]) == 1
    assert "without a box regressor" in capsys.readouterr().err
