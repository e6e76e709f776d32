"""The output of a layer in tiles: equal to that of the whole image, for every layer and net."""

import pytest
import torch
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.dense import layer_output as module
from overfeat.dense.layer_output import layer_output
from overfeat.densify.backbone import Backbone
from overfeat.densify.layer import ConvertedLayer
from overfeat.errors import ArgumentError
from overfeat.models.layers import BuiltInLayer
from overfeat.models.overfeat import OverFeat


def picture(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def converted_module():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.fixture
def count_tiles(monkeypatch):
    """count_tiles(f): the number of tiles that f() evaluates."""

    def count(function):
        tiles = []

        def watched(shape, sides):
            for tile in tiles_of(shape, sides):
                tiles.append(tile)
                yield tile

        tiles_of = module.tiles_of
        with monkeypatch.context() as patch:
            patch.setattr(module, "tiles_of", watched)
            result = function()
        return result, len(tiles)

    return count


def check(net, layer, image, expected, count_tiles):
    """In tiles; in one it is bit for bit that of the whole image."""
    assert torch.equal(layer_output(net, layer, image), expected)
    with pytest.raises(ArgumentError, match=r"memory_limit must be at least \d+ MiB"):
        layer_output(net, layer, image, memory_limit=10)
    shape = [layer.num_outputs(axis, side) for axis, side in enumerate(image.shape[1:])]

    def needed(*outputs):
        return layer.tile_bytes(*(layer.input_span(axis, image.shape[1 + axis], o) for axis, o in enumerate(outputs)))

    least = needed(*(slice((side - 1) // 2, (side - 1) // 2 + 1) for side in shape))
    most = needed(*(slice(0, side) for side in shape))
    limit = 2 * max(least, most // 5)
    tiled, tiles = count_tiles(lambda: layer_output(net, layer, image, memory_limit=limit))
    assert_matches(tiled, expected, torch.float64)
    assert tiles > 1


@pytest.mark.parametrize("name", ["thin accurate", "small"])
def test_every_layer_of_built_in_nets(make_net, name, count_tiles):
    net = make_net(name).double()
    window = net.architecture.window
    image = picture(window + 60, window + 31)
    for number in range(len(net.architecture.layers)):
        expected = net.layer_output(image[None], number)[0].detach()
        check(net, BuiltInLayer(net, number), image, expected, count_tiles)


def test_layers_of_a_net_on_a_backbone(count_tiles):
    converted = overfeat.densify(converted_module(), 16, mean=120, std=60, check=False)
    backbone = Backbone(converted, node="3", window=16, hidden=(8,))
    torch.manual_seed(1)
    net = OverFeat(backbone.architecture, 2, backbone=backbone).double().eval()
    image = picture(90, 61)
    for number in range(len(net.architecture.layers)):
        expected = net.layer_output(image[None], number)[0].detach()
        check(net, BuiltInLayer(net, number), image, expected, count_tiles)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
@pytest.mark.parametrize("stride", [5, 16])
def test_layers_of_converted_modules(borders, stride, count_tiles):
    net = overfeat.densify(converted_module(), 16, mean=120, std=60, borders=borders, check=False)
    image = picture(61, 90)
    for name in ("0", "2", "7"):
        expected = net.layer_output(image[None], name, stride)[0]
        check(net, ConvertedLayer(net, name, stride), image, expected, count_tiles)


def test_where_the_cells_of_a_map_lie(make_net):
    """A cell in the middle of a large map sees as many pixels on both sides of its centre."""
    net = make_net("thin accurate")
    converted = overfeat.densify(converted_module(), 16, mean=120, std=60, check=False)
    backbone = Backbone(converted, node="3", window=16, hidden=(8,))
    own = OverFeat(backbone.architecture, 4, backbone=backbone)
    layers = [BuiltInLayer(net, number) for number in range(len(net.architecture.layers))]
    for layer in [*layers, ConvertedLayer(converted, "3", 5)]:
        for axis in (0, 1):
            first, step = layer.positions(axis)
            for cell in (20, 21):
                span = layer.input_span(axis, 2000, slice(cell, cell + 1))
                assert (span.start + span.stop) / 2 == first + cell * step, layer
    of_maps, *pooled = [BuiltInLayer(own, number) for number in range(len(own.architecture.layers))][1:3]
    assert of_maps.positions(0) == (1, 2)  # cells of 2 x 2 pixels
    assert [layer.positions(1) for layer in pooled if not layer.is_in_head] == [(2, 4)]
