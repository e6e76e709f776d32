"""Detection in large images: in blocks, to the result of the image in memory."""

import io
import pickle
import re
import resource
import sys
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from large_files import write_pyramid
from torch import nn
from tqdm import tqdm

import overfeat
from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR
from overfeat.data.images import read_image
from overfeat.data.resize import resize
from overfeat.dense.config import DenseConfig
from overfeat.detection.predict import detect, detection_rule
from overfeat.errors import ArgumentError, InputError, WriteError
from overfeat.large import TileError, blocks, merge, open_image
from overfeat.large.blocks import block_path, pending_blocks, plan_blocks
from overfeat.large.config import LargeConfig
from overfeat.large.detect import detect_block, detect_large, detection_job, merge_blocks
from overfeat.large.view import View


@pytest.fixture(scope="module")
def detector():
    return overfeat.load(SHIPPED_DETECTOR), overfeat.load_regressor(SHIPPED_DETECTOR)


@pytest.fixture(scope="module")
def scene():
    """Digits, uint8 [3, 300, 450]."""
    paths = sorted((ASSETS / "multi-object" / "test").glob("*.png"))[:6]
    images = [resize(read_image(path)[None], (150, 150))[0] for path in paths]
    return torch.cat([torch.cat(images[:3], dim=2), torch.cat(images[3:], dim=2)], dim=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 150)
    monkeypatch.setattr(merge, "HELD", 50)


def array(image):
    return image.permute(1, 2, 0).numpy()


def assert_equal(actual, expected):
    """But for rounding, and the order of equal scores."""
    keys = [expected.boxes[:, 0], expected.boxes[:, 1], expected.labels, -expected.scores]
    expected = expected[torch.from_numpy(np.lexsort([key.numpy() for key in keys]))]
    assert torch.equal(actual.labels, expected.labels) and len(actual) > 3
    for name, value in vars(actual).items():
        assert torch.allclose(value.double(), getattr(expected, name).double(), rtol=1e-4, atol=1e-3), name


@pytest.mark.parametrize("postprocess, flip", [("vote", True), ("merge", False), ("nms", False)])
def test_blocks_give_what_the_image_in_memory_gives(postprocess, flip, detector, scene):
    options = {"postprocess": postprocess, "flip": flip, "scales": [0.6, (220, 330)]}
    small = {"memory_limit": 8 << 20}
    actual = detect_large(*detector, open_image(array(scene)), **options, **small)
    assert_equal(actual, detect(*detector, scene, **options))


def test_context_and_reach(make_net, scene):
    """Of a net that sees surroundings at half the resolution, and whose windows reach beyond the border."""
    net = make_net("small")
    net.add_context()
    nn.init.normal_(net.context.weight, 0.0, 0.05)
    net.background, net.reach = True, 0.3
    regressor = overfeat.BoxRegressor(net.architecture)
    options = {"scales": [0.7], "score_threshold": 0.2, "min_score": 0.0, "postprocess": "nms"}
    actual = detect_large(net, regressor, open_image(array(scene)), memory_limit=8 << 20, **options)
    assert_equal(actual, detect(net, regressor, scene, **options))


def test_your_own_module(scene):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten())
            self.scores, self.boxes = nn.Linear(4 * 49, 3), nn.Linear(4 * 49, 4)

        def forward(self, windows):
            features = self.body(windows)
            return self.scores(features), self.boxes(features)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = overfeat.densify(Module(), 29, mean=128, std=60)
    net.background = True
    options = {"scales": [1.0], "stride": 12, "score_threshold": 0.4, "min_score": 0.0}
    actual = overfeat.detect(net, net.regressor, open_image(array(scene)), memory_limit=1 << 20, **options)
    assert_equal(actual, detect(net, net.regressor, scene, **options))


def test_a_path_is_read_in_windows(detector, scene, tmp_path):
    options = {"scales": [0.8]}
    write_pyramid(tmp_path / "one.tif", array(scene), levels=1, tile=64)
    actual = detect_large(*detector, tmp_path / "one.tif", **options)
    assert_equal(actual, detect(*detector, scene, **options))
    levels = write_pyramid(tmp_path / "scene.tif", array(scene), levels=2, tile=64)
    similar = overfeat.detect(*detector, tmp_path / "scene.tif", **options)  # its context is that of the coarser level
    assert (
        not torch.equal(similar.scores[:9], actual.scores[:9])
        and (similar.scores[:9] - actual.scores[:9]).abs().max() < 0.1
    )
    half = torch.from_numpy(levels[1]).permute(2, 0, 1)
    actual = detect_large(*detector, tmp_path / "scene.tif", large=LargeConfig(level=1), scales=[1.0], min_score=0.0)
    expected = detect(*detector, half, scales=[1.0], min_score=0.0)
    assert_equal(actual, replace(expected, boxes=expected.boxes * 2))


def test_a_region_is_as_if_cropped(detector, scene):
    own = LargeConfig(region=(100, 50, 200, 220))
    actual = detect_large(*detector, open_image(array(scene)), large=own, scales=[0.8])
    expected = detect(*detector, scene[:, 50:270, 100:300], scales=[0.8])
    assert_equal(actual, replace(expected, boxes=expected.boxes + torch.tensor([100.0, 50, 100, 50])))


def test_a_run_continues_at_the_block(detector, scene, tmp_path, monkeypatch):
    image, own = open_image(array(scene)), {"scales": [0.6, 1.0], "folder": tmp_path}
    expected, count, evaluate = detect_large(*detector, image, scales=[0.6, 1.0]), [], blocks.evaluate_block

    def until_the_fourth(*arguments, **options):
        count.append(arguments[2].number)
        if len(count) == 4:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr("overfeat.large.detect.evaluate_block", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        detect_large(*detector, image, **own)
    again = detect_large(*detector, image, **own)
    assert len(count) == len(set(count)) + 1 and count[3] == count[4], (
        "one block is evaluated again, the one that ended"
    )
    assert all(torch.equal(value, getattr(expected, name)) for name, value in vars(again).items())
    with pytest.raises(InputError, match="another image, net or settings; delete it, or write to another place"):
        detect_large(*detector, image, **own | {"scales": [0.6]})
    with pytest.raises(InputError, match="of another image, net or settings"):
        detect_large(*detector, image, **own, score_threshold=0.5)


def test_blocks_in_other_processes(detector, scene, tmp_path):
    """The plan is pickled; blocks are evaluated in any order."""
    np.save(tmp_path / "scene.npy", array(scene))
    plan = plan_blocks(detector[0], View.of(open_image(tmp_path / "scene.npy")), DenseConfig([0.6]))
    rule = pickle.loads(pickle.dumps(detection_rule(*detector)))
    plan = pickle.loads(pickle.dumps(plan))
    for block in reversed(plan.blocks):
        assert block in pending_blocks(plan.blocks, tmp_path)
        detect_block(*detector, plan, block, tmp_path, rule, memory_limit=4 << 20)
        assert block_path(tmp_path, block).exists()
    assert pending_blocks(plan.blocks, tmp_path) == []
    assert_equal(merge_blocks(plan, tmp_path, rule), detect(*detector, scene, scales=[0.6]))


class Damaged:
    """An image whose columns from 200 to 264 are in a tile that cannot be read."""

    name, tile, georeference = "slide.tif", (300, 64), None

    def __init__(self, image):
        self.image, self.levels = image, [tuple(image.shape[1:])]

    def read(self, level, rows, columns, *, damaged=None):
        pixels = self.image[:, rows, columns].clone()
        left, right = max(200, columns.start) - columns.start, min(264, columns.stop) - columns.start
        if left < right:
            error = TileError(self.name, level, slice(0, 300), slice(200, 264), "broken")
            if damaged is None:
                raise error
            damaged.append(error)
            pixels[:, :, left:right] = 255
        return pixels

    def close(self):
        pass


def test_a_damaged_tile_is_named_and_left_out(make_net, detector, scene):
    net = make_net("small")
    net.background, net.flip = True, False
    regressor = overfeat.BoxRegressor(net.architecture)
    options = {
        "scales": [1.0],
        "postprocess": "nms",
        "nms_iou_threshold": 1.0,
        "min_score": 0.0,
        "score_threshold": 0.2,
    }
    with pytest.warns(UserWarning, match="left out: slide.tif: damaged tile at level 0, rows 0 to 300") as warned:
        actual = detect_large(net, regressor, Damaged(scene), **options)
    assert len([w for w in warned if "damaged" in str(w.message)]) == 1, "once, not for each block"
    parts = [scene[:, :, :200], scene[:, :, 264:]]  # windows on either side, and no other
    left, right = (detect(net, regressor, part, **options) for part in parts)
    expected = sorted([*left.scores.tolist(), *right.scores.tolist()])
    assert len(actual) == len(expected) > 100
    assert np.allclose(sorted(actual.scores.tolist()), expected, atol=1e-4)
    with pytest.raises(TileError, match="damaged tile at level 0"):
        detect_large(net, regressor, Damaged(scene), large=LargeConfig(strict=True), scales=[1.0])
    # The surroundings of windows that see the tile in their context reach twice as far.
    with pytest.warns(UserWarning, match="left out"):
        near = detect_large(*detector, Damaged(scene), **options)
    numbers = detect(*detector, scene, **options)
    centres = (numbers.boxes[:, 0] + numbers.boxes[:, 2]) / 2
    assert 0 < len(near) < len(numbers) - ((centres > 190) & (centres < 270)).sum()


def test_background_is_left_out(detector, scene):
    canvas = torch.full((3, 600, 900), 235, dtype=torch.uint8)
    canvas[:, 300:, 450:] = scene
    view = View.of(open_image(array(canvas)))
    every, own = (plan_blocks(detector[0], view, DenseConfig([1.0]), mask=mask) for mask in (False, True))
    assert every.skipped == 0 and 0.6 < own.skipped < 0.75
    assert {block.number for block in own.blocks} < {block.number for block in every.blocks}
    actual = detect_large(*detector, view.image, large=LargeConfig(mask=True), scales=[1.0])
    inside = detect(*detector, canvas, scales=[1.0])
    assert_equal(actual, inside[(inside.boxes[:, 2:] > torch.tensor([450.0, 300])).all(dim=1)])


def test_a_mask_that_leaves_nothing(detector):
    white = open_image(np.full((200, 300, 3), 240, np.uint8))
    assert len(detect_large(*detector, white, large=LargeConfig(mask=True))) == 0


def test_blocks_depend_on_the_settings_alone(detector, scene):
    view = View.of(open_image(array(scene)))
    plans = [plan_blocks(detector[0], view, DenseConfig([1.0], memory_limit=limit)) for limit in (4 << 20, 1 << 30)]
    assert plans[0].blocks == plans[1].blocks
    seen = torch.zeros(plans[0].grids[0].shape)
    for block in plans[0].blocks:
        seen[block.rows, block.columns] += 1
    assert (seen == 1).all() and len(plans[0].blocks) == 2 * 3


def test_arguments_are_checked_before_the_work(detector, scene):
    image = open_image(array(scene))
    for options, message in (
        ({"box_average": "no"}, "box_average must be one of"),
        ({"max_candidates": 0}, "max_candidates must be 1 or more"),
        ({"score_threshold": 2}, "score_threshold must be between 0 and 1"),
        ({"scales": [1]}, "scales must be factors"),
    ):
        with pytest.raises(ArgumentError, match=message):
            detect_large(*detector, image, **options)
    with pytest.raises(InputError, match="the net gives NaN"):
        broken = overfeat.load_regressor(SHIPPED_DETECTOR)
        with torch.no_grad():
            next(broken.parameters()).fill_(torch.nan)
        detect_large(detector[0], broken, image, scales=[1.0])


def test_a_full_disk_is_one_clear_error_and_blocks_are_kept(detector, scene, tmp_path):
    image, limit = open_image(array(scene)), resource.getrlimit(resource.RLIMIT_FSIZE)
    job = detection_job(*detector, image, tmp_path, scales=[0.8])
    job.evaluate(job.plan.blocks[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(WriteError, match=r"00000001.safetensors: cannot be written .*free space"):
            job.evaluate(job.plan.blocks[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert pending_blocks(job.plan.blocks, tmp_path) == job.plan.blocks[1:]


def test_the_bar_forecasts_the_end(detector, scene, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm, "__init__", partialmethod(tqdm.__init__, mininterval=0))
    detect_large(*detector, open_image(array(scene)), scales=[0.6], progress=True)
    assert re.search(r"[12]/2 .*block.*done at about \d\d:\d\d", sys.stderr.getvalue())
