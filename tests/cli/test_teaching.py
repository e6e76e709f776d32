"""overfeat teach, and classify --prototypes: real files, real photographs, and what cannot be."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import overfeat
from overfeat.cli.assets import ASSETS
from overfeat.cli.main import main
from overfeat.models.architecture import ARCHITECTURES

PHOTOS = ASSETS / "photos"
NET = ["--weights", str(ASSETS / "small.safetensors"), "--device", "cpu"]
AT = ["--scales", "1.0", "--stride", "fine"]


@pytest.fixture
def digits(tmp_path):
    """Two windows of a shipped scene, and the scene."""
    scene = np.array(Image.open(ASSETS / "scenes" / "00001.png").convert("RGB"))
    Image.fromarray(scene).save(tmp_path / "scene.png")
    Image.fromarray(scene[20:67, 30:77]).save(tmp_path / "seven.png")
    Image.fromarray(scene[:47, -47:]).save(tmp_path / "corner.png")
    return tmp_path


def test_teaching_listing_and_forgetting(digits, capsys):
    file = digits / "known.safetensors"
    assert main(["teach", str(file), "seven", str(digits / "seven.png"), "--no-flip", *NET]) == 0
    box = ["--box", "30", "20", "77", "67"]
    assert main(["teach", str(file), "seven", str(digits / "scene.png"), *box, "--no-flip", *NET]) == 0
    assert main(["teach", str(file), "corner", str(digits / "corner.png"), "--threshold", "0.9", *NET]) == 0
    text = f"{file}: 2 classes, accepted from 0.9\n  seven: 2 pictures\n  corner: 1 picture\n"
    assert capsys.readouterr().out.endswith(text)
    assert main(["teach", str(file), *NET]) == 0
    assert capsys.readouterr().out == text
    loaded = overfeat.Prototypes.load(file, net=overfeat.load(ASSETS / "small.safetensors"))
    expected = overfeat.Prototypes(overfeat.load(ASSETS / "small.safetensors"))
    expected.add("seven", digits / "seven.png", flip=False)
    expected.add("seven", digits / "scene.png", box=(30, 20, 77, 67), flip=False)
    np.testing.assert_allclose(loaded.prototypes[0], expected.prototypes[0], atol=1e-5)
    assert main(["teach", str(file), "--remove", "seven", *NET]) == 0
    assert capsys.readouterr().out == f"{file}: 1 class, accepted from 0.9\n  corner: 1 picture\n"


def test_classify_finds_what_was_taught(digits, capsys):
    file = digits / "known.safetensors"
    assert main(["teach", str(file), "seven", str(digits / "seven.png"), "--no-flip", "--threshold", "0.8", *NET]) == 0
    capsys.readouterr()
    command = ["classify", str(digits / "scene.png"), "--prototypes", str(file), *NET, *AT]
    assert main([*command, "-o", str(digits / "out"), "--heat-map"]) == 0
    name, score = capsys.readouterr().out.split()
    assert name == "seven" and float(score) > 0.9
    written = json.loads((digits / "out" / "scene.png.json").read_text())
    assert written["classes"] == [{"class": "seven", "score": pytest.approx(float(score), abs=1e-5)}]
    maps = np.load(digits / "out" / "scene.png.npz")
    assert maps["classes"].tolist() == ["seven"] and maps["scores_0"].max() == pytest.approx(float(score), abs=1e-5)
    black = digits / "black.png"
    Image.fromarray(np.full((60, 60, 3), 200, np.uint8)).save(black)
    assert main(["classify", str(black), "--prototypes", str(file), *NET, *AT]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.endswith(f"{black}: none of the classes\n")


def test_a_folder_of_pictures(digits, capsys):
    (digits / "sevens").mkdir()
    for name in ("a.png", "b.png"):
        (digits / "sevens" / name).write_bytes((digits / "seven.png").read_bytes())
    assert main(["teach", str(digits / "known.safetensors"), "seven", str(digits / "sevens"), *NET]) == 0
    assert "  seven: 2 pictures\n" in capsys.readouterr().out


def test_the_shipped_net(tmp_path, capsys):
    file = tmp_path / "known.safetensors"
    options = ["--borders", "neighbours", "--cells", "2", "--layer", "fire8"]
    assert main(["teach", str(file), "cup", str(PHOTOS / "coffee.jpg"), "--no-flip", *options]) == 0
    assert capsys.readouterr().out == f"{file}: 1 class, accepted from 0.4\n  cup: 1 picture\n"
    at = ["--borders", "neighbours", "--scales", "0.7", "--stride", "64"]
    assert main(["classify", str(PHOTOS / "coffee.jpg"), "--prototypes", str(file), *at]) == 0
    assert capsys.readouterr().out.startswith("cup 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], r"a: needs a picture: overfeat teach .*new\.safetensors a IMAGE"),
        ([], r"new\.safetensors: no such file; overfeat teach .*new\.safetensors CLASS IMAGE makes it"),
        (["--remove", "b"], r"--remove must be a class of .*new\.safetensors \(none\), not 'b'"),
        (["a", "{0}/seven.png", "{0}/scene.png", "--box", "1", "2", "3", "4"],
         r"--box must be of one picture, not of 2; teach one after the other"),
        (["a", "{0}/seven.png", "--box", "90", "2", "99", "4"], r"--box must be \(x1, y1, x2, y2\) of the image of 47"),
        (["a", "{0}/none.png"], r"none\.png: no such file"),
        (["a", "{0}/seven.png", "--layer", "3"], r"--layer must be one of 15, 17 in this net, not '3'"),
        (["a", "{0}/seven.png", "--labels", "{0}/x.txt"], r"--labels does not apply to teach"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught(digits, capsys, arguments, message):
    file = digits / "new.safetensors"
    assert main(["teach", str(file), *(a.format(digits) for a in arguments), *NET]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not file.exists()


def test_a_net_without_features_is_named_by_its_file(digits, capsys):
    plain = digits / "plain.safetensors"
    overfeat.save(overfeat.build(replace(ARCHITECTURES["small"], hidden=()), 2), plain)
    command = ["teach", str(digits / "new.safetensors"), "a", str(digits / "seven.png"), "--weights", str(plain)]
    assert main(command) == 1
    requirement = "the net must have a hidden fully connected layer, whose outputs are the features"
    assert capsys.readouterr().err == f"overfeat teach: {plain}: {requirement}\n"


def test_a_file_keeps_its_layer_and_net(digits, capsys):
    file, picture = digits / "known.safetensors", str(digits / "seven.png")
    assert main(["teach", str(file), "seven", picture, "--layer", "15", *NET]) == 0
    assert main(["teach", str(file), "seven", picture, "--layer", "17", *NET]) == 1
    assert "--layer does not apply to" in capsys.readouterr().err
    assert main(["teach", str(file), "seven", picture, "--weights", str(ASSETS / "detector.safetensors")]) == 1
    assert "made with another net, whose features are others; load it with that net" in capsys.readouterr().err
    command = ["classify", picture, "--prototypes", str(file), *NET, "--voting", "centre"]
    assert main(command) == 1
    assert "--voting must be dense with --prototypes; leave it out" in capsys.readouterr().err
