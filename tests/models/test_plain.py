"""Built-in nets as plain PyTorch layers: equal to the nets, at any size once exported."""

from dataclasses import replace

import pytest
import torch

from bench.exported import library_outputs
from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense.context import half_size
from overfeat.models.architecture import ARCHITECTURES, Architecture
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.feature_graph import FeatureGraph, Op
from overfeat.models.overfeat import ContextFeatures, OverFeat
from overfeat.models.plain import PlainHead, PlainNet, resize_dim
from overfeat.ops.boxes import decode


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


def on_backbone(**options):
    """A net with padding, a concatenation and a pool that rounds up, and the order of channels reversed."""
    features = (
        Op("flip", (0,), (), ((1,),)),
        Op("conv2d", (1,), (0,), ((2, 2), (2, 2), (1, 1), 1)),
        Op("relu", (2,)),
        Op("max_pool2d", (3,), (), ((3, 3), (2, 2), (0, 0), (1, 1), True)),
        Op("conv2d", (4,), (1, 2), ((1, 1), (1, 1), (1, 1), 1)),
        Op("cat", (4, 5), (), (1,)),
    )
    graph = FeatureGraph(3, features, ((4, 3, 5, 5), (3, 4, 3, 3), (3,)))
    architecture = Architecture("branches", (), 2, (8,), 30, 100.0, 50.0, None, None, graph, 2)
    return OverFeat(architecture, 3, **options).eval()


def with_everything(net, *, context=True, reach=0.4):
    """A net with context and reach, whose weights make its probabilities neither 0 nor 1."""
    net.reach = reach
    if context:
        net.add_context()
        torch.nn.init.normal_(net.context.weight, 0.0, 0.05)
    return net


@pytest.mark.parametrize("stride", ["fine", "coarse"])
@pytest.mark.parametrize("reach, context, features", [
    (0.0, True, "pooled"), (0.4, True, "unpooled"), (1.0, True, "pooled"), (0.4, False, "unpooled")
])  # fmt: skip
@pytest.mark.parametrize("make", ["thin accurate", "small", "backbone"])
def test_context_reach_and_boxes_equal_dense_evaluation(make_net, make, reach, context, features, stride):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = with_everything(on_backbone() if make == "backbone" else make_net(make), context=context, reach=reach)
        regressor = BoxRegressor(net.architecture, 2, box_features=features, hidden=(8, 8)).eval()
    plain, smallest = PlainNet(net, stride, regressor), max(1, net.architecture.window - 2 * net.margin[0])
    for size in (
        (smallest, smallest + 9),
        (2 * smallest + 3, smallest + 48),
        (3 * net.architecture.window, smallest + 40),
    ):
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
        scores, boxes = (torch.from_numpy(a) for a in library_outputs(net, images, stride, regressor))
        logits, codes = plain(images)
        assert_matches(net.probabilities(logits), scores, torch.float32)
        step, (top, left), window = net.geometry.stride(stride), net.margin, net.architecture.window
        y, x = torch.meshgrid(*(torch.arange(n) * step for n in logits.shape[2:]), indexing="ij")
        corners = torch.stack([x - left, y - top, x - left + window, y - top + window], dim=-1)[:, :, None]
        decoded = decode(codes.permute(0, 2, 3, 1).unflatten(-1, (-1, 4)), corners.float())
        torch.testing.assert_close(decoded, boxes, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("reach", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["small", "thin accurate", "thin fast"])
def test_half_an_image_s_size_is_that_of_dense_evaluation(make_net, name, reach):
    net = with_everything(make_net(name), reach=reach)
    plain = PlainNet(net).context
    for side in range(max(1, plain.smallest), 4 * net.architecture.window):
        expected = half_size(net, (side, side), net.margin)
        visible = bool(plain._visible(torch.empty(1, 3, side, side)))
        assert visible == (expected is not None), side
        if expected is not None:
            assert (plain.half_size(side), plain.half_size(side)) == expected, side


@pytest.mark.parametrize("sides", [(97, 47), (94, 47), (60, 47), (9, 3), (1000, 501), (20, 31)])
def test_images_are_resized_as_elsewhere(sides):
    images = torch.rand(2, 3, sides[0], sides[0] + 1, generator=torch.Generator().manual_seed(0)) * 255
    actual = resize_dim(resize_dim(images, 2, sides[1], 8), 3, sides[1], 8)
    torch.testing.assert_close(actual, resize(images, (sides[1], sides[1])), atol=5e-3, rtol=0)
