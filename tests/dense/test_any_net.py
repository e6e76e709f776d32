"""Dense evaluation of nets that are not built in, against every window cropped out of the resized images."""

import pytest
import torch
from cropped_net import CroppedNet, all_windows
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.data.resize import resize, resize_short_side
from overfeat.dense.config import DenseConfig
from overfeat.dense.evaluate import evaluate_tiles
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import clamp_scales, round_to_stride, scale_sizes, six_scales
from overfeat.dense.tiling import Tile, tile_bytes
from overfeat.densify.convert import densify
from overfeat.errors import ArgumentError, InputError
from overfeat.models.geometry import Geometry
from overfeat.models.net import as_batch

PIXELS = {"mean": 120.0, "std": 60.0}
SCALES = [1.0, (38, 35)]  # the second less than the image


def small_module(channels, window, classes, pad=0, last=None):
    """Two convolutions and poolings, two fully connected layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(channels + classes)
        layers = [nn.Conv2d(channels, 4, 3, padding=pad), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=pad)]
        layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        numbers = nn.Sequential(*layers)(torch.zeros(1, channels, *window)).shape[1]
        layers += [nn.Linear(numbers, 8), nn.ReLU(), nn.Linear(8, classes), *([last] if last else [])]
    return nn.Sequential(*layers).eval()


def image_of(channels, count=1, height=40, width=45):
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


# name: (channels, window, classes, padding, last layer, activation)
MODULES = {
    "grey": (1, (24, 18), 4, 0, None, "softmax"),
    "padded": (3, (20, 26), 3, 1, None, "softmax"),
    "one class": (3, (20, 20), 1, 1, None, "sigmoid"),
    "probabilities": (5, (18, 20), 3, 0, nn.Softmax(dim=1), "none"),
}


@pytest.fixture(params=MODULES, scope="module")
def nets(request):
    """A net that crops, and the same module converted."""
    channels, window, classes, pad, last, activation = MODULES[request.param]
    module = small_module(channels, window, classes, pad, last)
    cropped = CroppedNet(module, window, channels, activation=activation, **PIXELS)
    converted = densify(module, window, channels=channels, logits=activation != "none", **PIXELS)
    return cropped, converted


@pytest.mark.parametrize("stride", [1, 3, "coarse", "fine", None])
def test_score_maps_are_those_of_cropped_windows(nets, stride):
    cropped, converted = nets
    converted.default_stride = cropped.default_stride
    images = image_of(cropped.in_channels, count=2)
    for net in nets:
        maps = overfeat.score_maps(net, images, scales=SCALES, flip=True, stride=stride)
        assert [m.grid.flipped for m in maps] == [False, True] * 2
        for score_map in maps:
            grid = score_map.grid
            pixels = {"coarse": 4, "fine": 2, None: 3}.get(stride, stride)
            assert (grid.window, grid.stride) == (cropped.geometry.window, pixels)
            scaled = resize(images, grid.scaled)
            expected = all_windows(cropped, scaled.flip(-1) if grid.flipped else scaled, pixels)
            assert_matches(score_map.scores, expected, torch.float32)


def test_the_windows_of_a_map_are_its_crops():
    """At the image's own size a map's boxes are the pixels of its windows, whatever their shape."""
    cropped = CroppedNet(small_module(3, (24, 18), 4), (24, 18), **PIXELS)
    image = image_of(3)
    for score_map in overfeat.score_maps(cropped, image, scales=[1.0], flip=True, stride=5):
        boxes = score_map.grid.boxes().round().astype(int).reshape(-1, 4)
        crops = torch.cat([image[:, :, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes])
        crops = crops.flip(-1) if score_map.grid.flipped else crops
        expected = all_windows(cropped, crops, 1).flatten(1).T.reshape(1, 4, *score_map.grid.shape)
        assert_matches(score_map.scores, expected, torch.float32)
        for row, column in ((0, 0), (2, 3)):
            x1, y1, x2, y2 = score_map.grid.boxes()[row, column]
            assert score_map.grid.position((x1 + x2) / 2, (y1 + y2) / 2) == (row, column)


def test_classify_is_the_mean_of_the_largest_scores(nets):
    cropped, _ = nets
    images = image_of(cropped.in_channels, count=2)
    best = []
    for size in ((40, 45), (35, 38)):
        scaled = resize(images, size)
        best += [all_windows(cropped, view, 3).amax((2, 3)) for view in (scaled, scaled.flip(-1))]
    for net in nets:
        scores = overfeat.classify(net, images, scales=SCALES, flip=True, stride=3)
        assert_matches(scores, torch.stack(best).mean(0), torch.float32)


def test_crops_in_the_corners_and_the_centre(nets):
    cropped, _ = nets
    image = image_of(cropped.in_channels)
    height, width = cropped.geometry.window
    for net in nets:
        resized = resize_short_side(image, net.geometry.short_side)
        room = resized.shape[2] - height, resized.shape[3] - width
        corners = [(round(y * room[0]), round(x * room[1])) for y, x in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))]
        views = torch.cat([resized[:, :, y : y + height, x : x + width] for y, x in corners])
        views = torch.stack([views, views.flip(-1)], 1).flatten(0, 1)
        expected = all_windows(cropped, views, 1).flatten(1)
        assert_matches(overfeat.centre_crop(net, image), expected[:1], torch.float32)
        assert_matches(overfeat.ten_views(net, image, flip=True), expected.mean(0, keepdim=True), torch.float32)
        assert_matches(overfeat.ten_views(net, image, flip=False), expected[::2].mean(0, keepdim=True), torch.float32)


def test_crops_that_fit_the_memory_together(monkeypatch):
    net, images = CroppedNet(small_module(3, (18, 20), 3), (18, 20), **PIXELS), image_of(3, count=5)
    expected = overfeat.ten_views(net, images, flip=True)
    assert net.tiles == [(50, 3, 18, 20)]
    net.tiles.clear()
    monkeypatch.setattr("overfeat.classification.predict.MEMORY_LIMIT", 20 * 4 * 3 * 18 * 20 + 1)
    assert_matches(overfeat.ten_views(net, images, flip=True), expected, torch.float32)
    assert [n for n, *_ in net.tiles] == [20, 20, 10]


@pytest.mark.parametrize("halo", [0, 7])
def test_tiles_see_what_the_net_asks_for(halo):
    """Tiles with the pixels around their windows, cut at the image's border, mirrored images too."""
    module, window = small_module(3, (20, 18), 4), (20, 18)
    net, images = CroppedNet(module, window, halo=halo, **PIXELS), image_of(3, count=2)
    whole = overfeat.score_maps(net, images, scales=[1.0], flip=True, stride=4)
    assert net.tiles == [(2, 3, 40, 45) if halo else (2, 3, 40, 42)] * 2
    own_grids = grids(net, (40, 45), DenseConfig([1.0], True, 4))
    limit = 2 * 4 * 3 * 34 * 32  # two tiles of a few windows
    net.tiles.clear()
    tiles = list(evaluate_tiles(net, images, own_grids, limit))
    assert len(tiles) > 8 and max(h * w for _, _, h, w in net.tiles) <= 34 * 32
    for tile in tiles:
        scores = net.probabilities(tile.outputs).view(*tile.shape, 4).permute(0, 3, 1, 2)
        expected = whole[tile.index].scores[tile.batch, :, tile.rows, tile.columns]
        assert_matches(scores, expected, torch.float32)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_tiles_of_converted_nets_give_the_whole(borders):
    module = small_module(3, (20, 26), 3, pad=1)
    net = densify(module, (20, 26), borders=borders, **PIXELS)
    images = image_of(3, count=2, height=60, width=61)
    options = {"scales": [1.0], "flip": True}
    for stride in (3, 4):
        whole = overfeat.score_maps(net, images, stride=stride, **options)
        own_grids = grids(net, (60, 61), DenseConfig(stride=stride, **options))
        limit = 2 * max(tile_bytes(net, Tile.whole(own_grids[0]))) // 3
        assert len(list(evaluate_tiles(net, images, own_grids, limit))) > 4, "nothing was cut"
        tiled = overfeat.score_maps(net, images, stride=stride, memory_limit=limit, **options)
        for one, other in zip(tiled, whole, strict=True):
            assert_matches(one.scores, other.scores, torch.float32)


def test_an_ensemble_of_a_built_in_and_converted_nets(make_net):
    """Nets of different windows, strides, channels and activations; grey images for a net of one channel."""
    built_in = make_net("small", 3)
    colour = densify(small_module(3, (20, 26), 3, pad=1), (20, 26), flip=True, **PIXELS)
    grey = densify(small_module(1, (18, 18), 3, last=nn.Softmax(dim=1)), 18, logits=False, **PIXELS)
    images = [image_of(3)[0], image_of(3, height=60)[0], image_of(1)[0], image_of(3).float()[0]]
    nets = [built_in, colour, grey]
    scores = overfeat.classify(nets, images, scales=[(60, 70)])
    for i, image in enumerate(images):
        alone = [overfeat.classify(net, image, scales=[(60, 70)]) for net in nets]
        assert_matches(scores[i : i + 1], torch.stack(alone).mean(0), torch.float32)
    for vote in (overfeat.centre_crop, overfeat.ten_views):
        expected = torch.stack([vote(net, images[0]) for net in nets]).mean(0)
        assert_matches(vote(nets, images[0]), expected, torch.float32)
    colour.class_names = ["a", "b", "c"]
    with pytest.raises(InputError, match="same classes"):
        overfeat.classify(nets, images)


# Images and scales


def test_colour_images_for_a_grey_net_and_grey_images_for_a_colour_net():
    rgb, grey = image_of(3), image_of(1)
    expected = (rgb.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1)
    as_grey = as_batch(rgb, 1)
    assert as_grey.dtype == torch.uint8 and as_grey.shape == (1, 1, 40, 45)
    assert (as_grey[:, 0].double() - expected).abs().max() <= 0.501
    assert as_batch(torch.full((3, 2, 2), 255, dtype=torch.uint8), 1).unique().tolist() == [255]
    torch.testing.assert_close(as_batch(rgb.float(), 1)[:, 0].double(), expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(as_batch(grey[0], 3), grey.repeat(1, 3, 1, 1))
    assert as_batch(grey, None) is grey
    net = densify(small_module(1, (18, 18), 3), 18, **PIXELS)
    assert torch.equal(overfeat.classify(net, rgb, scales=[1.0]), overfeat.classify(net, as_grey, scales=[1.0]))
    colour = CroppedNet(small_module(3, (18, 18), 3), (18, 18), **PIXELS)
    tripled = grey.repeat(1, 3, 1, 1)
    for scale in (1.0, (60, 70)):
        expected = overfeat.classify(colour, tripled, scales=[scale])
        assert torch.equal(overfeat.classify(colour, grey, scales=[scale]), expected)


@pytest.mark.parametrize("shape", [(2, 20, 20), (1, 4, 20, 20), (20, 20), (3, 0, 20)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_other_numbers_of_channels_are_refused(shape, channels):
    net = CroppedNet(small_module(channels, (18, 18), 3), (18, 18), channels)
    for evaluate in (overfeat.classify, overfeat.score_maps, overfeat.centre_crop):
        with pytest.raises(ValueError, match=rf"images must be \[N, (C|{channels}), H, W\]"):
            evaluate(net, torch.zeros(shape))


WIDE = Geometry("wide", (24, 60), 2, 2, 64, any_stride=True)


def test_scales_of_windows_that_are_not_square():
    six = six_scales(WIDE, 300, 400)
    assert all(WIDE.fits(size) for size in six) and six == sorted(six)
    # Table 5's ratios to the longer side, so that the image keeps its shape; each an exact fit.
    assert six[0] == (66, 66) and six[-1] == (126, 154)
    assert all((height - 24) % 4 == 2 and (width - 60) % 4 == 2 for height, width in six)
    assert [h - w for h, w in six_scales(WIDE, 400, 300)] == [w - h for h, w in six]
    assert round_to_stride(WIDE, (31.2, 71.4)) == (32, 72)
    assert clamp_scales(WIDE, 100, 100, (0.1, 0.5, 1.0)) == [0.6, 1.0]
    assert clamp_scales(WIDE, 30, 200, (0.5, 1.0)) == [0.8, 1.0]
    assert scale_sizes(WIDE, 30, 80, [1.0, (70, 30)]) == [(30, 80), (30, 70)]
    for size in ((30, 50), (80, 50)):
        with pytest.raises(InputError, match=f"at {size[0]}x{size[1]} the image is smaller than the wide net's"):
            scale_sizes(WIDE, *size, [1.0])


@pytest.mark.parametrize("stride", [0, -1, 2.0, "finest", True])
def test_strides_that_no_net_has(stride):
    net = CroppedNet(small_module(3, (18, 18), 3), (18, 18))
    with pytest.raises(ArgumentError, match=r"stride must be 'fine', 'coarse' or pixels from 1 up"):
        overfeat.classify(net, image_of(3), stride=stride)


def test_strides_in_pixels_of_built_in_nets(make_net):
    net, image = make_net("small"), image_of(3)
    for pixels, name in ((4, "fine"), (12, "coarse")):
        assert torch.equal(overfeat.classify(net, image, stride=pixels), overfeat.classify(net, image, stride=name))
    with pytest.raises(ArgumentError, match="stride must be 'fine', 'coarse', 4 or 12 for the small net, not 5"):
        overfeat.classify(net, image, stride=5)
    net.default_stride = "coarse"
    assert torch.equal(overfeat.classify(net, image), overfeat.classify(net, image, stride="coarse"))


def test_images_that_are_too_small_for_a_crop():
    net = CroppedNet(small_module(3, (18, 18), 3), (18, 18))
    net.geometry = Geometry("narrow", (18, 18), 2, 2, short_side=16)
    with pytest.raises(InputError, match="resized to 16x18 the image is smaller than the narrow net's window of 18x18"):
        overfeat.centre_crop(net, image_of(3))


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_quick_bounds_are_bounds(borders):
    """The bytes of a tile counted in windows are no less than those of a run, for strides below and above a window."""
    for pad in (0, 1):
        net = densify(small_module(3, (20, 26), 3, pad), (20, 26), check=False, borders=borders, **PIXELS)
        for stride in (1, 3, 4, 16, 64):
            grid = Grid((20, 26), stride, (20 + 4 * stride, 26 + 5 * stride), (99, 99))
            for rows, columns in ((1, 1), (1, 2), (3, 2), (5, 6)):
                tile = Tile(grid, 0, slice(0, 2), slice(0, rows), slice(6 - columns, 6))
                exact, bound = (tile_bytes(net, tile, enough=enough) for enough in (0, 1 << 60))
                assert all(one <= other for one, other in zip(exact, bound, strict=True)), (pad, tile)


def test_images_of_other_kinds_are_refused_with_the_remedy():
    pixels = torch.zeros(60, 50, 3)
    for images, remedy in ((pixels, "permute"), (pixels.long(), r"\.float\(\)")):
        with pytest.raises(ValueError, match=rf"images must be .*{remedy}"):
            as_batch(images)
    with pytest.raises(TypeError, match=r"images must be a tensor, not ndarray; .*as_tensor"):
        as_batch(pixels.numpy())
