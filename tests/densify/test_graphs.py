"""Graphs that are no chain, and small or odd ones, against cropped windows."""

import pytest
import torch
from cropping import assert_like_crops, cropped, numbers, randomise
from graphs import EDGES, GRAPHS, WINDOW, Heads, Inception, Residuals, Reused

import overfeat
from bench.tolerance import assert_matches
from overfeat.dense.config import DenseConfig
from overfeat.dense.evaluate import evaluate_tiles
from overfeat.dense.grid import grids
from overfeat.dense.tiling import Tile, tile_bytes


@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: type(make()).__name__)
def test_every_window(make):
    torch.manual_seed(0)
    module = randomise(make())
    net = overfeat.densify(module, WINDOW, channels=3, check=False)
    images = numbers(2, 3, 26, 24)
    before = images.clone(), {name: value.clone() for name, value in module.state_dict().items()}
    outputs = net(images, 3)
    assert torch.equal(images, before[0]), "the images were changed"
    assert all(torch.equal(value, before[1][name]) for name, value in module.state_dict().items()), (
        "weights were changed"
    )
    assert torch.equal(net(images, 3), outputs), "a second call gives other outputs"
    assert_like_crops(net, module, images, WINDOW)


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    module, window = EDGES[name]
    module = randomise(module)
    net = overfeat.densify(module, window, channels=3, check=False)
    for more in ((0, 0), (1, 0), (17, 13)):  # one window; two beside each other; many
        assert_like_crops(
            net, module, numbers(1, 3, window[0] + more[0], window[1] + more[1]), window, (1, 2, 5, 12, 40)
        )


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
@pytest.mark.parametrize("make", [Inception, Residuals, Heads, Reused])
def test_tiles_and_batches(make, borders):
    """Under the least memory a map is made of many tiles, of several images at once; mirror images too."""
    torch.manual_seed(0)
    module = randomise(make())
    net = overfeat.densify(module, WINDOW, channels=3, mean=128.0, std=64.0, check=False, borders=borders)
    images = torch.randint(0, 256, (2, 3, 32, 28), dtype=torch.uint8)
    for stride in (3, 4):
        options = {"scales": [1.0], "flip": True, "stride": stride}
        own_grids = grids(net, (32, 28), DenseConfig(**options))
        limit = 3 * max(tile_bytes(net, Tile(own_grids[0], 0, slice(0, 1), slice(2, 3), slice(2, 3))))
        assert len(list(evaluate_tiles(net, images, own_grids, limit))) > 3, "nothing was cut"
        tiled = overfeat.score_maps(net, images, memory_limit=limit, **options)
        whole = overfeat.score_maps(net, images, **options)
        for one, other in zip(tiled, whole, strict=True):
            assert_matches(one.scores, other.scores, torch.float32)
            if borders == "exact":
                view = (images.flip(-1) if one.grid.flipped else images).double()
                (expected,) = cropped(module, (view - 128) / 64, WINDOW, stride)
                assert_matches(one.scores, expected.softmax(1), torch.float32)
