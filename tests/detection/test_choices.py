"""What training a detector chooses from the data, and what it says when it fails."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from overfeat import build
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.data.annotated import Annotated, Sample
from overfeat.dense.scales import choose_scales
from overfeat.detection.build import (
    build_detector,
    choose_options,
    choose_reach,
    choose_training,
    describe_choices,
    fitting,
    longer_sides,
)
from overfeat.detection.config import TILES, TRAINING, DetectorConfig
from overfeat.detection.data import TileDataset
from overfeat.detection.train import DetectorTask


def annotated(boxes, names=("cell",), size=(480, 640), images=4):
    """Images that do not exist, each with these boxes, of the classes in turn."""
    boxes = np.array(boxes, dtype=np.float64)
    labels = np.arange(len(boxes)) % len(names)
    sample = Sample(Path("image.jpg"), boxes, labels, np.zeros(len(boxes), dtype=bool), size)
    return Annotated(list(names), [sample] * images)


def square(x, y, side):
    """A box centred at (x, y)."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


@pytest.fixture(scope="module")
def on_squeezenet():
    """What `build_detector` gives for photographs."""
    data = annotated([square(100, 100, 60), square(300, 200, 60)])
    return build_detector(data, DetectorConfig(), shipped=SHIPPED_WEIGHTS)


def test_photographs_start_from_squeezenet_and_digits_from_the_shipped_net(on_squeezenet):
    net, regressor, init = on_squeezenet
    assert init is None and net.backbone is not None and net.context is None and net.architecture.window == 55
    weights = [*net.parameters(), *regressor.parameters()]
    assert sum(weight.numel() for weight in weights) * 2 < 3e6  # bytes as float16
    boxes = [square(100, 100, 60), square(300, 200, 60)]
    net, _, init = build_detector(annotated(boxes, ("3", "7")), DetectorConfig(), shipped=SHIPPED_WEIGHTS)
    assert init == SHIPPED_WEIGHTS and net.backbone is None and net.context is not None
    net, _, init = build_detector(annotated(boxes, ("3", "7")), DetectorConfig(window=71), shipped=SHIPPED_WEIGHTS)
    assert init is None and net.backbone is not None and net.architecture.window == 71


@pytest.mark.parametrize(
    ("boxes", "size", "reach"),
    [
        ([square(320, 240, 60)] * 4, (480, 640), 0.0),
        ([square(320, 240, 60), [0, 100, 20, 160]], (480, 640), 0.5),  # cut off by the border
        ([[2, 2, 198, 148]], (150, 200), 0.375),  # fills its image
    ],
)
def test_windows_reach_as_far_as_the_objects_need(on_squeezenet, boxes, size, reach):
    data, net = annotated(boxes, size=size), on_squeezenet[0]
    net.scale_factors = choose_scales(longer_sides(data), 55)
    assert choose_reach(data, net) == reach
    assert fitting(data, net, reach).all()
    if reach:
        assert not fitting(data, net, 0.0, tolerance=0.0).all()


def test_rare_classes_have_scales_of_their_own():
    """A few small objects among many large ones; one outlier of a class does not count."""
    sides, labels = [200] * 400 + [20] * 20 + [2], [0] * 400 + [1] * 20 + [0]
    factors = choose_scales(sides, 55, labels)
    assert factors[0] == pytest.approx(0.65 * 55 / 200, rel=0.01)
    assert factors[-1] == pytest.approx(0.65 * 55 / 20, rel=0.01)


def test_length_and_turns_follow_the_data():
    data = annotated([square(100 + 20 * i, 100, 50) for i in range(10)], images=5)
    options = choose_options(data, DetectorConfig())
    assert options.samples_per_image == 200 and options.quarter_turns
    assert choose_training(data, DetectorConfig(), TRAINING).epochs == TILES // 1000
    assert choose_training(data, DetectorConfig(), replace(TRAINING, epochs=3)).epochs == 3
    assert choose_training(annotated([square(100, 100, 50)], images=20_000), DetectorConfig(), TRAINING).epochs == 6
    people = annotated([[100 + 20 * i, 100, 130 + 20 * i, 190] for i in range(10)], images=5)
    assert not choose_options(people, DetectorConfig()).quarter_turns
    assert choose_options(people, DetectorConfig(quarter_turns=True)).quarter_turns


def test_choices_are_stated_with_the_cost_of_each_scale(on_squeezenet):
    data, net = annotated([square(100, 100, 30), square(300, 200, 120), [0, 0, 30, 60]]), on_squeezenet[0]
    net.scale_factors, net.reach = choose_scales(longer_sides(data), 55), 0.5
    lines = describe_choices(data, net, DetectorConfig(), TRAINING, None)
    scales = next(line for line in lines if line.startswith("scales"))
    assert sum(int(part.split(" %")[0]) for part in scales.split("(")[1:-1]) in range(97, 104)
    text = "\n".join(lines)
    for word in ("on ImageNet", "windows reach", "quarter turns", "40 epochs of 1000 tiles", "learning rate 0.0015"):
        assert word in text, word


class Tiles(TileDataset):
    """Tiles of an image in memory."""

    def __init__(self, image, sample, *args, **options):
        super().__init__(Annotated(["a", "b"], [sample]), *args, **options)
        self.image = image

    def draw(self, seed):
        return self.sample_tile(np.random.default_rng(seed), 0, self.image, self.annotated.samples[0])


@pytest.fixture
def tiles():
    """A bright object of class a in the corner of a dark image, ten of class b in its middle."""
    image = torch.full((3, 200, 200), 20, dtype=torch.uint8)
    boxes = np.array([[0.0, 0, 30, 30], *[[100 + 5 * i, 100, 130 + 5 * i, 130] for i in range(10)]])
    image[:, :30, :30] = 250
    labels = np.array([0] + [1] * 10)
    sample = Sample(Path("image.png"), boxes, labels, np.zeros(11, dtype=bool), (200, 200))
    geometry = build("small", 2).geometry
    return Tiles(image, sample, geometry, (1.0,), 80, margin=24, color=(118.0,), quarter_turns=True, color_jitter=0.1)


def test_tiles_reach_beyond_the_image(tiles):
    """Over the mean colour; a box lies on its object, turned and stretched as it may be."""
    beyond = seen = 0
    for seed in range(60):
        item = tiles.draw(seed)
        pixels, bright = item["image"], item["image"][0] > 160
        beyond += bool((pixels == 118).all(dim=0).float().mean() > 0.05)
        for box in item["boxes"][item["labels"] == 0].round().int().tolist():
            x1, y1, x2, y2 = (max(0, edge) for edge in box)
            if x2 - x1 > 10 and y2 - y1 > 10:
                seen += 1
                assert bright[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
                assert bright.sum() <= (x2 - x1 + 3) * (y2 - y1 + 3)
    assert beyond > 10 and seen > 10


def test_classes_are_equally_frequent_in_tiles(tiles):
    """One object of class a against ten of b: the tiles around a are as many."""
    with_a = sum(bool((tiles.draw(seed)["labels"] == 0).any()) for seed in range(120))
    assert 30 < with_a < 90


def test_warnings_of_a_net_that_does_not_learn():
    figures = {"train_missed_error": 0.2, "train_score_spread": 0.3}
    task = object.__new__(DetectorTask)
    assert task.warnings(figures, []) == []
    (line,) = task.warnings({**figures, "train_missed_error": 1.0}, [])
    assert "not one positive window" in line and "learning rate" in line
    (line,) = task.warnings({**figures, "train_score_spread": 0.001}, [])
    assert "nearly the same" in line
