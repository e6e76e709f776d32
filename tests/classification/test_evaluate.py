"""Error rates on a folder of labelled images: voting protocols, ensembles, and `overfeat evaluate classifier`."""

import json

import pytest
import torch
from PIL import Image

import overfeat
from overfeat.classification.config import DEFAULT_PROTOCOLS, DENSE_PROTOCOLS, PROTOCOLS
from overfeat.classification.evaluate import evaluate_classifier, score_by_protocol
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.data.readers.image_folder import read_image_folder
from overfeat.dense.config import SixScales
from overfeat.errors import InputError
from overfeat.metrics.classification import error_rates


@pytest.fixture
def data(tmp_path):
    """Two classes of plain images, red and blue, eight of each, of several sizes."""
    for name, colour in (("blue", (20, 30, 200)), ("red", (210, 40, 30))):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (60 + 7 * (i % 3), 70), tuple(c + 3 * i for c in colour)).save(folder / f"{i}.png")
    return tmp_path / "data"


def make_classifier(seed=1):
    torch.manual_seed(seed)
    net = overfeat.build("small", 2)
    net.class_names = ["blue", "red"]
    return net.eval()


@pytest.fixture
def net():
    return make_classifier()


def test_scores_by_protocol_are_those_of_classify(net, data):
    image = read_image(data / "red" / "3.png")
    scores = score_by_protocol(net, image, protocols=PROTOCOLS)
    assert tuple(scores) == PROTOCOLS
    for name, (numbers, stride) in DENSE_PROTOCOLS.items():
        expected = overfeat.classify(net, image, scales=SixScales(*numbers), stride=stride)[0]
        torch.testing.assert_close(scores[name], expected)
    torch.testing.assert_close(scores["10 views"], overfeat.ten_views(net, image)[0])
    torch.testing.assert_close(scores["centre crop"], overfeat.centre_crop(net, image)[0])


def test_evaluate_writes_what_it_prints(net, data, tmp_path, capsys):
    overfeat.save(net, tmp_path / "net.safetensors")
    (data / "red" / "broken.png").write_bytes(b"\x89PNG")
    out = tmp_path / "results.json"
    command = ["evaluate", "classifier", "--data", str(data), "--weights", str(tmp_path / "net.safetensors")]
    assert main([*command, "-o", str(out)]) == 1  # one image is unreadable
    printed = capsys.readouterr()
    results = json.loads(out.read_text())
    assert results["images"] == 16 and list(results["errors"]) == list(DEFAULT_PROTOCOLS)
    assert "broken.png" in results["unreadable"][0] and "broken.png" in printed.out
    for name, rates in results["errors"].items():
        line = next(line for line in printed.out.splitlines() if line.startswith(name))
        assert f"{rates['top1']:.2f}" in line

    (data / "red" / "broken.png").unlink()
    assert main([*command, "--voting", "centre crop", "--max-images", "4"]) == 0
    assert "4 images" in capsys.readouterr().out


def test_an_ensemble_averages_the_scores(net, data):
    nets, folder = [net, make_classifier(2)], read_image_folder(data)
    results = evaluate_classifier(nets, folder.samples, protocols=["centre crop"], progress=False)
    scores = overfeat.centre_crop(nets, [image.read() for image in folder.samples])
    labels = torch.tensor([image.label for image in folder.samples])
    assert results["errors"]["centre crop"] == error_rates(scores, labels)


def test_an_unknown_protocol_is_refused(net, data):
    with pytest.raises(InputError, match=r"protocols must be among centre crop; .*, not '2 views'"):
        evaluate_classifier([net], read_image_folder(data).samples, protocols=["2 views"])


def test_a_net_of_other_classes_is_refused(net, data, tmp_path, capsys):
    net.class_names = ["blue", "green"]
    overfeat.save(net, tmp_path / "net.safetensors")
    assert main(["evaluate", "classifier", "--data", str(data), "--weights", str(tmp_path / "net.safetensors")]) == 1
    assert "green" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["missing", "data/red"])
def test_bad_data_is_named(folder, data, tmp_path, capsys):
    assert main(["evaluate", "classifier", "--data", str(tmp_path / folder)]) == 1
    assert folder in capsys.readouterr().err
