"""Windows beyond the border: the scaled image has a margin of the net's mean colour, in tiles as in whole."""

import pytest
import torch
from cropped_net import CroppedNet, all_windows
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.data.resize import pad_color, resize
from overfeat.dense.config import DenseConfig
from overfeat.dense.evaluate import evaluate_tiles, score_maps
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import clamp_scales, round_to_stride, scale_sizes
from overfeat.dense.tiling import Tile, tile_bytes
from overfeat.densify.convert import densify
from overfeat.errors import ArgumentError, InputError
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv

SMALL = ARCHITECTURES["small"].geometry
PADDED = Architecture("padded", convs=(Conv(4, 5, stride=2, pad=2, pool=3), Conv(6, 3, pad=1, pool=2)), kernel=2,
                      hidden=(8,), short_side=60, mean=(120.0, 60.0, 200.0))  # fmt: skip


def picture(height, width, count=1, seed=0):
    noise = torch.rand(count, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(seed))
    return resize((255 * noise), (height, width)).to(torch.uint8)


def module(pad=0, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 4, 3, padding=pad), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=pad)]
        layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        numbers = nn.Sequential(*layers)(torch.zeros(1, 3, 20, 26)).shape[1]
        layers += [nn.Linear(numbers, 8), nn.ReLU(), nn.Linear(8, classes)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def with_context(make_net):
    net = make_net("small")
    net.add_context()
    torch.manual_seed(3)
    nn.init.normal_(net.context.weight, 0.0, 0.05)
    return net


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_pad_color(dtype):
    images = picture(5, 7, count=2).to(dtype)
    padded = pad_color(images, (1, 2, 3, 4), (10.6, 300.0, -5.0))
    assert padded.dtype == dtype and padded.shape == (2, 3, 12, 10)
    assert torch.equal(padded[:, :, 3:8, 1:8], images)
    color = [11, 255, 0] if dtype == torch.uint8 else torch.tensor([10.6, 300.0, -5.0]).to(dtype).tolist()
    assert padded[0, :, 0, 0].tolist() == padded[1, :, -1, -1].tolist() == color
    assert pad_color(images[0], (0, 0, 1, 0), (7.0,))[:, 0].unique().tolist() == [7], "one image, a colour for all"
    assert pad_color(images, (0, 0, 0, 0), (7.0,)) is images


def test_margins_are_whole_strides(make_net):
    net = make_net("small")
    assert net.margin == (0, 0)
    for reach, margin in ((0.05, 0), (0.5, 24), (0.9, 40), (1.0, 44)):
        net.reach = reach
        assert net.margin == (margin, margin)
        assert {grid.margin for grid in grids(net, (60, 90))} == {(margin, margin)}
    for reach in (-0.1, 1.1, float("nan")):
        net.reach = reach
        with pytest.raises(ArgumentError, match="reach must be"):
            grids(net, (60, 90))
    wide = CroppedNet(module(), (20, 26))
    wide.reach = 0.5
    assert wide.margin == (10, 12), "of each axis"


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("stride", [4, 12])
def test_windows_of_a_grid(flipped, stride):
    grid = Grid((47, 47), stride, (83, 99), (166, 297), flipped, (20, 24))
    assert grid.padded == (123, 147) and grid.shape == ((123 - 47) // stride + 1, (147 - 47) // stride + 1)
    boxes = grid.boxes()
    assert boxes.shape == (*grid.shape, 4)
    left = 99 - 47 + 24 if flipped else -24
    assert boxes[0, 0].tolist() == [3.0 * left, -40.0, 3.0 * (left + 47), 54.0]
    assert (boxes[1:, :, 1] - boxes[:-1, :, 1] == 2 * stride).all()
    assert (boxes[:, 1:, 0] - boxes[:, :-1, 0] == (-3 if flipped else 3) * stride).all()
    assert (grid.boxes(slice(1, 3), slice(2, 4)) == boxes[1:3, 2:4]).all()
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            x1, y1, x2, y2 = boxes[row, column]
            assert grid.position((x1 + x2) / 2, (y1 + y2) / 2) == (row, column)


@pytest.mark.parametrize("reach", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_window_is_a_crop_of_the_padded_image(make_net, reach, dtype):
    net, image = make_net("small"), picture(53, 70).to(dtype)
    net.reach = reach
    border = 64  # more than any margin
    mean = net.mean_color[0] if dtype == torch.float32 else round(net.mean_color[0])
    around = torch.full((1, 3, 53 + 2 * border, 70 + 2 * border), mean, dtype=dtype)
    around[:, :, border:-border, border:-border] = image
    for score_map in score_maps(net, image, scales=[1.0], flip=True):
        boxes = (score_map.grid.boxes() + border).round().astype(int).reshape(-1, 4)
        crops = torch.cat([around[:, :, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes])
        crops = crops.flip(-1) if score_map.grid.flipped else crops
        with torch.no_grad():
            expected = net(crops).softmax(1).flatten(1).T.reshape(1, -1, *score_map.grid.shape)
        assert_matches(score_map.scores, expected, torch.float32)


@pytest.mark.parametrize("reversed_channels", [False, True])
def test_converted_nets_have_their_own_colour(reversed_channels):
    """In the order of the image's channels."""
    mean, order = (10.0, 100.0, 200.0), "BGR" if reversed_channels else "RGB"
    net = densify(module(), (20, 26), mean=mean, std=50.0, channel_order=order)
    net.reach = 0.5
    color = mean[::-1] if reversed_channels else mean
    assert net.mean_color == color and net.with_borders("neighbours").margin == net.margin == (10, 12)
    image = picture(31, 35)
    (score_map,) = score_maps(net, image, flip=False, stride=3)
    padded = pad_color(image, (12, 12, 10, 10), color)
    cropped = CroppedNet(module(), (20, 26), mean=torch.tensor(mean).view(3, 1, 1), std=50.0)
    expected = all_windows(cropped, padded.flip(1) if reversed_channels else padded, 3)
    assert_matches(score_map.scores, expected, torch.float32)


def test_windows_inside_the_image_are_those_without_reach(make_net, with_context):
    image = picture(81, 100)
    plain, inside = make_net("small"), slice(6, -6)  # 24 px of margin
    whole = score_maps(plain, image, scales=[1.0], flip=True)
    plain.reach = 0.5
    for one, other in zip(score_maps(plain, image, scales=[1.0], flip=True), whole, strict=True):
        assert (one.grid.boxes()[inside, 6:-7] == other.grid.boxes()[:, :-1]).all() or one.grid.flipped
        assert one.grid.scaled == other.grid.scaled and one.grid.padded == (129, 148)
    columns = other.scores.shape[3]
    one = score_maps(plain, image, scales=[1.0], flip=False)[0]
    assert_matches(one.scores[:, :, 6 : 6 + other.scores.shape[2], 6 : 6 + columns], whole[0].scores, torch.float32)


def check_tiles(net, images, **options):
    """Tiles of a fraction of an image equal the whole."""
    whole = score_maps(net, images, **options)
    own_grids = grids(net, (images.shape[2], images.shape[3]), DenseConfig(**options))
    tiles = [middle_position(own_grids[0]), Tile.whole(own_grids[0])]
    smallest, largest = (max(tile_bytes(net, tile)) for tile in tiles)
    limit = max(2 * smallest, largest)
    cut = list(evaluate_tiles(net, images, own_grids, limit))
    assert len(cut) > 3 * len(own_grids), "nothing was cut"
    for one, other in zip(score_maps(net, images, memory_limit=limit, **options), whole, strict=True):
        assert one.grid == other.grid
        assert_matches(one.scores, other.scores, torch.float32)
    return whole


def middle_position(grid):
    row, column = ((length - 1) // 2 for length in grid.shape)
    return Tile(grid, 0, slice(0, 1), slice(row, row + 1), slice(column, column + 1))


@pytest.mark.parametrize("stride", ["fine", "coarse"])
@pytest.mark.parametrize("reach", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("architecture", ["small", PADDED], ids=["small", "padded"])
def test_tiles_give_the_whole(make_net, architecture, reach, stride):
    net = make_net(architecture)
    net.reach = reach
    window, step = net.architecture.window, net.architecture.stride("coarse")
    images = picture(window + 2 * step + 5, window + 2 * step + 3, count=2)
    whole = check_tiles(net, images, scales=[1.0], flip=True, stride=stride)
    mirrored = score_maps(net, images.flip(-1), scales=[1.0], flip=False, stride=stride)[0].scores
    assert_matches(whole[1].scores, mirrored, torch.float32)


@pytest.mark.parametrize("reach", [0.5, 1.0])
def test_tiles_with_context_give_the_whole(with_context, reach):
    with_context.reach = reach
    images = picture(101, 123, count=2)
    whole = check_tiles(with_context, images, scales=[1.0, (61, 70)], flip=True)
    with_context.context = None
    assert not torch.equal(whole[2].scores, score_maps(with_context, images, scales=[(61, 70)], flip=False)[0].scores)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_tiles_of_converted_nets_give_the_whole(borders):
    net = densify(module(pad=1), (20, 26), borders=borders, mean=(120.0, 60.0, 20.0), std=60.0)
    net.reach = 0.5
    check_tiles(net, picture(41, 47, count=2), scales=[1.0], flip=True, stride=3)


@pytest.mark.parametrize("flip", [False, True])
def test_context_beyond_the_border_is_at_half_the_size(with_context, flip):
    """Every position sees the window with the nearest centre of the half-sized image, which has its own margin."""
    net, image, first = with_context, picture(63, 85), torch.nn.functional.conv2d
    net.reach = 0.5
    score_map = score_maps(net, image, scales=[1.0], flip=flip)[-1]
    mean, half = round(net.mean_color[0]), resize(image, (31, 43))
    image, half = (each.flip(-1) if flip else each for each in (image, half))
    image, half = (torch.nn.functional.pad(each, (24, 24, 24, 24), value=mean) for each in (image, half))

    def pooled(images, y, x):
        with torch.no_grad():
            return torch.nn.functional.max_pool2d(net.features(images[:, :, y : y + 47, x : x + 47]), 3)

    for row in range(0, score_map.scores.shape[2], 4):
        for column in range(0, score_map.scores.shape[3], 3):
            y, x = 4 * row, 4 * column
            # The window's centre in the image, at half the size, and the window there: from -24 in steps of 4.
            at = [round(((at - 0.5) * h / s + 0.5) / 4) * 4 for at, h, s in ((y, 31, 63), (x, 43, 85))]
            hidden = first(pooled(image, y, x), net.fc_layers[0].weight, net.fc_layers[0].bias)
            hidden = hidden + first(pooled(half, *at), net.context.weight)
            for layer in net.fc_layers[1:]:
                hidden = first(hidden.relu(), layer.weight, layer.bias)
            assert_matches(score_map.scores[0, :, row, column], hidden.flatten().softmax(0), torch.float32)


def test_images_smaller_than_the_window(make_net):
    """Factors are raised only where even the image with its margin has no window."""
    assert clamp_scales(SMALL, 47, 94, (0.25, 0.5, 1.0)) == [1.0]
    assert clamp_scales(SMALL, 47, 94, (0.25, 0.5, 1.0), (12, 12)) == [23 / 47, 0.5, 1.0]
    assert clamp_scales(SMALL, 47, 94, (0.25, 0.5), (24, 24)) == [0.25, 0.5]
    assert round_to_stride(SMALL, (0.1, 1.0)) == (3, 3), "never less than a pixel"
    assert scale_sizes(SMALL, 40, 60, [0.5], (24, 24)) == [(19, 31)]
    with pytest.raises(InputError, match="at 19x31 the image is smaller than the small net's window"):
        scale_sizes(SMALL, 40, 60, [0.5], (12, 12))
    net = make_net("small")
    net.reach, net.scale_factors = 0.75, (0.05, 0.5)
    for size in ((1, 1), (2, 60), (30, 41)):
        maps = score_maps(net, torch.full((3, *size), 255, dtype=torch.uint8), flip=True)
        assert len(maps) >= 2 and all(m.scores.isfinite().all() and min(m.grid.scaled) > 0 for m in maps)


def test_files_keep_the_reach(make_net, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    net, path = make_net("small"), tmp_path / "net.safetensors"
    for reach in (0.0, 0.625, 1.0):
        net.reach = reach
        overfeat.save(net, path)
        assert overfeat.load(path).reach == reach
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for text in ("2.0", "-0.5", '"0.5"', "NaN", "null", "true"):
        save_file(tensors, path, metadata | {"reach": text})
        with pytest.raises(InputError, match="do not fit together"):
            overfeat.load(path)
    metadata.pop("reach")
    save_file(tensors, path, metadata)
    assert overfeat.load(path).reach == 0.0, "a file from before"
