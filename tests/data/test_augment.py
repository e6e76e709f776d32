"""Augmentation of images and their boxes."""

import numpy as np
import pytest
import torch

from overfeat.data.augment import allows_quarter_turns, jitter_color, mirror_image, quarter_turn


@pytest.mark.parametrize("change", [mirror_image, quarter_turn])
def test_boxes_move_with_their_pixels(change):
    """The object, whose pixels differ from all others, lies in its box afterwards; four turns give the image again."""
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 4:9, 7:20] = 200
    changed, boxes = change(image, torch.tensor([[7.0, 4, 20, 9]]))
    x1, y1, x2, y2 = boxes[0].int().tolist()
    assert (changed[:, y1:y2, x1:x2] == 200).all() and int((changed == 200).sum()) == 3 * 5 * 13
    for _ in range(3):
        changed, boxes = change(changed, boxes)
    assert torch.equal(changed, image) and boxes.tolist() == [[7, 4, 20, 9]]


def test_colours_change_within_their_strength():
    image = torch.randint(60, 180, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(50):
        changed = jitter_color(image, rng, 0.2)
        assert changed.dtype == torch.uint8 and changed.shape == image.shape
        means.append(float(changed.float().mean() / image.float().mean()))
    assert min(means) > 0.8 * 0.9 and max(means) < 1.2 * 1.1 and max(means) - min(means) > 0.2
    assert (jitter_color(image, rng, 0.0).int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize(("aspects", "expected"), [((1.0, 1.0), True), ((1.0, 0.6), False), ((0.5, 2.0), False)])
def test_objects_without_an_upright_direction(aspects, expected):
    """Boxes as often wide as high, in every class."""
    rng = np.random.default_rng(0)
    heights = 40 * np.exp(rng.normal(0, 0.2, 200))
    labels = np.arange(200) % 2
    widths = heights * np.array(aspects)[labels] * np.exp(rng.normal(0, 0.2, 200))
    boxes = np.stack([np.zeros(200), np.zeros(200), widths, heights], axis=1)
    assert allows_quarter_turns(boxes, labels) == expected


def test_few_boxes_do_not_tell():
    boxes = np.tile([0.0, 0, 10, 10], (5, 1))
    assert not allows_quarter_turns(boxes, np.zeros(5, dtype=np.int64))
