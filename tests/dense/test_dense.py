"""Dense evaluation: tiles, scales, flips and strides, and which window each position sees."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense import evaluate
from overfeat.dense.config import DenseConfig, SixScales, check_scales
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import scale_sizes, six_scales
from overfeat.dense.tiling import Tile, tile_bytes
from overfeat.errors import ArgumentError, InputError
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv

# Paddings of every kind: wider than one, with stride, before and after poolings.
PADDED = Architecture(
    "padded",
    convs=(
        Conv(4, 5, stride=2, pad=2, pool=3),
        Conv(6, 3, pad=1),
        Conv(5, 5, pad=2, pool=2),
        Conv(8, 3, pad=1, pool=2),
    ),
    kernel=2,
    hidden=(8, 6),
    short_side=60,
)


def picture(height, width, count=1, seed=0):
    noise = torch.rand(count, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(seed))
    return resize((255 * noise), (height, width)).to(torch.uint8)


def middle_position(grid: Grid) -> Tile:
    """The tile of one position that depends on the most pixels."""
    row, column = ((length - 1) // 2 for length in grid.shape)
    return Tile(grid, 0, slice(0, 1), slice(row, row + 1), slice(column, column + 1))


@pytest.mark.parametrize("stride", ["coarse", "fine"])
@pytest.mark.parametrize("architecture", ["small", "thin accurate", "thin fast", PADDED], ids=str)
def test_tiles_give_the_same_maps_as_whole_images(make_net, architecture, stride, device):
    net = make_net(architecture).to(device)
    window = net.architecture.window
    step = net.architecture.stride("coarse")
    images = picture(window + 2 * step + 5, window + 3 * step + 7, count=2)
    options = {"scales": [1.0, (window + step, window + step + 1)], "flip": True, "stride": stride}
    whole = evaluate.score_maps(net, images, **options)
    own_grids = grids(net, tuple(images.shape[2:]), DenseConfig(**options))
    smallest = 2 * max(max(tile_bytes(net, middle_position(grid))) for grid in own_grids)
    tiles = list(evaluate.evaluate_tiles(net, images, own_grids, smallest))
    assert len(tiles) > 3 * len(own_grids), "nothing was cut: this compares the whole with itself"
    for memory_limit in (smallest, 3 * smallest):
        tiled = evaluate.score_maps(net, images, memory_limit=memory_limit, **options)
        for one, other in zip(tiled, whole, strict=True):
            assert one.grid == other.grid
            assert_matches(one.scores, other.scores, torch.float32)


def test_too_little_memory_says_how_much(make_net):
    net = make_net("small")
    with pytest.raises(InputError, match="too little for one window of the small net; memory_limit must be"):
        evaluate.score_maps(net, picture(60, 70), memory_limit=1000)


def test_every_position_is_the_window_cropped(make_net):
    """The small net has no padding, so the map and the crops are the same function."""
    net = make_net("small")
    image = picture(70, 92)
    window = net.architecture.window
    for stride in ("coarse", "fine"):
        (score_map,) = evaluate.score_maps(net, image, scales=[1.0], flip=False, stride=stride)
        assert score_map.scores.shape[2:] == score_map.grid.shape
        boxes = score_map.grid.boxes().round().astype(int)
        crops = torch.cat([image[:, :, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes.reshape(-1, 4)])
        assert crops.shape[2:] == (window, window)
        with torch.no_grad():
            expected = net(crops).softmax(1).flatten(1).T.reshape(1, -1, *score_map.grid.shape)
        assert_matches(score_map.scores, expected, torch.float32)


def test_flipped_maps_see_the_mirror_image(make_net):
    net = make_net("small")
    image = picture(80, 103)
    plain, flipped = evaluate.score_maps(net, image, scales=[(79, 103)], flip=True)
    assert (plain.grid.flipped, flipped.grid.flipped) == (False, True)
    (mirrored,) = evaluate.score_maps(net, image.flip(-1), scales=[(79, 103)], flip=False)
    assert_matches(flipped.scores, mirrored.scores, torch.float32)
    np.testing.assert_allclose(flipped.grid.boxes(), plain.grid.boxes()[:, ::-1])


@pytest.mark.parametrize("flip", [False, True])
def test_the_best_window_contains_the_bright_square(make_net, flip):
    """A net that answers to brightness finds the one bright spot, in pixels of the image as given."""
    net = make_net("small", 2)
    with torch.no_grad():
        for layer in (*net.conv_layers, *net.fc_layers):
            layer.weight.fill_(1.0 / layer.weight[0].numel())
            layer.bias.fill_(0.5 if layer is net.conv_layers[0] else 0.0)
        net.fc_layers[-1].weight[0] *= -1
    image = torch.zeros(3, 150, 200, dtype=torch.uint8)
    image[:, 84:100, 120:136] = 255
    maps = evaluate.score_maps(net, image, flip=flip)
    assert [m.grid.flipped for m in maps] == ([False, True] if flip else [False]) * 6
    for m in maps:
        best = m.scores[0, 1].argmax().item()
        x1, y1, x2, y2 = m.grid.boxes().reshape(-1, 4)[best]
        assert x1 <= 120 and y1 <= 84 and x2 >= 136 and y2 >= 100, m.grid
        row, column = m.grid.position(128, 92)
        bright = m.scores[0, 1] - m.scores[0, 1].min()
        assert bright[row, column] > 0.8 * bright.max()


def test_flip_follows_the_training(make_net):
    net = make_net("small")
    image = picture(60, 60)
    for trained in (True, False):
        net.flip = trained
        assert any(m.grid.flipped for m in evaluate.score_maps(net, image, scales=SixScales(1))) == trained


def test_scale_sizes():
    accurate, small = ARCHITECTURES["accurate"].geometry, ARCHITECTURES["small"].geometry
    assert scale_sizes(accurate, 300, 400, SixScales(1, 2, 4, 6)) == [
        (245, 245),
        (281, 317),
        (389, 461),
        (461, 569),
    ]
    assert scale_sizes(accurate, 400, 300, SixScales(2)) == [(317, 281)]
    assert scale_sizes(small, 50, 80, [1.0]) == [(50, 80)]
    assert scale_sizes(small, 50, 80, [(100, 60), (60, 100)]) == [(60, 100), (60, 100)]
    assert scale_sizes(small, 80, 50, [(100, 60), (60, 100)]) == [(100, 60), (100, 60)]
    assert scale_sizes(small, 80, 50) == six_scales(small, 80, 50)
    assert scale_sizes(small, 80, 50, "six") == six_scales(small, 80, 50)
    with pytest.raises(InputError, match="at 40x90 the image is smaller than the small net's window of 47x47"):
        scale_sizes(small, 60, 60, [(40, 90)])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], "at least one factor or size"), ([2], "SixScales(2)"), ([7], "not 7"), (["big"], "not 'big'"),
        ("seven", "not 'seven'"), ([True], "not True"), ([0.0], "not 0.0"), ([-1.0], "not -1.0"),
        ([float("inf")], "not inf"), ([float("nan")], "not nan"), ([(40,)], "not (40,)"), (0.5, "not 0.5"),
    ],
)  # fmt: skip
def test_invalid_scales(scales, message):
    """Whole numbers are refused: a scale never changes its meaning by its type."""
    with pytest.raises(ArgumentError, match=f"scales must be .*{re.escape(message)}"):
        DenseConfig(scales)


def test_configurations():
    assert DenseConfig("six").scales == SixScales() == SixScales(1, 2, 3, 4, 5, 6)
    assert (str(SixScales()), str(SixScales(1, 2, 4, 6))) == ("six", "six:1,2,4,6")
    assert DenseConfig([0.5, (60, 90)]) == DenseConfig((0.5, (60, 90))) and check_scales(None) is None
    assert hash(DenseConfig([0.5])) == hash(DenseConfig((0.5,)))
    for numbers in ((0,), (7,), (1.0,)):
        with pytest.raises(ArgumentError, match="numbers of the six scales"):
            SixScales(*numbers)
    with pytest.raises(ArgumentError, match="stride must be 'fine', 'coarse' or pixels from 1 up, not 'finer'"):
        DenseConfig(stride="finer")
    for flip in (1, "yes", torch.zeros(2), np.zeros(2)):
        with pytest.raises(ArgumentError, match="flip must be True or False, not "):
            DenseConfig(flip=flip)
    assert DenseConfig(flip=np.bool_(True)).flip
    with pytest.raises(ArgumentError) as caught:
        DenseConfig(stride=torch.zeros(60, 60))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(ArgumentError, match="memory_limit must be"):
        DenseConfig(memory_limit=0)


def test_scales_by_default(make_net):
    """A detector's own, at which no image becomes smaller than the window; the six scales of any other net."""
    net = make_net("small")
    assert [grid.scaled for grid in grids(net, (60, 90), DenseConfig(flip=False))] == six_scales(net.geometry, 60, 90)
    net.scale_factors = (0.5, 1.0)
    assert [grid.scaled for grid in grids(net, (60, 90), DenseConfig(flip=False))] == [(47, 71), (60, 90)]


def test_images_of_a_wrong_shape_are_refused(make_net):
    for shape in ((50, 50), (1, 4, 50, 50), (3, 0, 50)):
        with pytest.raises(ValueError, match="images must be"):
            evaluate.score_maps(make_net("small"), torch.zeros(shape))


@pytest.mark.parametrize("name", ["small", "thin accurate"])
def test_the_memory_that_the_message_asks_for_is_enough(make_net, name):
    net = make_net(name)
    window = net.architecture.window
    images = picture(window + 9, window + 60)
    with pytest.raises(InputError, match="memory_limit must be at least") as error:
        evaluate.score_maps(net, images, scales=[1.0], memory_limit=1000)
    needed = float(re.search(r"at least ([\d.]+) MiB", str(error.value))[1])
    assert evaluate.score_maps(net, images, scales=[1.0], memory_limit=int(needed * 2**20))


def test_a_batch_beyond_the_memory_is_cut_by_images(make_net):
    net = make_net("small")
    images = picture(64, 80, count=7)
    (grid,) = grids(net, (64, 80), DenseConfig([1.0], False))
    one_image = max(tile_bytes(net, Tile.whole(grid)))
    expected = evaluate.score_maps(net, images, scales=[1.0], flip=False)[0].scores
    for batch in (1, 3, 7):
        tiles = list(evaluate.evaluate_tiles(net, images, [grid], 2 * batch * one_image))
        assert all(tile.shape[1:] == grid.shape for tile in tiles)
        batches = [(tile.batch.start, tile.batch.stop) for tile in tiles]
        assert batches == [(start, min(start + batch, 7)) for start in range(0, 7, batch)]
        scores = torch.cat(
            [net.probabilities(tile.outputs).view(*tile.shape, -1).permute(0, 3, 1, 2) for tile in tiles]
        )
        assert_matches(scores, expected, torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_stays_within_the_limit():
    """The peak of a process that evaluates a large image, without and with a limit of 32 MiB."""
    code = (
        "import sys, torch, overfeat\n"
        "from overfeat.dense.config import DenseConfig\n"
        "from overfeat.dense.evaluate import evaluate_tiles\n"
        "from overfeat.dense.grid import grids\n"
        "torch.set_num_threads(1)\n"
        "net = overfeat.build('small', 10).eval()\n"
        "image = torch.zeros(1, 3, 900, 1200, dtype=torch.uint8)\n"
        "config = DenseConfig([1.0], False, memory_limit=int(sys.argv[1]) << 20)\n"
        "def peak():\n"  # of this process alone; getrusage also counts the one that started it
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line.split()[1] for line in lines if line.startswith('VmHWM'))) // 1024\n"
        "overfeat.classify(net, image[:, :, :100, :100], scales=[1.0])\n"
        "before = peak()\n"
        "for tile in evaluate_tiles(net, image, grids(net, (900, 1200), config), config.memory_limit):\n"
        "    pass\n"
        "print(peak() - before)\n"
    )
    grown = [
        int(subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True, check=True).stdout)
        for limit in ("32", "8192")
    ]
    assert grown[0] < 3 * 32, f"{grown[0]} MiB under a limit of 32"
    assert grown[1] > 3 * grown[0], f"{grown} MiB: the image was too small to show it"
