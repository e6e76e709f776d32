"""overfeat evaluate: error rates on a folder of labelled images."""

import json

import pytest
import torch
from PIL import Image

import overfeat
from overfeat.classification.evaluate import evaluate_classifier, score_by_protocol
from overfeat.classification.protocols import DEFAULT_PROTOCOLS, DENSE_PROTOCOLS, PROTOCOLS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.dense.config import SixScales
from overfeat.errors import InputError
from overfeat.metrics.classification import error_rates


@pytest.fixture
def data(tmp_path):
    """Two classes of plain pictures, red and blue, eight of each, of several sizes."""
    for name, colour in (("blue", (20, 30, 200)), ("red", (210, 40, 30))):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (60 + 7 * (i % 3), 70), tuple(c + 3 * i for c in colour)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def net():
    torch.manual_seed(1)
    net = overfeat.build("small", 2)
    net.class_names = ["blue", "red"]
    return net.eval()


def test_error_rates_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]])
    rates = error_rates(scores, torch.tensor([1, 1, 2, 0]))
    assert rates["top1"] == 50.0  # the second is wrong, and the tie of the last counts as wrong
    assert rates["top5"] == 0.0  # three classes: never five others ahead
    scores = torch.arange(12.0).flip(0).repeat(3, 1)
    assert error_rates(scores, torch.tensor([4, 5, 0])) == {
        "top1": pytest.approx(200 / 3),
        "top5": pytest.approx(100 / 3),
    }
    assert error_rates(torch.full((2, 10), float("nan")), torch.tensor([0, 1])) == {"top1": 100.0, "top5": 100.0}
    with pytest.raises(InputError, match="no images"):
        error_rates(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


def test_votes_are_those_of_classify(net, data):
    image = read_image(data / "red" / "3.png")
    actual = score_by_protocol(net, image, PROTOCOLS)
    assert tuple(actual) == PROTOCOLS
    for protocol, (numbers, stride) in DENSE_PROTOCOLS.items():
        expected = overfeat.classify(net, image, scales=SixScales(*numbers), stride=stride)[0]
        torch.testing.assert_close(actual[protocol], expected)
    torch.testing.assert_close(actual["10 views"], overfeat.ten_views(net, image)[0])
    torch.testing.assert_close(actual["centre crop"], overfeat.centre_crop(net, image)[0])


def test_evaluate_writes_what_it_prints(net, data, tmp_path, capsys):
    overfeat.save(net, tmp_path / "net.safetensors")
    (data / "red" / "broken.png").write_bytes(b"\x89PNG")
    out = tmp_path / "results.json"
    command = ["evaluate", "classifier", "--data", str(data), "--weights", str(tmp_path / "net.safetensors")]
    assert main([*command, "-o", str(out)]) == 1  # one image was unreadable
    printed = capsys.readouterr()
    results = json.loads(out.read_text())
    assert results["images"] == 16 and list(results["errors"]) == list(DEFAULT_PROTOCOLS)
    assert "broken.png" in results["unreadable"][0] and "broken.png" in printed.out
    for protocol, rates in results["errors"].items():
        line = next(line for line in printed.out.splitlines() if line.startswith(protocol))
        assert f"{rates['top1']:.2f}" in line

    (data / "red" / "broken.png").unlink()
    assert main([*command, "--voting", "centre crop", "--max-images", "4"]) == 0
    assert "4 images" in capsys.readouterr().out


def test_an_ensemble_averages(net, data):
    torch.manual_seed(2)
    other = overfeat.build("small", 2)
    other.class_names = net.class_names
    samples = [(path, label) for label, name in enumerate(net.class_names) for path in sorted((data / name).iterdir())]
    actual = evaluate_classifier([net, other], samples, ["centre crop"])["errors"]["centre crop"]
    images = [read_image(path) for path, _ in samples]
    labels = torch.tensor([label for _, label in samples])
    assert actual == error_rates(overfeat.centre_crop([net, other], images), labels)


def test_a_net_of_other_classes_is_refused(net, data, tmp_path, capsys):
    net.class_names = ["blue", "green"]
    overfeat.save(net, tmp_path / "net.safetensors")
    assert main(["evaluate", "classifier", "--data", str(data), "--weights", str(tmp_path / "net.safetensors")]) == 1
    assert "green" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["missing", "data/red"])
def test_bad_data_is_named(folder, data, tmp_path, capsys):
    assert main(["evaluate", "classifier", "--data", str(tmp_path / folder)]) == 1
    assert folder in capsys.readouterr().err
