"""Localization: boxes of every position against one window at a time, merging, the error, files."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from op_checks import numbers
from weight_files import change_metadata

import overfeat
from bench.tolerance import assert_matches
from overfeat.cli.main import main
from overfeat.data.readers.coco import read_coco
from overfeat.data.resize import resize
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.dense import evaluate
from overfeat.dense import grid as dense_grid
from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.config import DenseConfig, SixScales
from overfeat.dense.detections import first_of_each, merge
from overfeat.errors import InputError
from overfeat.localization.evaluate import evaluate_localization
from overfeat.localization.predict import localize
from overfeat.metrics.localization import localization_errors
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor
from overfeat.ops.boxes import decode


@pytest.fixture
def image():
    return (numbers((3, 70, 90), seed=3).clamp(-2, 2) * 60 + 128).to(torch.uint8)


@pytest.fixture
def pair(make_net):
    """make(classes, box_coder): a small net and a regressor with random weights."""

    def make(classes=None, box_coder="xyxy"):
        net = make_net("small")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            regressor = BoxRegressor(net.architecture, classes, box_coder=box_coder)
            torch.nn.init.normal_(regressor.fc_layers[-1].weight, 0.0, 0.1)
        return net, regressor.eval()

    return make


# The head


def test_layers_have_the_papers_sizes():
    accurate, small = ARCHITECTURES["accurate"], ARCHITECTURES["small"]
    with torch.device("meta"):
        shared, each = BoxRegressor(accurate), BoxRegressor(accurate, 1000)
    assert [tuple(layer.weight.shape) for layer in shared.fc_layers] == [
        (4096, 1024, 5, 5), (1024, 4096, 1, 1), (4, 1024, 1, 1),
    ]  # fmt: skip
    assert each.fc_layers[-1].weight.shape[0] == 4000
    assert BoxRegressor(small).hidden == (256, 64)


def test_a_new_regressor_gives_the_middle_of_the_window(make_net, image):
    net = make_net("small")
    for box_coder in ("xyxy", "cxcywh"):
        regressor = BoxRegressor(net.architecture, box_coder=box_coder)
        torch.nn.init.zeros_(regressor.fc_layers[-1].weight)
        raw = candidates(net, regressor.eval(), image, scales=[1.0], flip=False, top_k=5, relative_threshold=0.0)
        windows = dense_grid.grids(net, (70, 90), DenseConfig([1.0]))[0].boxes().reshape(-1, 4)
        middle = torch.from_numpy(windows + 47 / 4 * torch.tensor([1, 1, -1, -1]).numpy()).float()
        assert_matches(raw.boxes[raw.labels == 0], middle, torch.float32)


@pytest.mark.parametrize(("classes", "box_coder"), [(0, "xyxy"), (None, "corners")])
def test_wrong_regressors(make_net, classes, box_coder):
    with pytest.raises(InputError):
        BoxRegressor(make_net("small").architecture, classes, box_coder=box_coder)


# At every position


@pytest.mark.parametrize("stride", ["fine", "coarse"])
@pytest.mark.parametrize(("classes", "box_coder"), [(None, "xyxy"), (5, "cxcywh")])
@pytest.mark.parametrize("scale", [1.0, (91, 63)])
def test_boxes_are_those_of_each_window(pair, image, classes, box_coder, stride, scale):
    """The small net pads nothing: a window cropped out of the image sees the same."""
    net, regressor = pair(classes, box_coder)
    raw = candidates(net, regressor, image, scales=[scale], flip=True, stride=stride, top_k=5, relative_threshold=0.0)
    grids = dense_grid.grids(net, (70, 90), DenseConfig([scale], True, stride))
    height, width = grids[0].scaled
    to_image = torch.tensor([90 / width, 70 / height] * 2)
    boxes, scores = [], []
    for grid in grids:
        seen = resize(image[None], grid.scaled)[0]
        seen = seen.flip(-1) if grid.flipped else seen
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                y, x = i * grid.stride, j * grid.stride
                maps = net.features(seen[None, :, y : y + 47, x : x + 47])
                (values,), _ = regressor.forward_flat([maps])
                window = torch.tensor([x, y, x + 47, y + 47.0])
                box = decode(values, window, box_coder)
                if grid.flipped:
                    box = torch.stack([width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]], dim=1)
                boxes.append((box * to_image).expand(5, 4))
                scores.append(net.classifier(maps)[0].flatten().softmax(0))
    positions = sum(grid.num_positions for grid in grids)
    boxes, scores = torch.stack(boxes), torch.stack(scores)
    for label in range(5):
        assert (raw.labels == label).sum() == positions
        assert_matches(raw.boxes[raw.labels == label], boxes[:, label], torch.float32)
        assert_matches(raw.scores[raw.labels == label], scores[:, label], torch.float32)


def test_tiles_give_the_same(pair, image):
    net, regressor = pair(5)
    whole = candidates(net, regressor, image, relative_threshold=0.0, top_k=5)
    tiled = candidates(net, regressor, image, relative_threshold=0.0, top_k=5, memory_limit=3 << 20)
    tiles = list(evaluate.evaluate_tiles(net, image[None], dense_grid.grids(net, (70, 90)), 3 << 20))
    assert len(tiles) > 12, "some scales are cut"
    assert torch.equal(tiled.labels, whole.labels) and torch.equal(tiled.scales, whole.scales)
    assert_matches([tiled.boxes, tiled.scores], [whole.boxes, whole.scores], torch.float32)


def test_dropout_is_for_training(pair, image):
    net, regressor = pair()
    expected = candidates(net, regressor, image, scales=SixScales(1))
    regressor.dropout = 0.5
    regressor.train()
    assert (
        torch.equal(candidates(net, regressor, image, scales=SixScales(1)).boxes, expected.boxes) and regressor.training
    )
    maps = [net.features(image[None])]
    assert not torch.equal(regressor.forward_flat(maps)[0], regressor.eval().forward_flat(maps)[0])


def test_the_best_classes_of_each_scale(pair, image):
    net, regressor = pair()
    every = candidates(net, regressor, image, scales=SixScales(1, 2, 3), top_k=5, relative_threshold=0.0)
    best_two = candidates(net, regressor, image, scales=SixScales(1, 2, 3), top_k=2, relative_threshold=0.0)
    for scale in range(3):
        best = [every.scores[(every.scales == scale) & (every.labels == c)].max().item() for c in range(5)]
        expected = sorted(sorted(range(5), key=best.__getitem__)[-2:])
        assert best_two.labels[best_two.scales == scale].unique().tolist() == expected
    strong = candidates(net, regressor, image, scales=SixScales(1, 2, 3), top_k=2, relative_threshold=0.8)
    best = torch.stack([every.scores[every.labels == label].max() for label in range(5)])
    enough = best_two.scores >= 0.8 * best[best_two.labels]
    assert torch.equal(strong.boxes, best_two.boxes[enough]) and 0 < enough.sum() < len(enough)


# Merged


def test_merged_boxes_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10], [50, 50, 70, 60], [-6, 80, 8, 120]])
    raw = Candidates(boxes, torch.tensor([0.5, 0.25, 0.9, 0.5, 0.1]), torch.tensor([1, 1, 0, 1, 2]), torch.zeros(5))
    results = merge(raw, (100, 60), match_threshold=0.5)
    assert results.labels.tolist() == [0, 1, 1, 2]
    assert results.boxes.tolist() == [[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 80, 8, 100]]
    assert results.scores.tolist() == pytest.approx([0.9, 0.75, 0.5, 0.1])
    assert (results.counts.tolist(), results.max_score.tolist()) == ([1, 2, 1, 1], pytest.approx([0.9, 0.5, 0.5, 0.1]))
    assert first_of_each(results.labels).tolist() == [0, 1, 3]


def test_top_5_predictions_of_different_classes(pair, image):
    net, regressor = pair()
    results = localize(net, regressor, image, scales=SixScales(1, 2))
    assert 1 <= len(results) <= 5 and len(results.labels.unique()) == len(results)
    assert (results.scores.diff() <= 0).all() and (results.counts >= 1).all()
    assert (results.boxes >= 0).all() and (results.boxes[:, 2] <= 90).all() and (results.boxes[:, 3] <= 70).all()


def test_odd_calls(pair, image):
    net, regressor = pair(4)
    with pytest.raises(InputError, match="boxes for 4 classes, the net 5"):
        localize(net, regressor, image)
    with pytest.raises(InputError, match="for another net"):
        localize(net, BoxRegressor(replace(net.architecture, short_side=60)), image)
    with pytest.raises(InputError, match="18,900 NaN or infinite values, the first at row 0"):
        localize(net, pair()[1], torch.full((3, 70, 90), torch.nan))
    net, regressor = pair()
    with pytest.raises(InputError, match="top_k must be 1 or more"):
        localize(net, regressor, image, top_k=0)
    with pytest.raises(ValueError, match="one image at a time"):
        localize(net, regressor, torch.stack([image, image]))
    torch.nn.init.constant_(regressor.fc_layers[-1].bias, float("nan"))
    with pytest.raises(InputError, match="NaN or infinite boxes"):
        localize(net, regressor, image, scales=SixScales(1))


# The error


def test_the_error_by_hand():
    """Pixels 0..9 and 5..14 of ten rows: 50 of 150 shared, inclusive edges counted; half-open here."""
    truth = (torch.tensor([3, 4]), torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]]))
    cases = [
        ([3], [[0.0, 0, 10, 10]], 0, 0),
        ([3], [[0.0, 0, 10, 20]], 0, 0),  # exactly a half
        ([3], [[0.0, 0, 10, 21]], 1, 1),
        ([4], [[0.0, 0, 10, 10]], 1, 1),  # another object's box
        ([5, 4], [[0.0, 0, 10, 10], [40, 40, 60, 55]], 1, 0),  # the second prediction, any object
        ([5, 5, 5, 5, 5, 3], [[0.0, 0, 10, 10]] * 6, 1, 1),  # a sixth prediction does not count
        ([], [], 1, 1),
    ]
    for labels, boxes, one, five in cases:
        prediction = (torch.tensor(labels, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))
        assert localization_errors([prediction], [truth]) == {"top1": 100 * one, "top5": 100 * five}, labels
    half = localization_errors([prediction, (torch.tensor([3]), truth[1][:1])], [truth, truth])
    assert half == {"top1": 50, "top5": 50}
    with pytest.raises(InputError):
        localization_errors([], [])


def test_ignored_and_unreadable_images(pair, tmp_path):
    data = read_coco(write_dataset(tmp_path, "test", 4, progress=False))
    data.samples[2].path.write_bytes(b"no image")
    predict = partial(localize, *pair(), scales=SixScales(1))
    results = evaluate_localization(predict, data, ignore_list={1}, progress=False)
    assert results["images"] == 2 and len(results["unreadable"]) == 1
    assert str(data.samples[2].path) in results["unreadable"][0]
    # Numbers count all images, also if only some are evaluated; ILSVRC's are in the files' names.
    named = data.samples[3].path.rename(data.samples[3].path.with_name("ILSVRC2012_val_00000077.png"))
    data.samples[3] = replace(data.samples[3], path=named)
    results = evaluate_localization(predict, data, ignore_list={1, 3, 77}, max_images=1, progress=False)
    assert results["images"] == 1 and not results["unreadable"]
    # An image of another size than its annotation states.
    data.samples[3] = replace(data.samples[3], size=(7, 9))
    results = evaluate_localization(predict, data, ignore_list={3}, progress=False)
    assert results["images"] == 2 and "but its annotation is for 7x9" in results["unreadable"][0]
    with pytest.raises(InputError, match="none of the 1 images can be used"):
        evaluate_localization(predict, data, ignore_list={1, 2, 3}, progress=False)
    with pytest.raises(InputError, match="none of the 4 images has boxes"):
        evaluate_localization(predict, data, ignore_list={1, 2, 3, 77}, progress=False)


# Files


def test_net_and_regressor_in_one_file(pair, tmp_path, image):
    net, regressor = pair(5, "cxcywh")
    path = tmp_path / "both.safetensors"
    overfeat.save(net, path, regressor=regressor)
    loaded, head = overfeat.load(path), overfeat.load_regressor(path)
    assert (head.num_classes, head.box_coder, head.hidden) == (5, "cxcywh", regressor.hidden)
    actual, expected = (
        localize(loaded, head, image, scales=SixScales(1)),
        localize(net, regressor, image, scales=SixScales(1)),
    )
    assert torch.equal(actual.boxes, expected.boxes) and torch.equal(actual.scores, expected.scores)
    overfeat.save(net, path)
    with pytest.raises(InputError, match="without a box regressor"):
        overfeat.load_regressor(path)


def test_convert_keeps_the_boxes(pair, tmp_path, capsys):
    net, regressor = pair(5)
    source, target = str(tmp_path / "both.safetensors"), str(tmp_path / "half.safetensors")
    overfeat.save(net, source, regressor=regressor)
    (tmp_path / "names.txt").write_text("\n".join("abcde"))
    assert main(["convert", source, target, "--half", "--labels", str(tmp_path / "names.txt")]) == 0
    assert "5 classes, with boxes" in capsys.readouterr().out
    assert overfeat.load(target).class_names == list("abcde")
    half = overfeat.load_regressor(target)
    for before, after in zip(regressor.parameters(), half.parameters(), strict=True):
        assert torch.equal(before.half().float(), after)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.52 * (tmp_path / "both.safetensors").stat().st_size
    assert main(["convert", source, str(tmp_path / "raw")]) == 1
    assert "let the name end in .safetensors" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "raw"), "--half"]) == 1
    assert "which is float32" in capsys.readouterr().err
    assert main(["convert", source, source, "--half"]) == 1
    assert "is the file to convert" in capsys.readouterr().err
    torch.nn.init.constant_(regressor.fc_layers[2].bias, 1e6)
    overfeat.save(net, source, regressor=regressor)
    before = (tmp_path / "half.safetensors").read_bytes()
    assert main(["convert", source, target, "--half"]) == 1
    assert "regressor.fc_layers.2.bias is too large" in capsys.readouterr().err
    assert (tmp_path / "half.safetensors").read_bytes() == before


def test_broken_regressors_in_files(pair, tmp_path):
    net, regressor = pair()
    path = tmp_path / "broken.safetensors"
    checkpoint.save(net, path, regressor=regressor)
    for what in (
        {"box_coder": "corners"}, {"box_features": None}, {"hidden": [3, 3]}, {"hidden": 3}, {"hidden": [True]},
        {"num_classes": 7}, {"num_classes": "x"}, {"num_classes": 10**400}, {"dropout": 0.5},
    ):  # fmt: skip
        change_metadata(path, regressor=json.dumps(json.loads(regressor.to_json()) | what))
        with pytest.raises(InputError, match="do not fit together"):
            overfeat.load_regressor(path)
    regressor = pair()[1]
    torch.nn.init.constant_(regressor.fc_layers[0].bias, float("inf"))
    checkpoint.save(net, path, regressor=regressor)
    with pytest.raises(InputError, match=r"regressor\.fc_layers\.0\.bias holds NaN or infinite"):
        overfeat.load_regressor(path)


@pytest.mark.parametrize("box_features", ["pooled", "unpooled"])
@pytest.mark.parametrize("stride", ["fine", "coarse"])
def test_boxes_at_some_positions(box_features, stride, monkeypatch):
    """Equal to those of all positions, with their gradients; a map may have none."""
    torch.manual_seed(0)
    regressor = BoxRegressor(ARCHITECTURES["small"], 3, box_features=box_features).double()
    maps = [torch.randn(n, 128, *size, dtype=torch.float64) for n, size in ((2, (9, 12)), (1, (6, 6)), (1, (8, 7)))]
    every, shapes = regressor.forward_flat(maps, stride)
    counts = [n * h * w for n, h, w in shapes]
    assert len(every) == sum(counts) and every.shape[1:] == (3, 4)
    positions = [torch.tensor([counts[0] - 1, 3, 0]), torch.tensor([], dtype=torch.int64), torch.arange(counts[2])]
    monkeypatch.setattr("overfeat.models.box_regressor.GATHER_BYTES", 1)  # one window at a time
    some, same = regressor.forward_flat(maps, stride, positions)
    expected = every[
        torch.cat([start + p for start, p in zip((0, counts[0], sum(counts[:2])), positions, strict=True)])
    ]
    assert same == shapes
    assert_matches(some, expected, torch.float64)
    weights = list(regressor.parameters())
    for a, b in zip(
        torch.autograd.grad(some.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        assert_matches(a, b, torch.float64)


def test_unpooled_boxes_are_a_convolution():
    """What a k * p convolution over the maps before the pooling gives."""
    torch.manual_seed(0)
    regressor = BoxRegressor(ARCHITECTURES["small"], box_features="unpooled").double()
    maps = torch.randn(2, 128, 9, 11, dtype=torch.float64)
    x = maps
    for layer in regressor.fc_layers:
        x = layer(x) if layer is regressor.fc_layers[-1] else layer(x).relu()
    assert_matches(regressor.forward_flat([maps])[0], x.permute(0, 2, 3, 1).reshape(-1, 1, 4), torch.float64)
    coarse = x[:, :, ::3, ::3].permute(0, 2, 3, 1).reshape(-1, 1, 4)
    assert_matches(regressor.forward_flat([maps], "coarse")[0], coarse, torch.float64)
