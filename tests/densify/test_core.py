"""The parts that a converted net is made of: the head, tiles, folded weights, reductions of borders, built-in nets."""

import pytest
import torch
from cropping import assert_like_crops, numbers, randomise
from torch import nn

import overfeat
from bench.suite.patch_nets import resnet18
from bench.tolerance import assert_matches
from overfeat.densify.convert import densify

CLASSES = 3


def classifier(*features, channels, cells):
    """Convolutions, then two fully connected layers."""
    numbers_of_window = channels * cells[0] * cells[1]
    return randomise(
        nn.Sequential(*features, nn.Flatten(), nn.Linear(numbers_of_window, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    )


def lenet():
    features = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2)
    return classifier(*features, channels=5, cells=(2, 3)), (14, 18)


def alexnet():
    features = nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(3, 2)
    return classifier(*features, channels=5, cells=(2, 2)), (35, 35)


def padded():
    features = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
    return classifier(*features, channels=5, cells=(8, 8)), (16, 16)


# Module, borders, stride: size and tap of the head's first layer; None where it runs with the rest of the graph.
HEADS = [
    (lenet, "exact", 1, (1, 4)),  # the first pooling is dilated, and so is the last
    (lenet, "exact", 2, (2, 2)),
    (lenet, "exact", 4, (1, 1)),
    (lenet, "exact", 8, None),
    (alexnet, "exact", 4, (3, 2)),
    (alexnet, "neighbours", 8, (1, 1)),
    (alexnet, "exact", 2, (1, 4)),
    (padded, "exact", 2, None),
    (padded, "neighbours", 2, (1, 1)),
    (padded, "neighbours", 1, (1, 2)),
]


@pytest.mark.parametrize(("make", "borders", "stride", "form"), HEADS)
def test_tiles_pass_the_head_together(make, borders, stride, form):
    module, window = make()
    net = densify(module, window, borders=borders, check=False)
    images = numbers(2, 3, window[0] + 19, window[1] + 22)
    whole = net(images, stride)
    tiles, expected = [], []
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(1, whole.shape[2]), slice(1, whole.shape[3]))):
        spans = [net.input_span(i, images.shape[2 + i], s, stride) for i, s in enumerate((rows, columns))]
        crop = images[:, :, spans[0].start : spans[0].stop, spans[1].start : spans[1].stop]
        tiles.append(net.tile_features(crop, spans[0], spans[1], stride))
        expected.append(whole[:, :, rows, columns].permute(0, 2, 3, 1).reshape(-1, CLASSES))
    actual = tiles[1].input and (tiles[1].input.size, tiles[1].input.tap)
    assert actual == form
    flat, shapes = net.forward_head_flat(tiles, stride)
    assert shapes == [(2, 2, 2), (2, whole.shape[2] - 1, whole.shape[3] - 1)]
    assert_matches(flat, torch.cat(expected), torch.float64)


@pytest.mark.parametrize("make", [lenet, alexnet, padded])
def test_heads_give_the_scores_of_crops(make):
    module, window = make()
    assert_like_crops(densify(module, window), module, numbers(1, 3, window[0] + 11, window[1] + 9), window)


def test_folded_batch_normalization_follows_its_statistics():
    module = randomise(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ))  # fmt: skip
    net, images = densify(module, 9), numbers(1, 3, 14, 13)
    assert len(net.interpreter.fusion.norms) == 2
    assert_like_crops(net, module, images, (9, 9), strides=(2,))
    module[1].running_mean.add_(1)
    with torch.no_grad():
        module[3].weight.mul_(2)
    assert_like_crops(net, module, images, (9, 9), strides=(2,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_means_of_narrow_types_neither_overflow_nor_stall(dtype):
    """Sums over a window exceed float16's range, and bfloat16's digits."""
    module = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(dtype)
    with torch.no_grad():
        module[0].weight.zero_(), module[0].bias.copy_(torch.tensor([900.0, 3.0]))
    scores = densify(module, 30, check=False)(numbers(1, 3, 40, 40), 5)
    assert torch.equal(scores, module[0].bias.view(1, 2, 1, 1).expand_as(scores))


def test_a_normalization_whose_input_is_used_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return (x + self.norm(x)).mean((2, 3))

    module = randomise(Twice())
    net = densify(module, 8)
    assert not net.interpreter.fusion.norms
    assert_like_crops(net, module, numbers(1, 3, 12, 12), (8, 8), strides=(1, 3))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_averages_without_padding_see_the_image_alone(ceil_mode):
    """With neighbours at the image's border, as in one pass over the image."""
    features = randomise(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(3, 2, 1, ceil_mode=ceil_mode, count_include_pad=False),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ))  # fmt: skip
    module = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net, images = densify(module, 16, borders="neighbours"), numbers(1, 3, 32, 40)
    with torch.no_grad():
        expected = nn.functional.avg_pool2d(features(images), 9 if ceil_mode else 8, 2)
    actual = net(images, 4)
    assert_matches(actual, expected[:, :, : actual.shape[2], : actual.shape[3]], torch.float64)


@pytest.mark.parametrize("stride", ["coarse", "fine"])
def test_a_built_in_net_converted(stride):
    torch.manual_seed(0)
    native = overfeat.build("small", CLASSES).double().eval()
    window = native.architecture.window
    net = densify(native, window)
    assert (net.geometry.fine_stride, net.geometry.pool) == (native.geometry.fine_stride, native.geometry.pool)
    images = 255 * torch.rand(1, 3, window + 12, window + 24, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        assert_matches(net(images, stride), native(images, stride), torch.float64)


def test_bytes_of_a_tile_grow_with_it():
    module, window = padded()
    net = densify(module, window, check=False)

    def bytes_of(images, outputs):
        span = net.input_span(0, 400, slice(0, outputs), 2)
        return net.tile_bytes(images, span, span, 2)

    one, three, large = bytes_of(1, 8), bytes_of(3, 8), bytes_of(1, 16)
    assert three == (3 * one[0], 3 * one[1])
    assert all(2 < after / before < 5 for before, after in zip(one, large, strict=True))
    assert one[0] > 8 * (3 * 30**2 + 4 * 30**2)  # the images, and the first maps


def test_compiled_nets_give_the_same():
    """Dynamo traced the interpreter once, and compiled residual nets gave other scores in silence."""
    net, images = densify(randomise(resnet18()), 64, borders="neighbours", check=False), numbers(1, 3, 96, 96)
    compiled = torch.compile(lambda x: net(x, 32), backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(images), net(images, 32))
