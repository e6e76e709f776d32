"""The densify suite's nets and baselines: all give the outputs of cropped windows."""

from functools import partial

import pytest
import torch

from bench.suite.baselines import cropped_windows, monai_patches
from bench.suite.densify import Converted, EveryWindow, as_module, outputs
from bench.suite.fragments import fragments, fully_convolutional
from bench.suite.patch_nets import PATCH_NETS
from bench.tolerance import assert_matches

BY_NAME = {net.name: net for net in PATCH_NETS}
SMALL = ("LeNet-like", "VGG-like, no padding", "AlexNet-like, 3/2 pools")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def image_for(net, *more):
    torch.manual_seed(0)
    return torch.randn(1, 3, *(net.window + side for side in more), dtype=torch.float64)


@pytest.mark.parametrize("net", PATCH_NETS, ids=lambda net: net.name)
def test_cells_strides_and_sizes_of_images(net):
    with torch.device("meta"):
        features = net.make().eval().features
        maps = [features(torch.empty(1, 3, net.window + more * net.unit, net.window)) for more in (0, 1, 2)]
    assert [m.shape[2:] for m in maps] == [(net.cells + more, net.cells) for more in (0, 1, 2)]
    for stride, side in (*net.sides.items(), *net.quick.items()):
        assert side > net.window and (side - net.window) % stride == 0


@pytest.mark.parametrize("stride", [1, 3, 4, 8])
@pytest.mark.parametrize("name", SMALL)
def test_fragments_equal_cropped_windows(name, stride):
    net = BY_NAME[name]
    module, image = net.module().double(), image_for(net, 9, 14)
    expected = cropped_windows(module, image, net.window, stride, 5)
    assert expected.shape[2:] == (9 // stride + 1, 14 // stride + 1)
    assert_matches(fragments(module, image, net.window, stride), expected, torch.float64)


@pytest.mark.parametrize("name", ["AlexNet-like, 3/2 pools", "R-Net"])
def test_monai_equals_cropped_windows(name):
    pytest.importorskip("monai", reason="it is in the extra bench alone")
    net = BY_NAME[name]
    evaluate, image = partial(outputs, net.module().double()), image_for(net, 9, 14)
    expected = cropped_windows(evaluate, image, net.window, 4, 5)
    assert_matches(monai_patches(evaluate, image, net.window, 4, 7), expected, torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_convolutions_equal_cropped_windows_without_padding(name):
    net = BY_NAME[name]
    module, image = net.module().double(), image_for(net, 2 * net.unit, 4 * net.unit)
    expected = cropped_windows(module, image, net.window, 2 * net.unit, 5)
    assert_matches(fully_convolutional(module, image, net.cells, 2), expected, torch.float64)


@pytest.mark.parametrize("name", ["VGG-like, padded", "SqueezeNet 1.1", "R-Net"])
def test_convolutions_over_one_window_are_the_module(name):
    net = BY_NAME[name]
    module, image = net.module().double(), image_for(net, 0, 0)
    expected = outputs(module, image)[:, :, None, None]
    assert_matches(fully_convolutional(module, image, net.cells, 1), expected, torch.float64)


def test_the_last_windows_are_cropped_and_compared():
    net = BY_NAME["R-Net"]
    pixels = torch.randint(0, 256, (1, 3, 24 + 70 * 4, 24 + 70 * 4), dtype=torch.uint8)
    windows = EveryWindow(Converted(net, torch.device("cpu")), 4, 24 + 70 * 4, lambda: pixels)
    assert (windows.count, windows.block) == (71, net.crops) and windows.portion == (64 / 71) ** 2
    last = outputs(net.module(), windows.image[:, :, -24:, -24:])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        cropped = windows.by_cropping(cropped_windows, memory_format)
        assert cropped.shape == (1, 6, 64, 64)
        assert_matches(cropped[:, :, -1, -1], last, torch.float32)
    assert windows.cropping_flop() == pytest.approx(2 * 71**2 * 1530768)


def test_modules_for_other_runtimes_give_the_same_windows():
    net = BY_NAME["R-Net"]
    pixels = torch.randint(0, 256, (1, 3, 24 + 8 * 4, 24 + 8 * 4), dtype=torch.uint8)
    windows = EveryWindow(Converted(net, torch.device("cpu")), 4, 24 + 8 * 4, lambda: pixels)
    cropped = windows.cropped_for(partial(outputs, windows.converted.exported.module()))
    assert_matches(cropped, windows.by_cropping(cropped_windows, torch.contiguous_format), torch.float32)
    convolved = windows.convolved_by(lambda image: windows.convolutions.module()(image.float()))
    assert_matches(convolved, windows.by_convolution(), torch.float32)


def test_a_built_in_net_as_a_module(make_net):
    net = make_net("thin accurate", 5)
    window = torch.randint(0, 256, (2, 3, net.architecture.window, net.architecture.window))
    module = as_module(net)
    assert_matches(module(net.normalise(window)), net(window.to(torch.uint8)).flatten(1), torch.float32)
