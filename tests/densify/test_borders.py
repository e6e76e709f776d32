"""What happens at a window's border: exact, the image's own neighbours, or refused."""

import pytest
import torch
from cropping import assert_like_crops, numbers, randomise
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.errors import InputError

WINDOW = (16, 24)
CELLS = (4, 6)  # of the last maps
UNIT = 4  # pixels from cell to cell


def padded_features() -> nn.Sequential:
    """Padding before and after strides; every size stays a whole fraction of the image's."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 5, stride=2, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(5, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    )  # fmt: skip


def make(features=None, head=None):
    torch.manual_seed(0)
    features = features or padded_features()
    head = head or nn.Sequential(nn.Flatten(), nn.Linear(4 * CELLS[0] * CELLS[1], 3))
    return randomise(nn.Sequential(features, head))


HEADS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * CELLS[0] * CELLS[1], 3)),
    "pool and linear": lambda: nn.Sequential(
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "mean": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(4, 3, CELLS), nn.Flatten()),
}  # fmt: skip


@torch.no_grad()
def head_everywhere(module, maps, step=1):
    """The module's head on the cells of every window, `step` cells apart: [N, 3, rows, columns]."""
    cells = maps.unfold(2, CELLS[0], step).unfold(3, CELLS[1], step).permute(0, 2, 3, 1, 4, 5)
    return module[1](cells.flatten(0, 2)).view(*cells.shape[:3], -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("stride", [4, 8, 12])
def test_neighbours_are_one_pass_over_the_image(head, stride):
    """At the product of the strides: the module's own features of the whole image, zero padding at its border."""
    module = make(head=HEADS[head]())
    net = overfeat.densify(module, WINDOW, borders="neighbours", check=False)
    images = numbers(2, 3, 16 + 4 * 5, 24 + 4 * 3)
    expected = head_everywhere(module, module[0](images).detach(), stride // UNIT)
    assert_matches(net(images, stride), expected, torch.float64)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_neighbours_of_windows_inside_the_image(stride):
    """At any stride a window far from the image's border sees its neighbours, as in a larger crop around it."""
    module = make()
    net = overfeat.densify(module, WINDOW, borders="neighbours", check=False)
    around = 6 * UNIT  # more than the features reach
    images = numbers(1, 3, 2 * around + 16 + 6, 2 * around + 24 + 7)
    actual = net(images, stride)
    inside = [(i, j) for i in range(actual.shape[2]) for j in range(actual.shape[3])]
    inside = [(i, j) for i, j in inside if all(around <= p * stride <= around + 6 for p in (i, j))]
    assert len(inside) >= 4
    for i, j in inside:
        top, left = i * stride - around, j * stride - around
        crop = images[:, :, top : top + 2 * around + 16, left : left + 2 * around + 24]
        with torch.no_grad():
            cells = module[0](crop)[:, :, 6 : 6 + CELLS[0], 6 : 6 + CELLS[1]]
            assert_matches(actual[:, :, i, j], module[1](cells), torch.float64)


@pytest.mark.parametrize("borders", ["exact", "neighbours", "refuse"])
def test_without_padding_all_are_the_same(borders):
    features = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2))
    module = randomise(nn.Sequential(features, nn.Flatten(), nn.Linear(4 * 3 * 5, 3)))
    net = overfeat.densify(module, WINDOW, borders=borders, check=False)
    assert net.borders == borders
    assert_like_crops(net, module, numbers(1, 3, 29, 33), WINDOW)


def test_one_net_both_ways():
    module = make()
    exact = overfeat.densify(module, WINDOW, check=False)
    other = exact.with_borders("neighbours")
    assert (exact.borders, other.borders) == ("exact", "neighbours")
    images = numbers(1, 3, 32, 40)
    assert_like_crops(exact, module, images, WINDOW, (4,))
    assert_like_crops(other.with_borders("exact"), module, images, WINDOW, (4,))
    assert_matches(other(images, 4), head_everywhere(module, module[0](images).detach()), torch.float64)
    assert {p.data_ptr() for p in exact.parameters()} == {p.data_ptr() for p in other.parameters()}


def test_a_window_as_large_as_the_image_has_no_neighbours():
    module = make()
    net = overfeat.densify(module, WINDOW, borders="neighbours", check=False)
    assert_like_crops(net, module, numbers(2, 3, *WINDOW), WINDOW, (1, 4))


REFUSED = {
    "convolution": (nn.Conv2d(3, 4, 3, padding=(0, 2)), "2"),
    "max pool": (nn.MaxPool2d(3, 2, 1), "1"),
    "average pool": (nn.AvgPool2d(3, 2, 1), "1"),
    "pool that rounds up": (nn.MaxPool2d(3, 2, ceil_mode=True), "1"),
    "zeros": (nn.ZeroPad2d((0, 3, 0, 0)), "3"),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), "1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_padding_names_the_layer(name):
    layer, cells = REFUSED[name]
    module = randomise(nn.Sequential(nn.Sequential(nn.ReLU(), layer), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(InputError, match=rf"at 0\.1 sees {cells} cells? beyond the window's border"):
        overfeat.densify(module, WINDOW, channels=3, borders="refuse")


def test_unknown_borders():
    with pytest.raises(InputError, match=r"borders must be one of exact, .*not 'zero'"):
        overfeat.densify(make(), WINDOW, borders="zero")
