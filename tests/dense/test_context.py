"""Nets with context: positions see their surroundings at half the resolution; scale factors; files of them."""

import pytest
import torch
from weight_files import change_metadata

import overfeat
from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense import context, evaluate, scales
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import grids
from overfeat.dense.tiling import Tile
from overfeat.errors import InputError
from overfeat.models import checkpoint


def picture(height, width, count=1, seed=0):
    noise = torch.rand(count, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(seed))
    return resize((255 * noise), (height, width)).to(torch.uint8)


@pytest.fixture
def net(make_net):
    net = make_net("small")
    net.add_context()
    torch.manual_seed(3)
    torch.nn.init.normal_(net.context.weight, 0.0, 0.05)
    return net


@pytest.mark.parametrize("stride", ["fine", "coarse"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_position_sees_the_nearest_centre_at_half_the_size(net, stride, flip):
    images = picture(113, 150)
    score_map = evaluate.score_maps(net, images, scales=[1.0], flip=flip, stride=stride)[-1]
    seen = images.flip(-1) if flip else images
    half = resize(images, (55, 75))
    half = half.flip(-1) if flip else half
    step = net.architecture.stride(stride)
    first = torch.nn.functional.conv2d
    for row in range(score_map.scores.shape[2]):
        for column in range(score_map.scores.shape[3]):
            y, x = row * step, column * step
            maps = net.features(seen[:, :, y : y + 47, x : x + 47])
            # The centre, at half the size; windows there start every `step` pixels and end inside.
            there = [
                min(max(round(((at + 23.5) * h / s - 23.5) / step), 0), (h - 47) // step)
                for at, h, s in ((y, 55, 113), (x, 75, 150))
            ]
            window = half[:, :, there[0] * step : there[0] * step + 47, there[1] * step : there[1] * step + 47]
            hidden = first(torch.nn.functional.max_pool2d(maps, 3), net.fc_layers[0].weight, net.fc_layers[0].bias)
            hidden = hidden + first(torch.nn.functional.max_pool2d(net.features(window), 3), net.context.weight)
            for layer in net.fc_layers[1:]:
                hidden = first(hidden.relu(), layer.weight, layer.bias)
            assert_matches(score_map.scores[0, :, row, column], hidden.flatten().softmax(0), torch.float32)


def test_tiles_give_the_whole(net):
    images = picture(130, 171, count=2)
    scales = [1.0, 1.5, (90, 100)]
    config = DenseConfig(scales, True, memory_limit=4 << 20)
    whole = evaluate.score_maps(net, images, scales=scales, flip=True)
    tiled = evaluate.score_maps(net, images, **vars(config))
    own_grids = grids(net, (130, 171), config)
    assert len(list(evaluate.evaluate_tiles(net, images, own_grids, config.memory_limit))) > 2 * len(own_grids)
    for one, other in zip(tiled, whole, strict=True):
        assert_matches(one.scores, other.scores, torch.float32)


def test_untrained_context_and_too_small_images_change_nothing(make_net, net):
    plain, images = make_net("small"), picture(80, 80)
    expected = evaluate.score_maps(plain, images, scales=[1.0])[0].scores
    assert torch.equal(evaluate.score_maps(net, images, scales=[1.0])[0].scores, expected), (
        "half of 80 is less than a window"
    )
    large = picture(120, 120)
    assert not torch.equal(
        evaluate.score_maps(net, large, scales=[1.0])[0].scores,
        evaluate.score_maps(plain, large, scales=[1.0])[0].scores,
    )
    plain.add_context()
    (new,) = evaluate.score_maps(plain, large, scales=[1.0], flip=False)
    plain.context = None
    assert torch.equal(new.scores, evaluate.score_maps(plain, large, scales=[1.0], flip=False)[0].scores)


def test_several_images_with_and_without_context(net):
    """At one size they are too small for any; all in one pass over the classifier."""
    images = picture(80, 80, count=2)
    both = evaluate.score_maps(net, images, scales=[1.0, 2.0], flip=False)
    for number in range(2):
        for one, of_both in zip(
            evaluate.score_maps(net, images[number], scales=[1.0, 2.0], flip=False), both, strict=True
        ):
            assert_matches(of_both.scores[number : number + 1], one.scores, torch.float32)


def test_gradients_reach_the_context(net):
    images = picture(113, 150)
    (grid,) = grids(net, (113, 150), DenseConfig([1.0], False))
    seen = context.context_features(net, context.half_resolution(net, images, (113, 150)), Tile.whole(grid))
    logits, _ = net.forward_head_flat([net.features(images)], "fine", [seen])
    logits.square().sum().backward()
    assert net.context.weight.grad.abs().sum() > 0


def test_factors_are_rounded_to_the_stride(net):
    sizes = scales.scale_sizes(net.geometry, 200, 301, [0.5, 1.0, 2.0])
    assert sizes == [(99, 151), (200, 301), (399, 603)], "1.0 is the image as it is"
    assert all((side - 47) % 4 == 0 for size in (sizes[0], sizes[2]) for side in size)
    with pytest.raises(InputError, match="smaller than the small net's window"):
        scales.scale_sizes(net.geometry, 200, 301, [0.1])


def test_files_keep_it(net, tmp_path):
    path = tmp_path / "net.safetensors"
    net.background, net.scale_factors = True, (0.5, 0.7)
    overfeat.save(net, path)
    loaded = overfeat.load(path)
    assert (loaded.background, loaded.scale_factors) == (True, (0.5, 0.7))
    assert torch.equal(loaded.context.weight, net.context.weight)
    loaded.context = None
    checkpoint.save(loaded, path)
    assert overfeat.load(path).context is None
    for broken in ("[0.5, -1]", "[]", '["x"]', "3"):
        change_metadata(path, scale_factors=broken)
        with pytest.raises(InputError, match="do not fit together"):
            overfeat.load(path)
