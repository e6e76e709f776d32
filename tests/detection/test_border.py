"""Objects that touch or fill the border of their image: detected where windows reach beyond it."""

import math

import pytest
import torch
from torch import nn

import overfeat
from overfeat.dense.candidates import candidates
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import Grid, grids
from overfeat.detection.predict import normalize_scores
from overfeat.detection.targets import RULE, assign_targets, expected_votes, typical_votes
from overfeat.errors import InputError

BACKGROUND, OBJECT, SIDE = 100, 250, 8


class SquareDetector(nn.Module):
    """Scores windows of 16 px by the square of 8 px in their middle, which is its box."""

    def __init__(self):
        super().__init__()
        self.score, self.box = nn.Conv2d(3, 1, 16), nn.Conv2d(3, 4, 16)
        with torch.no_grad():
            self.score.weight.fill_(-20 / (3 * (16**2 - SIDE**2)))
            self.score.weight[:, :, 4:12, 4:12] = 20 / (3 * SIDE**2)
            self.score.bias.fill_(-50)  # 3 in the square and 0 around it give 60
            self.box.weight.zero_()
            self.box.bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]))

    def forward(self, x):
        return self.score(x).flatten(1), self.box(x).flatten(1)


@pytest.fixture
def net():
    net = overfeat.densify(SquareDetector(), 16, mean=float(BACKGROUND), std=50.0)
    net.reach = 0.5
    return net


def picture(height, width, *corners):
    image = torch.full((3, height, width), BACKGROUND, dtype=torch.uint8)
    for y, x in corners:
        image[:, y : y + SIDE, x : x + SIDE] = OBJECT
    return image


def test_scores_that_are_nan_or_infinite_are_refused(net, monkeypatch):
    """Also single ones of many, and of both signs."""
    of_outputs = net.probabilities
    for broken in ([math.nan], [math.inf], [math.inf, -math.inf]):

        def probabilities(outputs, broken=broken):
            scores = of_outputs(outputs)
            scores[3 : 3 + len(broken), 0] = torch.tensor(broken)
            return scores

        monkeypatch.setattr(net, "probabilities", probabilities)
        with pytest.raises(InputError, match="NaN scores"):
            boxes_of(net, picture(40, 52))


def boxes_of(net, image, **options):
    detections = overfeat.detect(net, net.regressor, image, stride=2, postprocess="nms", score_threshold=0.5, **options)
    return sorted(detections.boxes.tolist())


@pytest.mark.parametrize("memory_limit", [1 << 30, 1 << 17])
@pytest.mark.parametrize("flip", [False, True])
def test_objects_at_the_border(net, flip, memory_limit):
    corners = [(0, 0), (0, 44), (32, 0), (32, 44), (16, 20)]
    image = picture(40, 52, *corners)
    expected = sorted([float(x), float(y), float(x + SIDE), float(y + SIDE)] for y, x in corners)
    assert boxes_of(net, image, flip=flip, memory_limit=memory_limit) == expected
    net.reach = 0.0
    assert boxes_of(net, image, flip=flip, memory_limit=memory_limit) == [[20.0, 16.0, 28.0, 24.0]]


def test_an_object_that_fills_its_image(net):
    image = picture(SIDE, SIDE, (0, 0))
    assert boxes_of(net, image) == [[0.0, 0.0, SIDE, SIDE]]
    (prediction,) = overfeat.localize(net, net.regressor, image, stride=2, flip=False).boxes.tolist()
    assert prediction == [0.0, 0.0, SIDE, SIDE]
    net.reach = 0.0
    assert boxes_of(net, image) == [], "enlarged to the window it has no border"


@pytest.mark.parametrize("flipped", [False, True])
def test_objects_have_as_many_windows_everywhere(flipped):
    """Those of the mirror image too; a window over the margin alone is of no object."""
    grid, without = (Grid((47, 47), 4, (96, 120), (96, 120), flipped, margin) for margin in ((44, 44), (0, 0)))
    boxes = torch.tensor([[y, x, y + 24.0, x + 28.0] for y in (0, 36, 96) for x in (0, 36, 68)])
    votes = expected_votes(boxes, [grid])
    assert votes.min() >= 9 and expected_votes(boxes, [without]).min() == 1
    windows = torch.from_numpy(grid.boxes()).float()
    for thing, count in zip(boxes, votes.tolist(), strict=True):
        labels, _ = assign_targets(windows, thing[None], torch.tensor([0]), background=1)
        positive = windows[labels == 0]
        assert len(positive) == count
        inside = (positive[:, :2] < torch.tensor([120.0, 96])).all(dim=1) & (positive[:, 2:] > 0).all(dim=1)
        assert inside.all()
        centres = (positive[:, :2] + positive[:, 2:]) / 2 - (thing[:2] + thing[2:]) / 2
        assert centres.abs().max() <= RULE.center_tolerance * 47


def test_scores_do_not_depend_on_the_distance_from_the_border(net):
    """The same windows count for a square in the corner and in the middle, and give the same score."""
    scores = []
    for corner in ((0, 0), (16, 20)):
        raw = candidates(net, net.regressor, picture(40, 52, corner), flip=True, stride=2, score_threshold=0.5)
        own = grids(net, (40, 52), DenseConfig(flip=True, stride=2))
        assert len(raw.boxes) == 2 and {grid.margin for grid in own} == {(8, 8)}
        scores.append(float(normalize_scores(raw.scores.sum()[None], raw.boxes[:1], own)))
    needed = math.sqrt(18 * typical_votes(own))
    assert scores[0] == pytest.approx(scores[1]) == pytest.approx(2 / (2 + needed), rel=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_outside_of_the_image_are_no_candidates(flip):
    """A window beyond the border whose box lies there too."""
    module = SquareDetector()
    with torch.no_grad():
        module.score.weight.zero_()
        module.score.bias.fill_(10)  # every window
        module.box.bias.copy_(torch.tensor([0.0, 0.0, 0.25, 0.25]))
    net = overfeat.densify(module, 16, mean=float(BACKGROUND), std=50.0)
    net.reach = 0.5
    raw = candidates(net, net.regressor, picture(40, 52), flip=flip, stride=4)
    # Windows start from -8 in steps of 4, their boxes at their left; of mirror images at their right.
    left, top = (x.unique().tolist() for x in raw.boxes[:, :2].T)
    assert top == list(range(0, 33, 4)) and left == list(range(0, 49 if flip else 45, 4))
    with torch.no_grad():
        module.box.bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        overfeat.localize(net, net.regressor, picture(40, 52), flip=flip, stride=4)
