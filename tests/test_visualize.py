"""Pictures of scores: what is drawn where."""

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat import visualize
from overfeat.data.annotated import Sample
from overfeat.dense.detections import Detections
from overfeat.dense.grid import Grid
from overfeat.dense.maps import ScoreMap
from overfeat.detection.evaluate import PredictedImages, detection_figures
from overfeat.errors import WriteError
from overfeat.metrics.average_precision import Boxes, ground_truth
from overfeat.visualize.scores import draw_best_window, draw_map

pytest.importorskip("matplotlib")
NAMES = ["$\\frac", "100 % _wool_", "ash\udcff\ud800"]  # no mathematics, nor text


def score_map(scaled, best, flipped=False):
    """Scores of three classes for an image of 60x90; the first is 1 at one position, 0 elsewhere."""
    grid = Grid((30, 30), 10, scaled, (60, 90), flipped)
    scores = torch.full((1, 3, *grid.shape), 0.1)
    scores[0, 0] = 0
    scores[(0, 0, *best)] = 1
    return ScoreMap(scores, grid)


@pytest.fixture
def image():
    return torch.full((3, 60, 90), 200, dtype=torch.uint8)


def cyan(path):
    """The parts of a picture in the colour of windows: (x1, y1, x2, y2)."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    y, x = np.nonzero((pixels[..., 0] < 60) & (pixels[..., 1:] > 200).all(axis=2))
    return x.min(), y.min(), x.max(), y.max()


def test_the_best_window_is_outlined_in_every_panel(image, tmp_path):
    left, right = score_map((60, 90), (0, 0)), score_map((60, 90), (3, 6))
    visualize.heat_maps(image, [left], 0, "left", tmp_path / "left.png")
    visualize.heat_maps(image, [right], 0, "right", tmp_path / "right.png")
    before, after = cyan(tmp_path / "left.png"), cyan(tmp_path / "right.png")
    assert all(a < b for a, b in zip(before, after, strict=True))
    width = before[2] - before[0]  # from the first panel's window to that of the second panel
    assert width == pytest.approx(after[2] - after[0], abs=3)


def color_extent(path, red, green, blue):
    """The part of a picture in about this colour, (x1, y1, x2, y2) as fractions of its sides; None: nothing."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    y, x = np.nonzero((abs(pixels - (red, green, blue)) < 30).all(axis=2))
    height, width = pixels.shape[:2]
    return (x.min() / width, y.min() / height, x.max() / width, y.max() / height) if len(x) else None


def test_mistakes_are_cropped_and_outlined(tmp_path):
    """A missed object in a corner, a false positive elsewhere: each picture shows its own place."""
    picture = np.zeros((400, 600, 3), dtype=np.uint8)
    picture[:200, :300], picture[200:, 300:] = (180, 0, 180), (0, 0, 200)
    Image.fromarray(picture).save(tmp_path / "image.png")
    none = np.zeros(1, dtype=bool)
    sample = Sample(tmp_path / "image.png", np.array([[0.0, 0, 40, 50]]), np.array([2]), none, (400, 600))
    detected = Boxes(
        torch.tensor([[440.0, 300, 520, 380], [5, 5, 35, 45]]), torch.tensor([0, 1]), torch.tensor([0.9, 0.1])
    )
    images = PredictedImages([sample], [0], [detected], [ground_truth(sample)], [])
    results = detection_figures(images, NAMES)
    assert visualize.mistakes(images, results, tmp_path / "out") == {"misses": 1, "false positives": 1}
    with pytest.raises(WriteError, match="the images themselves"):
        visualize.mistakes(images, results, tmp_path)
    magenta, blue, green, orange = (180, 0, 180), (0, 0, 200), (43, 255, 102), (255, 154, 31)
    for name, own, other, outline, absent in (
        ("miss", magenta, blue, green, orange),
        ("false-positive", blue, magenta, orange, green),
    ):
        for path in (tmp_path / f"out/{name}-001.png", tmp_path / f"out/{name.replace('miss', 'misse')}s.png"):
            assert color_extent(path, *own) and not color_extent(path, *other)
            assert color_extent(path, *outline) and not color_extent(path, *absent)
    # The object touches the corner of its image, so its outline starts where the crop does.
    crop, box = (color_extent(tmp_path / "out/miss-001.png", *color) for color in (magenta, green))
    assert box[:2] == pytest.approx(crop[:2], abs=0.02) and box[2] < crop[2] - 0.1 and box[3] < crop[3] - 0.1


def test_a_large_mistake_is_drawn_whole(tmp_path):
    """Its crop has more pixels than are drawn; its outline spans it all the same."""
    Image.new("RGB", (2400, 1800), (180, 0, 180)).save(tmp_path / "image.png")
    none = np.zeros(1, dtype=bool)
    sample = Sample(tmp_path / "image.png", np.array([[100.0, 100, 2300, 1700]]), np.array([0]), none, (1800, 2400))
    nothing = Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))
    images = PredictedImages([sample], [0], [nothing], [ground_truth(sample)], [])
    visualize.mistakes(images, detection_figures(images, NAMES), tmp_path / "out")
    crop, box = (color_extent(tmp_path / "out/miss-001.png", *c) for c in ((180, 0, 180), (43, 255, 102)))
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    inner = [crop[0] + width / 24, crop[1] + height / 18, crop[2] - width / 24, crop[3] - height / 18]
    assert box == pytest.approx(inner, abs=0.02)


def test_detections_are_drawn_beside_the_annotated_objects(image, tmp_path):
    """Each in its panel, in its class's colour; a picture without any box is one too."""
    left, right = torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([[50.0, 20, 80, 50]])
    detected = Detections.from_boxes(left, torch.tensor([0]), torch.tensor([0.8]))
    objects = Boxes(right, torch.tensor([2]))
    visualize.comparison(image, detected, objects, NAMES, "$\\frac", tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as picture:
        width, height = picture.size
        picture.crop((0, 0, width, int(height * 0.85))).save(tmp_path / "panels.png")  # without the legend
    blue, green = (color_extent(tmp_path / "panels.png", *color) for color in ((31, 119, 180), (44, 160, 44)))
    assert blue[2] < 0.5 < green[0]
    with Image.open(tmp_path / "panels.png") as picture:
        ratio = picture.height / picture.width
    for box in (blue, green):  # both are square
        assert (box[3] - box[1]) * ratio == pytest.approx(box[2] - box[0], rel=0.05)
    nothing = Detections.from_boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    visualize.comparison(
        image, nothing, Boxes(nothing.boxes, nothing.labels), NAMES, "nothing", tmp_path / "nothing.png"
    )
    assert color_extent(tmp_path / "nothing.png", 31, 119, 180) is None


def test_maps_of_the_mirror_image_are_not_drawn(image, tmp_path):
    maps = [score_map((60, 90), (1, 2))]
    visualize.heat_maps(image, maps, 0, "title", tmp_path / "one.png")
    visualize.heat_maps(image, [*maps, score_map((60, 90), (1, 2), flipped=True)], 0, "title", tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_names_are_drawn_as_they_are(image, tmp_path):
    maps, scores = [score_map((45, 67), (0, 1)), score_map((60, 90), (1, 2))], torch.tensor([0.9, 0.3, 0.1])
    visualize.classification(image, maps, scores, NAMES, "$\\frac", tmp_path / "scores.png")
    visualize.explanation(image, maps, scores, 1, NAMES, "2 windows", tmp_path / "explained.png")
    for name in ("scores.png", "explained.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.info["Software"] == "overfeat" and np.asarray(picture.convert("L")).std() > 20


def test_windows_beyond_the_border(image):
    """The text of the best window is in the image; scores are painted at the windows' centres, also outside."""
    figure = visualize.figure_class()()
    axis = figure.subplots()
    grid = Grid((30, 30), 10, (60, 90), (60, 90), False, (10, 10))
    scores = torch.zeros(1, 1, *grid.shape)
    scores[0, 0, 0, 0] = 1
    draw_best_window(axis, image, [ScoreMap(scores, grid)], 0, "ash")
    x, y = axis.texts[-1].get_position()
    assert 0 < x < 10 and 0 < y < 10
    shading = draw_map(figure.subplots(), image, ScoreMap(scores, grid), 0)
    assert shading.get_extent() == [0, 90, 60, 0]


def test_a_large_image_is_drawn_at_the_size_of_a_screen(tmp_path):
    """Each pixel where it was; the boxes in the image's pixels."""
    large = torch.zeros(3, 300, 8000, dtype=torch.uint8)
    large[0, :, 4000:] = 255
    box = Detections.from_boxes(torch.tensor([[4000.0, 20, 7900, 280]]), torch.tensor([0]), torch.tensor([0.9]))
    visualize.detections(large, box, NAMES, "large", tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as picture:
        assert max(picture.size) <= 2200
    left, _, right, _ = color_extent(tmp_path / "large.png", 255, 0, 0)
    assert left == pytest.approx(0.5, abs=0.02) and right > 0.9
