"""Nets whose places see their surroundings too, at half the resolution; scales as factors; files of them."""

import pytest
import torch

import overfeat
from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense import context, evaluate, scales
from overfeat.dense.grid import grids
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
def test_a_place_sees_the_nearest_centre_at_half_the_size(net, stride, flip):
    images = picture(113, 150)
    (found,) = evaluate.score_maps(net, images, ["native"], False, stride) if not flip else [
        evaluate.score_maps(net, images, ["native"], True, stride)[1]
    ]  # fmt: skip
    seen = images.flip(-1) if flip else images
    half = resize(images, (55, 75))
    half = half.flip(-1) if flip else half
    step = net.architecture.stride(stride)
    first = torch.nn.functional.conv2d
    for row in range(found.scores.shape[2]):
        for column in range(found.scores.shape[3]):
            y, x = row * step, column * step
            maps = net.features(seen[:, :, y : y + 47, x : x + 47])
            # The centre, at half the size; windows there start every `step` pixels and end inside.
            there = [
                min(max(round(((at + 23.5) * h / s - 23.5) / step), 0), (h - 47) // step)
                for at, h, s in ((y, 55, 113), (x, 75, 150))
            ]
            part = half[:, :, there[0] * step : there[0] * step + 47, there[1] * step : there[1] * step + 47]
            hidden = first(torch.nn.functional.max_pool2d(maps, 3), net.fc_layers[0].weight, net.fc_layers[0].bias)
            hidden = hidden + first(torch.nn.functional.max_pool2d(net.features(part), 3), net.context.weight)
            for layer in net.fc_layers[1:]:
                hidden = first(hidden.relu(), layer.weight, layer.bias)
            assert_matches(found.scores[0, :, row, column], hidden.flatten().softmax(0), torch.float32)


def test_tiles_give_the_whole(net):
    images = picture(130, 171, count=2)
    scales = ["native", 1.5, (90, 100)]
    whole = evaluate.score_maps(net, images, scales, True)
    tiled = evaluate.score_maps(net, images, scales, True, memory=4 << 20)
    found = grids(net, (130, 171), scales, True)
    assert len(list(evaluate.score_parts(net, images, found, "fine", 4 << 20))) > 2 * len(found)
    for one, other in zip(tiled, whole, strict=True):
        assert_matches(one.scores, other.scores, torch.float32)


def test_untrained_context_and_too_small_images_change_nothing(make_net, net):
    plain, images = make_net("small"), picture(80, 80)
    want = evaluate.score_maps(plain, images, ["native"])[0].scores
    assert torch.equal(evaluate.score_maps(net, images, ["native"])[0].scores, want), "half of 80 is less than a window"
    large = picture(120, 120)
    assert not torch.equal(
        evaluate.score_maps(net, large, ["native"])[0].scores, evaluate.score_maps(plain, large, ["native"])[0].scores
    )
    plain.add_context()
    (new,) = evaluate.score_maps(plain, large, ["native"], False)
    plain.context = None
    assert torch.equal(new.scores, evaluate.score_maps(plain, large, ["native"], False)[0].scores)


def test_several_images_with_and_without_surroundings(net):
    """At one size they are too small for any; all in one pass over the classifier."""
    images = picture(80, 80, count=2)
    both = evaluate.score_maps(net, images, ["native", 2.0], False)
    for number in range(2):
        for one, of_both in zip(evaluate.score_maps(net, images[number], ["native", 2.0], False), both, strict=True):
            assert_matches(of_both.scores[number : number + 1], one.scores, torch.float32)


def test_gradients_reach_the_surroundings(net):
    images = picture(113, 150)
    (grid,) = grids(net, (113, 150), ["native"], False)
    part = slice(0, grid.shape[0]), slice(0, grid.shape[1])
    seen = context.context_features(net, context.half_resolution(net, images, (113, 150)), 1, grid, *part, "fine")
    rows, _ = net.forward_head_flat([net.features(images)], "fine", [seen])
    rows.square().sum().backward()
    assert net.context.weight.grad.abs().sum() > 0


def test_factors_are_sizes_without_a_rest(net):
    sizes = scales.scale_sizes(net.architecture, 200, 301, [0.5, 1.0, 2.0])
    assert sizes == [(99, 151), (199, 303), (399, 603)]
    assert all((side - 47) % 4 == 0 for size in sizes for side in size)
    with pytest.raises(InputError, match="smaller than the small net's window"):
        scales.scale_sizes(net.architecture, 200, 301, [0.1])
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"a factor such as 0\.5"):
            scales.scale_sizes(net.architecture, 200, 301, [wrong])


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
    for broken in ([0.5, -1], [], ["x"], 3):
        net.scale_factors = broken
        checkpoint.save(net, path)
        with pytest.raises(InputError, match="do not fit together"):
            overfeat.load(path)
