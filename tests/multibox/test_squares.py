"""The squares that DeepMultiBox trains on, against their rules checked pixel by pixel."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat.data.readers.coco import read_coco
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.errors import InputError
from overfeat.multibox.data import (
    COVERAGE_BINS,
    NEGATIVE_IOU,
    POSITIVE_IOU,
    BoxCropDataset,
    SquareDataset,
    centre_square,
)
from overfeat.ops.boxes import iou, squares_around


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three images of 200 x 150 px: a large and a small box each, painted white on black; the last has none."""
    root = tmp_path_factory.mktemp("pictures")
    boxes = [[(20, 30, 60, 90), (130, 60, 160, 90)], [(60, 20, 110, 80), (5, 5, 30, 45)], []]
    annotations = []
    for number, of_image in enumerate(boxes):
        pixels = np.zeros((150, 200, 3), dtype=np.uint8)
        for x1, y1, x2, y2 in of_image:
            pixels[y1:y2, x1:x2] = 255
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": len(annotations) % 2}
            annotations.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        Image.fromarray(pixels).save(root / f"{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 150} for i in range(3)]
    categories = [{"id": 0, "name": "even"}, {"id": 1, "name": "odd"}]
    (root / "all.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return read_coco(root / "all.json")


def test_squares_are_covered_as_their_bin_demands(pictures):
    """The fraction of white pixels in a square is what its boxes cover."""
    data = SquareDataset(pictures, 64, 40)
    fits = []
    for index in range(80):  # of the two images with boxes
        white = float((data[index]["image"].float() > 127).float().mean())
        low, high = COVERAGE_BINS[index % 4]
        fits.append(low - 0.03 <= white <= high + 0.03)
    assert np.mean(fits) > 0.95


def test_boxes_lie_where_the_objects_are(pictures):
    """Painting an item's boxes gives its image, but for objects of which it holds less than half."""
    data = SquareDataset(pictures, 64, 40)
    complete = 0
    for index in range(80):
        item, painted = data[index], torch.zeros(64, 64)
        for x1, y1, x2, y2 in (item["boxes"] * 64).round().int().clamp(0, 64).tolist():
            painted[y1:y2, x1:x2] = 1
        white = (item["image"][0] > 127).float()
        assert ((painted == 1) & (white == 0)).float().mean() < 0.03
        if len(item["boxes"]) == 2:  # all there are
            complete += 1
            assert (painted - white).abs().mean() < 0.03
    assert complete > 5


def test_squares_hold_half_of_their_objects_or_more(pictures):
    data = SquareDataset(pictures, 64, 40, flip=False)
    for index in range(80):
        boxes = data[index]["boxes"]
        seen = boxes.clamp(0, 1)
        visible = (seen[:, 2:] - seen[:, :2]).prod(dim=1) / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        assert (visible >= 0.5 - 1e-5).all()


def test_items_are_the_same_every_time_and_differ_between_epochs(pictures):
    one, other = SquareDataset(pictures, 32, 4, seed=3), SquareDataset(pictures, 32, 4, seed=3)
    for index in range(len(one)):
        assert torch.equal(one[1, index]["image"], other[1, index]["image"])
    assert any(not torch.equal(one[1, index]["image"], one[2, index]["image"]) for index in range(len(one)))


def test_ground_truth_is_that_of_the_first_epoch(pictures):
    data = SquareDataset(pictures, 32, 8, seed=1)
    expected = torch.cat([data[0, index]["boxes"] for index in range(len(data))])
    actual = torch.from_numpy(data.ground_truth(10**6)).float()
    assert len(actual) == len(expected) > 8
    assert torch.cdist(expected, actual).amin(dim=1).max() < 1e-6
    assert 5 <= len(data.ground_truth(5)) < 8


def test_validation_uses_the_centre_square(pictures):
    data = SquareDataset(pictures, 150, centred=True)
    assert len(data) == 3 and centre_square(150, 200) == (25, 0, 175, 150)
    item, image = data[0], pictures.samples[0].read()
    assert torch.equal(item["image"], image[:, :, 25:175])
    # It holds 35 of the first object's 40 columns, and the whole second object.
    assert torch.allclose(
        item["boxes"] * 150 + torch.tensor([25.0, 0, 25, 0]), torch.from_numpy(pictures.samples[0].boxes).float()
    )


def test_boxes_overlap_objects_or_are_background(pictures, monkeypatch):
    data = BoxCropDataset(pictures, 24, 12, flip=False)
    asked = []

    def noted(boxes, size, square):
        asked.append(boxes)
        return squares_around(boxes, size, square)

    monkeypatch.setattr("overfeat.multibox.data.squares_around", noted)
    for index in range(len(data)):
        item, sample = data[index], pictures.samples[index // 12]
        overlaps = iou(asked[-1], torch.from_numpy(sample.boxes))[0]
        if item["label"] == data.background:
            assert not len(overlaps) or overlaps.max() <= NEGATIVE_IOU
            assert index % 3 or index >= 24  # an image without objects has no others
        else:
            assert index % 3 == 0 and overlaps.max() >= POSITIVE_IOU
            assert item["label"] == sample.labels[overlaps.argmax()]
        assert item["image"].shape == (3, 24, 24)


def test_unreadable_images_are_reported(pictures, tmp_path):
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no image")
    samples = [replace(pictures.samples[0], path=broken), *pictures.samples[1:]]
    for data in (
        SquareDataset(replace(pictures, samples=samples), 32),
        BoxCropDataset(replace(pictures, samples=samples), 32),
    ):
        assert data[0]["unreadable"] == 0 and data[len(data) - 1]["unreadable"] == -1
        assert "x.png" in data.cache.error_for(0)[1]


@pytest.mark.parametrize("square", ["maximum", "minimum"])
def test_squares_around_boxes(square):
    boxes = torch.tensor([[10.0, 20, 50, 40], [0, 0, 30, 90], [100, 10, 180, 90], [150, 95, 199, 100]])
    squares = squares_around(boxes, (100, 200), square)
    sides = squares[:, 2:] - squares[:, :2]
    wide, tall = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
    expected = torch.maximum(wide, tall) if square == "maximum" else torch.minimum(wide, tall)
    assert torch.equal(sides[:, 0], sides[:, 1]) and torch.equal(sides[:, 0], expected)
    assert (squares >= 0).all() and (squares <= torch.tensor([200.0, 100, 200, 100])).all()
    middles = (squares[:, :2] + squares[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    assert not middles[0].any()  # far from the border
    if square == "maximum":
        assert (squares[:, :2] <= boxes[:, :2]).all() and (squares[:, 2:] >= boxes[:, 2:]).all()


def test_squares_of_synthetic_images_are_in_their_bins(tmp_path):
    """Nearly all, with boxes that cover much and little; numbers that would leave bins out are refused."""
    scenes = read_coco(write_dataset(tmp_path, "train", 12, objects=(1, 8), progress=False))
    data = SquareDataset(scenes, 32, 8)
    fits = np.zeros(4)
    for number, sample in enumerate(scenes.samples):
        for tile in range(8):
            square, _, _ = data._square(np.random.default_rng([number, tile]), tile, sample)
            x1, y1, x2, y2 = square.astype(int)
            mask = np.zeros(sample.size, dtype=bool)
            for a, b, c, d in sample.boxes.astype(int):
                mask[b:d, a:c] = True
            low, high = COVERAGE_BINS[tile % 4]
            fits[tile % 4] += low - 0.02 <= mask[y1:y2, x1:x2].mean() <= high + 0.02
    assert (fits / (2 * len(scenes)) > 0.6).all() and fits.sum() / (8 * len(scenes)) > 0.8
    with pytest.raises(InputError, match="samples_per_image must be a multiple of 4"):
        SquareDataset(scenes, 32, 6)
    with pytest.raises(InputError, match="samples_per_image must be a multiple of 3"):
        BoxCropDataset(scenes, 32, 2)


def test_background_where_everything_is_an_object(pictures):
    """The boxes with the smallest overlap."""
    full = replace(pictures.samples[0], boxes=np.array([[0.0, 0, 200, 150]]), labels=np.array([0]))
    full = replace(full, difficult=np.array([False]))
    data = BoxCropDataset(replace(pictures, samples=[full]), 24, 3)
    assert [data[i]["label"] for i in range(3)] == [0, 2, 2]
