"""SqueezeNet 1.1 as it ships: the classes of real photographs, the geometry, and what its script unpickles."""

import pickle

import pytest
import torch

import overfeat
from bench.weights.squeezenet import ArrayUnpickler, state_dict
from overfeat.data.images import read_image
from overfeat.data.resize import resize_short_side
from overfeat.files import ASSETS
from overfeat.models.squeezenet import MEAN, WINDOW, SqueezeNet, imagenet_classes, pretrained

PHOTOS = ASSETS / "photos"


def centre(image):
    """The module's input: the centre of an image uint8 [3, H, W] whose short side is 256 pixels."""
    image = resize_short_side(image[None].float(), 256)
    top, left = ((length - WINDOW) // 2 for length in image.shape[2:])
    window = image[:, :, top : top + WINDOW, left : left + WINDOW]
    return window.flip(1) - torch.tensor(MEAN).view(3, 1, 1)


@torch.no_grad()
def classify(name):
    return pretrained()(centre(read_image(PHOTOS / name)))[0].softmax(dim=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chelsea.png", {"Egyptian cat", "tabby cat", "tiger cat"}),
        ("coffee.jpg", {"espresso"}),
        ("camera.png", {"tripod"}),
        ("rocket.jpg", {"missile"}),
    ],
)
def test_the_best_class_of_a_photograph(name, expected):
    scores, names = classify(name), imagenet_classes()
    top = scores.topk(len(expected)).indices
    assert {names[i] for i in top} == expected


def test_names_are_unique_and_one_per_class():
    names = imagenet_classes()
    assert len({name.lower() for name in names}) == 1000 and all(name == name.strip() for name in names)
    # Numbers that ILSVRC2012 is known by.
    assert [names[i] for i in (0, 207, 388, 779, 950)] == [
        "tench", "golden retriever", "giant panda", "school bus", "orange",
    ]  # fmt: skip


def test_parameters_are_those_of_the_paper():
    net = pretrained()
    assert sum(parameter.numel() for parameter in net.parameters()) == 1_235_496
    assert not net.training and all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert SqueezeNet(5)(torch.zeros(2, 3, WINDOW, WINDOW)).shape == (2, 5)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_only_arrays_are_unpickled(tmp_path, capsys):
    with open(tmp_path / "evil.pkl", "wb") as file:
        pickle.dump({"conv1": Evil()}, file)
    with open(tmp_path / "evil.pkl", "rb") as file, pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        ArrayUnpickler(file).load()
    assert capsys.readouterr().out == ""


def test_the_script_refuses_arrays_that_are_not_the_net_s():
    with pytest.raises(RuntimeError, match="Missing key"):
        state_dict({})


@torch.no_grad()
def test_squeezenet_is_the_module_at_every_window():
    net = overfeat.squeezenet()
    image = read_image(PHOTOS / "coffee.jpg")[None, :, 100:, 150:]
    logits = net(image[:, :, : WINDOW + 45, : WINDOW + 80], stride=40)
    assert logits.shape == (1, 1000, 2, 3) and net.class_names == imagenet_classes()
    windows = image.float().flip(1).unfold(2, WINDOW, 40).unfold(3, WINDOW, 40)[0, :, :2, :3]
    windows = windows.permute(1, 2, 0, 3, 4).flatten(0, 1) - torch.tensor(MEAN).view(3, 1, 1)
    expected = pretrained()(windows).unflatten(0, (2, 3)).permute(2, 0, 1)
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-3)
