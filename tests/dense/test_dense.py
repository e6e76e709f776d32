"""Dense evaluation: tiles, scales, flips and strides, and which window each place sees."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense import evaluate, grid, scales, tiling
from overfeat.dense.scales import six_scales
from overfeat.errors import InputError
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


@pytest.mark.parametrize("stride", ["coarse", "fine"])
@pytest.mark.parametrize("architecture", ["small", "thin accurate", "thin fast", PADDED], ids=str)
def test_tiles_give_the_whole(make_net, architecture, stride, device):
    net = make_net(architecture).to(device)
    window = net.architecture.window
    step = net.architecture.stride("coarse")
    images = picture(window + 2 * step + 5, window + 3 * step + 7, count=2)
    options = {"scales": ["native", (window + step, window + step + 1)], "flip": True, "stride": stride}
    whole = evaluate.score_maps(net, images, **options)
    found = grid.grids(net, tuple(images.shape[2:]), options["scales"], True, stride)
    least = 2 * max(
        max(
            tiling.feature_bytes(net.architecture, 1, slice(0, 1), slice(0, 1), stride, grid),
            tiling.classifier_bytes(net, slice(0, 1), slice(0, 1), slice(0, 1), stride, 3 * net.num_classes),
        )
        for grid in found
    )
    parts = list(evaluate.score_parts(net, images, found, stride, least))
    assert len(parts) > 3 * len(found), "nothing was cut: this compares the whole with itself"
    for memory in (least, 3 * least):
        tiled = evaluate.score_maps(net, images, memory=memory, **options)
        for one, other in zip(tiled, whole, strict=True):
            assert one.grid == other.grid
            assert_matches(one.scores, other.scores, torch.float32)


def test_too_little_memory_says_how_much(make_net):
    net = make_net("small")
    with pytest.raises(InputError, match="MiB is too little for one window of the small net; it needs"):
        evaluate.score_maps(net, picture(60, 70), memory=1000)


def test_every_place_is_the_window_cropped(make_net):
    """The small net has no padding, so the map and the crops are the same function."""
    net = make_net("small")
    image = picture(70, 92)
    window = net.architecture.window
    for stride in ("coarse", "fine"):
        (found,) = evaluate.score_maps(net, image, ["native"], flip=False, stride=stride)
        assert found.scores.shape[2:] == found.grid.shape
        boxes = found.grid.boxes().round().astype(int)
        crops = torch.cat([image[:, :, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes.reshape(-1, 4)])
        assert crops.shape[2:] == (window, window)
        with torch.no_grad():
            want = net(crops).softmax(1).flatten(1).T.reshape(1, -1, *found.grid.shape)
        assert_matches(found.scores, want, torch.float32)


def test_flipped_maps_see_the_mirror_image(make_net):
    net = make_net("small")
    image = picture(80, 103)
    plain, flipped = evaluate.score_maps(net, image, [(79, 103)], flip=True)
    assert (plain.grid.flipped, flipped.grid.flipped) == (False, True)
    (mirrored,) = evaluate.score_maps(net, image.flip(-1), [(79, 103)], flip=False)
    assert_matches(flipped.scores, mirrored.scores, torch.float32)
    np.testing.assert_allclose(flipped.grid.boxes(), plain.grid.boxes()[:, ::-1])


@pytest.mark.parametrize("flip", [False, True])
def test_the_best_window_holds_what_was_pasted(make_net, flip):
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
    assert [found.grid.flipped for found in maps] == ([False, True] if flip else [False]) * 6
    for found in maps:
        place = found.scores[0, 1].argmax().item()
        x1, y1, x2, y2 = found.grid.boxes().reshape(-1, 4)[place]
        assert x1 <= 120 and y1 <= 84 and x2 >= 136 and y2 >= 100, found.grid
        row, column = found.grid.place(128, 92)
        bright = found.scores[0, 1] - found.scores[0, 1].min()
        assert bright[row, column] > 0.8 * bright.max()


def test_flip_follows_the_training(make_net):
    net = make_net("small")
    image = picture(60, 60)
    for trained in (True, False):
        net.flip = trained
        assert any(found.grid.flipped for found in evaluate.score_maps(net, image, [1])) == trained


def test_scale_sizes():
    accurate, small = ARCHITECTURES["accurate"], ARCHITECTURES["small"]
    assert scales.scale_sizes(accurate, 300, 400, [1, 2, 4, 6]) == [
        (245, 245),
        (281, 317),
        (389, 461),
        (461, 569),
    ]
    assert scales.scale_sizes(accurate, 400, 300, [2]) == [(317, 281)]
    assert scales.scale_sizes(small, 50, 80, ["native"]) == [(50, 80)]
    assert scales.scale_sizes(small, 50, 80, [(100, 60), (60, 100)]) == [(60, 100), (60, 100)]
    assert scales.scale_sizes(small, 80, 50, [(100, 60), (60, 100)]) == [(100, 60), (100, 60)]
    assert scales.scale_sizes(small, 80, 50) == six_scales(small, 80, 50)
    for chosen, message in (([], "no scales"), ([0], "scale 0"), ([7], "scale 7"), (["big"], "'big'")):
        with pytest.raises(InputError, match=message):
            scales.scale_sizes(small, 60, 60, chosen)
    with pytest.raises(InputError, match="at 40x90 the image is smaller than the small net's window of 47x47"):
        scales.scale_sizes(small, 60, 60, [(40, 90)])


def test_images_of_a_wrong_shape_are_refused(make_net):
    for shape in ((50, 50), (1, 4, 50, 50), (3, 0, 50)):
        with pytest.raises(ValueError, match="images must be"):
            evaluate.score_maps(make_net("small"), torch.zeros(shape))


@pytest.mark.parametrize("name", ["small", "thin accurate"])
def test_the_memory_that_the_message_asks_for_is_enough(make_net, name):
    net = make_net(name)
    window = net.architecture.window
    images = picture(window + 9, window + 60)
    with pytest.raises(InputError, match="it needs") as error:
        evaluate.score_maps(net, images, ["native"], memory=1000)
    needed = float(re.search(r"it needs ([\d.]+) MiB", str(error.value))[1])
    assert evaluate.score_maps(net, images, ["native"], memory=int(needed * 2**20))


def test_a_batch_beyond_the_memory_is_cut_by_images(make_net):
    net = make_net("small")
    images = picture(64, 80, count=7)
    found = grid.grids(net, (64, 80), ["native"], False)
    whole = slice(0, found[0].shape[0]), slice(0, found[0].shape[1])
    one = max(
        tiling.feature_bytes(net.architecture, 1, *whole, "fine", found[0]),
        tiling.classifier_bytes(net, slice(0, 1), *whole, "fine", 3 * net.num_classes),
    )
    for images_at_once in (1, 3, 7):
        parts = list(evaluate.score_parts(net, images, found, "fine", 2 * images_at_once * one))
        assert all((part.rows, part.columns) == whole for part, _ in parts)
        batches = [(part.batch.start, part.batch.stop) for part, _ in parts]
        starts = range(0, 7, images_at_once)
        assert batches == [(start, min(start + images_at_once, 7)) for start in starts]
        scores = torch.cat([scores for _, scores in parts])
        assert_matches(scores, evaluate.score_maps(net, images, ["native"], flip=False)[0].scores, torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_stays_within_the_limit():
    """The peak of a process that evaluates a large image, without and with a limit of 32 MiB."""
    code = (
        "import sys, torch, overfeat\n"
        "from overfeat.dense import evaluate, grid\n"
        "torch.set_num_threads(1)\n"
        "net = overfeat.build('small', 10).eval()\n"
        "image = torch.zeros(1, 3, 900, 1200, dtype=torch.uint8)\n"
        "grids = grid.grids(net, (900, 1200), ['native'], False, 'fine')\n"
        "def peak():\n"  # of this process alone; getrusage also counts the one that started it
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line.split()[1] for line in lines if line.startswith('VmHWM'))) // 1024\n"
        "overfeat.classify(net, image[:, :, :100, :100], ['native'])\n"
        "before = peak()\n"
        "for part in evaluate.score_parts(net, image, grids, 'fine', int(sys.argv[1]) << 20):\n"
        "    pass\n"
        "print(peak() - before)\n"
    )
    grown = [
        int(subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True, check=True).stdout)
        for limit in ("32", "8192")
    ]
    assert grown[0] < 3 * 32, f"{grown[0]} MiB under a limit of 32"
    assert grown[1] > 3 * grown[0], f"{grown} MiB: the image was too small to tell"
