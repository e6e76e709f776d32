"""Target assignment, the scale factors chosen for objects, and the tiles that detectors train on."""

import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from overfeat import load
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.data.images import read_image
from overfeat.data.readers.coco import read_coco
from overfeat.data.resize import resize
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.dense.grid import Grid
from overfeat.dense.scales import BEST_OBJECT_SIZE, SCALE_STEP, choose_scales
from overfeat.detection.data import Span, TileDataset
from overfeat.detection.targets import IGNORE_INDEX, RULE, AssignmentRule, assign_targets, expected_votes
from overfeat.errors import InputError

NET = load(SHIPPED_WEIGHTS).architecture


def windows(height, width, stride=4):
    return torch.from_numpy(Grid((47, 47), stride, (height, width), (height, width)).boxes()).float()


def assign(windows, boxes, labels, background=7, **options):
    return assign_targets(windows, torch.tensor(boxes), torch.tensor(labels), background=background, **options)


def box(x, y, side, other=None):
    """Centred at (x, y)."""
    other = other or side
    return [x - side / 2, y - other / 2, x + side / 2, y + other / 2]


def test_an_object_in_the_middle():
    """Windows of stride 4 whose centres are within 0.15 of 47 px of the object's are positive."""
    targets, objects = assign(windows(147, 147), [box(75.5, 73.5, 30, 12)], [2])
    positive = (objects == 0).nonzero().tolist()
    # Centres 23.5 + 4 k: 67.5 to 79.5 across within 7.05 of 75.5 are 71.5, 75.5 and 79.5; 69.5... down of 73.5.
    columns, rows = (
        {k for k in range(26) if abs(23.5 + 4 * k - at) <= RULE.center_tolerance * 47} for at in (75.5, 73.5)
    )
    assert {tuple(position) for position in positive} == {(row, column) for row in rows for column in columns}
    assert (targets[objects == 0] == 2).all() and len(positive) >= 9
    near = (targets == IGNORE_INDEX).nonzero()
    assert len(near) and (targets == 7).sum() == targets.numel() - len(positive) - len(near)
    centres = 23.5 + 4 * near.flip(1)
    assert ((centres - torch.tensor([75.5, 73.5])).abs().amax(dim=1) <= 0.35 * 47).all()


@pytest.mark.parametrize(
    ("fraction", "target"), [(0.2, 7), (0.35, IGNORE_INDEX), (0.5, 2), (0.9, 2), (1.1, IGNORE_INDEX), (1.4, 7)]
)
def test_only_objects_that_fit(fraction, target):
    """A window is negative for objects far from its size limits, even at its centre."""
    targets, _ = assign(windows(147, 147), [box(75.5, 75.5, 47 * fraction)], [2])
    assert targets[13, 13] == target


def test_the_nearest_object_and_difficult_ones():
    boxes = [box(71.5, 75.5, 30), box(77.5, 75.5, 30)]
    targets, objects = assign(windows(147, 147), boxes, [1, 2])
    assert (targets[13, 12], targets[13, 13]) == (1, 2) and (objects[13, 12], objects[13, 13]) == (0, 1)
    targets, objects = assign(windows(147, 147), boxes, [1, 2], ignored=torch.tensor([False, True]))
    assert (targets[13, 12], targets[13, 13]) == (1, IGNORE_INDEX) and objects[13, 13] == -1


def test_an_object_in_the_corner_has_a_positive_window():
    """No window's centre is nearer than 8.5 px, 0.18 of a window: the nearest is positive."""
    targets, objects = assign(windows(147, 147), [box(15, 15, 30)], [3])
    assert targets[0, 0] == 3 and (objects == 0).sum() == 1
    # An object that reaches out of all windows has none.
    _, objects = assign(windows(147, 147), [box(2, 15, 30)], [3])
    assert not (objects == 0).any()


def test_a_rule_of_one_s_own():
    """A tighter tolerance leaves fewer positive windows, and as few expected votes."""
    thing, rule = torch.tensor([box(75.5, 73.5, 30)]), AssignmentRule(center_tolerance=0.05)
    _, objects = assign_targets(windows(147, 147), thing, torch.tensor([2]), background=7, rule=rule)
    grid = Grid((47, 47), 4, (147, 147), (147, 147))
    assert int((objects == 0).sum()) == int(expected_votes(thing, [grid], rule=rule)[0]) == 2
    assert int(expected_votes(thing, [grid])[0]) == 12


def test_no_objects():
    targets, objects = assign_targets(
        windows(60, 60), torch.empty(0, 4), torch.empty(0, dtype=torch.int64), background=4
    )
    assert (targets == 4).all() and (objects == -1).all()


@pytest.mark.parametrize("sides", [[10, 100], [24, 100], [47], [300, 400, 500], np.geomspace(8, 2000, 500)])
def test_every_object_fits_at_one_of_the_scale_factors(sides):
    scale_factors = choose_scales(sides, 47)
    assert all(1 < b / a <= SCALE_STEP * 1.001 for a, b in itertools.pairwise(scale_factors))
    low, high = np.percentile(sides, [5, 95])
    inner = np.array([side for side in sides if low <= side <= high])
    sizes = inner[:, None] * np.array(scale_factors) / 47
    assert RULE.fits(sizes).any(axis=1).all()
    assert (abs(np.log(sizes / BEST_OBJECT_SIZE)).min(axis=1) <= np.log(SCALE_STEP) / 2 + 1e-3).all()


def test_scale_factors_need_boxes():
    with pytest.raises(InputError, match="no boxes"):
        choose_scales([], 47)
    with pytest.raises(InputError, match="in pixels"):
        choose_scales([0.1, 0.2], 47)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_expected_votes_count_the_positive_windows(scale):
    """As many as `assign_targets` gives a single object, but for the nearest ones at a border."""
    grids = [Grid((47, 47), 4, (height, width), (120, 160)) for height, width in ((119, 159), (63, 79))]
    for x, y, side in ((80, 60, 30), (70, 60, 60), (23, 60, 30), (40, 50, 21), (60, 60, 100), (5, 5, 30)):
        thing = torch.tensor([box(x, y, side * scale, side)])
        count = 0
        for grid in grids:
            _, objects = assign_targets(
                torch.from_numpy(grid.boxes()), thing.double(), torch.zeros(1).long(), background=9
            )
            count += int((objects == 0).sum())
        assert int(expected_votes(thing, grids)[0]) == max(1, count) or min(x, y) < 24
    assert expected_votes(torch.tensor([box(80, 60, 30), box(5, 5, 1)]), grids).tolist()[1] == 1


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return read_coco(write_dataset(tmp_path_factory.mktemp("scenes"), "train", 6, objects=(0, 8), progress=False))


def test_mirrored_tiles(scenes):
    """At random, with their boxes."""
    plain, flipped = (
        TileDataset(scenes, NET.geometry, (0.6, 1.2), 100, samples_per_image=5, flip=flip) for flip in (False, True)
    )
    mirrored = 0
    for index in range(len(plain)):
        one, other = plain[(0, index)], flipped[(0, index)]
        if torch.equal(one["image"], other["image"]):
            assert torch.equal(one["boxes"], other["boxes"])
        else:
            mirrored += 1
            assert torch.equal(one["image"].flip(-1), other["image"])
            width = one["image"].shape[2]
            np.testing.assert_allclose(width - other["boxes"][:, [2, 0]], one["boxes"][:, [0, 2]], atol=1e-4)
    assert 8 <= mirrored <= 22


def test_an_image_is_read_once_where_few_fit(scenes):
    """In the order of training, which has every tile once."""
    plenty, few = (
        TileDataset(scenes, NET.geometry, (0.6,), 100, samples_per_image=4, cache_bytes=size)
        for size in (10**9, 1_600_000)
    )
    read = []
    few.cache._read = lambda number, of=few.cache._read: read.append(number) or of(number)
    few.cache.cache_bytes = 1_600_000 // 8  # as the eighth worker has it
    for tiles in (plenty, few):
        order = tiles.order(len(tiles), generator=torch.Generator().manual_seed(1)).tolist()
        assert sorted(order) == list(range(len(tiles)))
        runs = sum(a // 4 != b // 4 for a, b in pairwise(order))
        assert runs > len(scenes)  # the tiles of an image do not come in a row
    for index in order:
        few[(0, index)]
    assert sorted(read) == list(range(len(scenes)))
    assert few.cache.used <= 200_000


def test_tiles_are_crops_of_the_images(scenes):
    """Each tile, scaled back, is the region that its boxes imply."""
    tiles = TileDataset(scenes, NET.geometry, (0.6, 1.2), 100, samples_per_image=5, flip=False, seed=3)
    assert len(tiles) == 6 * 5
    with_boxes = complete = 0
    for index in range(len(tiles)):
        item, again = tiles[(2, index)], tiles[(2, index)]
        assert torch.equal(item["image"], again["image"]) and torch.equal(item["boxes"], again["boxes"])
        sample, height, width = scenes.samples[index // 5], *item["image"].shape[1:]
        assert min(height, width) >= 47 and (height - 47) % 4 == (width - 47) % 4 == 0
        assert max(height, width) <= 110
        if len(item["boxes"]) < 2:
            continue
        with_boxes += 1
        # The scale factor and offset from the boxes of the image to those of the tile, along each axis.
        boxes = item["boxes"].double().numpy()
        match = [sample.boxes[list(sample.labels).index(label)] for label in item["labels"].numpy()]
        if len(set(sample.labels)) < len(sample.labels):
            continue
        match = np.array(match)
        (zx, x0), (zy, y0) = (np.polyfit(match[:, [k, k + 2]].ravel(), boxes[:, [k, k + 2]].ravel(), 1) for k in (0, 1))
        np.testing.assert_allclose(match * [zx, zy, zx, zy] + [x0, y0, x0, y0], boxes, atol=0.02)
        left, top = round(-x0 / zx), round(-y0 / zy)
        region = sample.read()[None, :, top : top + round(height / zy), left : left + round(width / zx)]
        assert (resize(region, (height, width))[0].int() - item["image"].int()).abs().max() <= 1
        complete += int(((boxes[:, :2] >= 0) & (boxes[:, 2:] <= [width, height])).all(axis=1).any())
    assert with_boxes > len(tiles) / 4 and complete >= 4
    first, later = tiles[(0, 0)], tiles[(1, 0)]
    assert first["image"].shape != later["image"].shape or not torch.equal(first["image"], later["image"])


def test_a_tile_shows_its_boxes(scenes):
    """At scale 1 a tile is a crop, pixel by pixel."""
    sample = max(scenes.samples, key=lambda sample: len(sample.labels))
    image = read_image(sample.path)
    data = replace(scenes, samples=[sample])
    tiles = TileDataset(data, NET.geometry, (1.0,), 60, samples_per_image=40, flip=False)
    tiles._region = lambda rng, shape, sample: (Span(5, 64, 59, 0, 0), Span(9, 68, 59, 0, 0))
    item = tiles[(0, 0)]
    assert torch.equal(item["image"], image[:, 5:64, 9:68])
    inside = (sample.boxes[:, 0] < 68) & (sample.boxes[:, 1] < 64) & (sample.boxes[:, 2] > 9) & (sample.boxes[:, 3] > 5)
    np.testing.assert_allclose(item["boxes"].numpy(), sample.boxes[inside] - [9, 5, 9, 5], atol=1e-4)
    assert item["labels"].tolist() == sample.labels[inside].tolist()


def test_unreadable_images_give_empty_tiles(scenes, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    data = replace(scenes, samples=[replace(scenes.samples[0], path=tmp_path / "bad.png"), scenes.samples[1]])
    tiles = TileDataset(data, NET.geometry, (1.0,), 100, samples_per_image=1, flip=False)
    assert [tiles[(0, number)]["unreadable"] for number in (0, 1)] == [0, -1]
    assert not len(tiles[(0, 0)]["boxes"]) and "bad.png" in tiles.cache.error_for(0)[1]
