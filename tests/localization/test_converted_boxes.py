"""Boxes of converted modules through `candidates`, `localize` and `detect`, against every window cropped."""

import pytest
import torch
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.data.resize import resize
from overfeat.dense.config import DenseConfig
from overfeat.dense.detections import best_per_class, merge
from overfeat.dense.grid import grids
from overfeat.dense.tiling import Tile, tile_bytes
from overfeat.densify.convert import densify
from overfeat.detection.predict import combine
from overfeat.errors import InputError
from overfeat.ops.boxes import BOX_CODERS, decode

WINDOW = (22, 16)
SIZE = (33, 37)


class TwoHeads(nn.Module):
    """Scores and boxes of windows that are not square, with padding; boxes first where asked for."""

    def __init__(self, classes=3, boxes_per_class=True, box_coder="xyxy", boxes_first=False):
        super().__init__()
        torch.manual_seed(classes)
        self.maps = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(6 * 4 * 3, 12)
        self.scores, self.boxes = nn.Linear(12, classes), nn.Linear(12, 4 * (classes if boxes_per_class else 1))
        nn.init.normal_(self.scores.weight, 0.0, 2.0)
        self.boxes.bias.data = BOX_CODERS[box_coder].repeat(self.boxes.out_features // 4)
        self.boxes_first = boxes_first

    def forward(self, x):
        x = self.hidden(self.maps(x).flatten(1)).relu()
        outputs = self.scores(x), self.boxes(x)
        return outputs[::-1] if self.boxes_first else outputs


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by_cropping(module, net, image, own_grids):
    """Boxes and probabilities of every window, grid by grid, row by row: [windows, classes, 4], [windows, classes]."""
    boxes, scores = [], []
    for grid in own_grids:
        seen = resize(image[None], grid.scaled)
        seen = seen.flip(-1) if grid.flipped else seen
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                y, x = i * grid.stride, j * grid.stride
                with torch.no_grad():
                    outputs = module((seen[:, :, y : y + WINDOW[0], x : x + WINDOW[1]].float() - 120) / 60)
                logits, values = outputs[::-1] if module.boxes_first else outputs
                window = torch.tensor([x, y, x + WINDOW[1], y + WINDOW[0]], dtype=torch.float32)
                box = decode(values.view(-1, 4), window, net.box_coder)
                if grid.flipped:
                    box = torch.stack([seen.shape[3] - box[:, 2], box[:, 1], seen.shape[3] - box[:, 0], box[:, 3]], 1)
                box = box * torch.tensor([SIZE[1] / seen.shape[3], SIZE[0] / seen.shape[2]] * 2)
                boxes.append(box.expand(logits.shape[1], 4))
                scores.append(net.probabilities(logits)[0])
    return torch.stack(boxes), torch.stack(scores)


@pytest.mark.parametrize("stride", [1, 3, None])
@pytest.mark.parametrize(("per_class", "box_coder", "first"), [(True, "xyxy", False), (False, "cxcywh", True)])
def test_boxes_are_those_of_each_window(image, per_class, box_coder, first, stride):
    module = TwoHeads(3, per_class, box_coder, first).eval()
    net = densify(module, WINDOW, mean=120.0, std=60.0, box_coder=box_coder)
    own_grids = grids(net, SIZE, DenseConfig([(30, 34)], True, stride))
    boxes, scores = by_cropping(module, net, image, own_grids)
    whole = max(tile_bytes(net, Tile.whole(own_grids[0]), 12))  # two of which do not fit the second limit
    for memory_limit in (1 << 30, whole):
        raw = overfeat.candidates(
            net, net.regressor, image, scales=[(30, 34)], flip=True, stride=stride, relative_threshold=0.0,
            memory_limit=memory_limit,
        )  # fmt: skip
        assert len(raw.scores) == scores.numel()
        for label in range(3):
            assert_matches(raw.boxes[raw.labels == label], boxes[:, label], torch.float32)
            assert_matches(raw.scores[raw.labels == label], scores[:, label], torch.float32)


def test_localize_and_detect_merge_them(image):
    module = TwoHeads(3).eval()
    net = densify(module, WINDOW, mean=120.0, std=60.0, class_names=["cat", "dog", "background"])
    options = {"scales": [1.0], "flip": False, "stride": 3}
    raw = overfeat.candidates(net, net.regressor, image, top_k=2, **options)
    predictions = overfeat.localize(net, net.regressor, image, top_k=2, relative_threshold=0.7, **options)
    expected = best_per_class(merge(raw, SIZE, match_threshold=0.5), 2)
    assert torch.equal(predictions.labels, expected.labels) and len(predictions) == 2
    with pytest.raises(InputError, match=r"no background class; set net\.background = True"):
        overfeat.detect(net, net.regressor, image, **options)
    net.background = True
    detections = overfeat.detect(net, net.regressor, image, score_threshold=0.2, min_score=0, **options)
    raw = overfeat.candidates(
        net, net.regressor, image, top_k=None, relative_threshold=0.0, score_threshold=0.2, **options
    )
    assert raw.labels.max() < 2, "the background has no boxes"
    expected = combine(raw, grids(net, SIZE, DenseConfig([1.0], False, 3)))
    assert torch.equal(detections.boxes, expected.boxes) and len(detections)
    maps = overfeat.score_maps(net, image, **options)[0].scores
    assert len(raw.scores) == int((maps[0, :2] >= 0.2).sum())


def test_sigmoids_need_no_background(image):
    net = densify(TwoHeads(1).eval(), WINDOW, mean=120.0, std=60.0)
    detections = overfeat.detect(net, net.regressor, image, scales=[1.0], stride=4, score_threshold=0.01, min_score=0)
    assert net.activation == "sigmoid" and len(detections) and detections.labels.unique().tolist() == [0]


def test_a_regressor_of_another_net_is_refused(image, make_net):
    net, other = (densify(TwoHeads(3).eval(), WINDOW, check=False) for _ in range(2))
    for one, regressor in ((net, other.regressor), (make_net("small", 3), net.regressor)):
        with pytest.raises(InputError, match="another net"):
            overfeat.candidates(one, regressor, image)
    for borders in ("exact", "neighbours"):
        with_borders = net.with_borders(borders)
        assert len(overfeat.candidates(with_borders, with_borders.regressor, image, scales=[1.0]).scores)


@pytest.mark.parametrize("predict", [overfeat.localize, overfeat.detect, overfeat.candidates])
def test_a_module_without_boxes(predict, image):
    net = densify(nn.Sequential(nn.Flatten(), nn.Linear(3 * WINDOW[0] * WINDOW[1], 3)), WINDOW, channels=3)
    with pytest.raises(
        InputError, match="regressor must predict boxes, and is None: the net gives none; use score_maps"
    ):
        predict(net, net.regressor, image)
