"""compare_borders: exact and neighbours on the same windows."""

import pytest
import torch
from torch import nn

import overfeat
from overfeat.errors import InputError

WINDOW, STRIDE = 12, 4


def make(classes=3, padding=1):
    torch.manual_seed(0)
    side = 6 if padding else 5
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * side**2, classes)
    ).double()


def images(*sizes):
    torch.manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def by_hand(module, given, probabilities):
    """(agreement, total variation, windows): each window cropped, and the convolution run over the whole image."""
    agreeing, variation, count = 0, 0.0, 0
    for image in given:
        image = image.double()[None] / 64
        maps = module[2](module[1](module[0](image)))
        for y in range(0, image.shape[2] - WINDOW + 1, STRIDE):
            for x in range(0, image.shape[3] - WINDOW + 1, STRIDE):
                exact = module(image[:, :, y : y + WINDOW, x : x + WINDOW])
                side = WINDOW // 2
                seen = module[4](module[3](maps[:, :, y // 2 : y // 2 + side, x // 2 : x // 2 + side]))
                p, q = (probabilities(scores)[0] for scores in (exact, seen))
                same = p.argmax() == q.argmax() if len(p) > 1 else (p > 0.5) == (q > 0.5)
                agreeing, count = agreeing + int(same), count + 1
                variation += float((p - q).abs().sum()) / (2 if len(p) > 1 else 1)
    return agreeing / count, variation / count, count


@pytest.mark.parametrize("classes", [3, 1])
def test_it_is_what_cropped_windows_and_whole_maps_give(classes):
    module, given = make(classes), images((30, 25), (20, 33))
    net = overfeat.densify(module, WINDOW, std=64)
    result = overfeat.compare_borders(net, given, stride=STRIDE)
    with torch.no_grad():
        expected = by_hand(module, given, lambda s: s.sigmoid() if classes == 1 else s.softmax(1))
    assert result.agreement == pytest.approx(expected[0]) and result.windows == expected[2]
    assert result.total_variation == pytest.approx(expected[1], abs=1e-6) and result.total_variation > 0.01
    assert f"{100 * expected[0]:.1f} % of {expected[2]} windows" in str(result)
    assert overfeat.compare_borders(net.with_borders("neighbours"), given, stride=STRIDE) == result


def test_without_padding_both_are_the_same():
    net = overfeat.densify(make(padding=0), WINDOW)
    result = overfeat.compare_borders(net, images((20, 30))[0], stride=2, scales=[1.0, 1.5])
    assert result.agreement == 1 and result.total_variation == pytest.approx(0, abs=1e-6) and result.windows > 50


def test_what_it_refuses():
    with pytest.raises(InputError, match="needs a converted net"):
        overfeat.compare_borders(overfeat.build("small", 3), images((60, 60)))
    net = overfeat.densify(make(), WINDOW)
    with pytest.raises(InputError, match="at least one image"):
        overfeat.compare_borders(net, [])
    with pytest.raises(InputError, match="stride"):
        overfeat.compare_borders(net, images((20, 20)), stride=0)
