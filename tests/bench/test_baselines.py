"""The suite's baselines give the library's scores."""

import dataclasses

import pytest
import torch

from bench.suite.baselines import classifier, eager, monai_windows, naive_windows, offset_loop, single_windows
from bench.tolerance import assert_matches
from overfeat.models.overfeat import build


@pytest.fixture
def bare(make_net):
    """A net without padding, whose scores of a single window equal those of the whole image there; and an image."""
    net = make_net("thin fast", 5)
    bare = dataclasses.replace(
        net.architecture,
        convs=tuple(dataclasses.replace(conv, pad=0) for conv in net.architecture.convs),
        init_std=None,
    )
    torch.manual_seed(0)
    net = build(bare, 5).eval()
    sides = [bare.window + bare.fine_stride * more for more in (3, 1)]
    return net, torch.randint(0, 256, (1, 3, *sides), dtype=torch.uint8)


@pytest.mark.parametrize("windows", [naive_windows, monai_windows], ids=["naive", "monai"])
@torch.no_grad()
def test_single_windows_equal_the_whole_image(bare, windows):
    if windows is monai_windows:
        pytest.importorskip("monai", reason="it is in the extra bench alone")
    net, image = bare
    expected = net(image, "fine")
    assert expected.shape[2:] == (4, 2)
    assert_matches(windows(net, image, 3), expected, torch.float32)


@torch.no_grad()
def test_baselines_equal_the_library(make_net):
    net = make_net("thin accurate", 5)
    sides = [net.architecture.window + net.architecture.fine_stride * more for more in (4, 2)]
    image = torch.randint(0, 256, (2, 3, *sides), dtype=torch.uint8)
    maps, expected = net.features(image), net(image, "fine")
    assert_matches(eager(net, image), expected, torch.float32)
    assert_matches(classifier(net, maps), expected, torch.float32)
    assert_matches(offset_loop(net, maps), expected, torch.float32)
    window = image[:, :, : net.architecture.window, : net.architecture.window]
    assert_matches(single_windows(net, window), net(window).flatten(1), torch.float32)
