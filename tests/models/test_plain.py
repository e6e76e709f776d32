"""Built-in nets as plain PyTorch layers: equal to the nets, at any size once exported."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.tolerance import assert_matches
from overfeat.errors import ArgumentError
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.overfeat import ContextFeatures
from overfeat.models.plain import PlainFeatures, PlainHead, PlainNet


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def images_for(net, *more, count=2):
    sides = [net.architecture.window + net.architecture.fine_stride * side for side in more]
    return torch.randint(0, 256, (count, 3, *sides), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("stride", ["fine", "coarse"])
@pytest.mark.parametrize("name", ["thin accurate", "thin fast", "small"])
def test_plain_layers_equal_the_net(make_net, name, stride):
    net = make_net(name)
    images = images_for(net, 4, 7)
    expected, pool = net(images, stride), net.architecture.pool
    assert expected.shape[2:] == ((5, 8) if stride == "fine" else (1 + 4 // pool, 1 + 7 // pool))
    assert_matches(PlainNet(net, stride)(images), expected, torch.float32)
    assert_matches(PlainNet(net, stride)(images.float()), expected, torch.float32)


def test_weights_are_shared_and_means_are_of_each_channel(make_net):
    small = ARCHITECTURES["small"]
    net = make_net(replace(small, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0)))
    plain, images = PlainNet(net), images_for(net, 0, 1)
    net.fc_layers[-1].bias.add_(1)
    assert_matches(plain(images), net(images, "fine"), torch.float32)


def test_a_head_with_context_equals_the_nets(make_net):
    net = make_net("small")
    net.add_context()
    torch.nn.init.normal_(net.context.weight, 0.0, 0.05)
    maps, seen = net.features(images_for(net, 3, 5)), net.features(images_for(net, 1, 2))
    positions = torch.randint(0, 2 * 2 * 3, (2 * 4 * 6,), generator=torch.Generator().manual_seed(1))
    expected, (shape,) = net.forward_head_flat([maps], "fine", [ContextFeatures(seen, positions)])
    head = PlainHead(net)
    assert_matches(head(maps, seen, positions).permute(0, 2, 3, 1).flatten(0, 2), expected, torch.float32)
    assert shape == (2, 4, 6)
    assert_matches(head(maps), net(images_for(net, 3, 5), "fine"), torch.float32)


def test_torch_export_follows_at_any_size(make_net):
    net = make_net("thin accurate").requires_grad_(False)
    plain, sizes = PlainNet(net), {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = images_for(net, 3, 5, count=1)
    program = torch.export.export(plain, (example,), dynamic_shapes=(sizes,)).module()
    other = images_for(net, 6, 1, count=1)
    assert_matches(program(other), net(other, "fine"), torch.float32)


def test_nets_on_a_backbone_are_refused():
    with pytest.raises(ArgumentError, match="net must have feature layers of its own"):
        PlainFeatures(SimpleNamespace(backbone=object()))
