"""Detectors: training and prediction."""

from dataclasses import replace

import pytest
import torch

from bench.tolerance import assert_matches
from overfeat import load
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.data.random_tiles import collate_list
from overfeat.data.readers.coco import read_coco
from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.grid import Grid
from overfeat.dense.scales import clamp_scales
from overfeat.detection.build import describe_choices
from overfeat.detection.config import NEGATIVE_SAMPLING, DetectorConfig
from overfeat.detection.hard_negatives import sample_negatives
from overfeat.detection.predict import combine, detect, normalize_scores
from overfeat.detection.targets import expected_votes
from overfeat.detection.train import DetectorTask
from overfeat.errors import InputError
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.transfer import with_background
from overfeat.ops.boxes import iou

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture
def data(multi_object):
    return read_coco(multi_object / "train.json", class_names=DIGITS)


@pytest.fixture
def pair():
    """The shipped net as an untrained detector, and a regressor."""
    torch.manual_seed(0)
    net = with_background(load(SHIPPED_WEIGHTS), DIGITS)
    net.scale_factors, net.flip = (0.6, 1.0), False
    return net.eval(), BoxRegressor(net.architecture).eval()


# Training


def test_known_classes_keep_their_weights():
    net, old = load(SHIPPED_WEIGHTS), load(SHIPPED_WEIGHTS)
    with_background(net, ["7", "cat"])
    assert net.class_names == ["7", "cat", "background"] and net.background
    assert torch.equal(net.fc_layers[-1].weight[0], old.fc_layers[-1].weight[7])
    assert torch.equal(net.fc_layers[-1].bias[0], old.fc_layers[-1].bias[7])
    with pytest.raises(InputError, match="background"):
        with_background(net, ["dog", "background"])


@pytest.mark.parametrize("sampling", NEGATIVE_SAMPLING)
def test_negative_sampling(sampling):
    loss = torch.arange(100.0)
    negative = torch.arange(100) % 2 == 0
    torch.manual_seed(0)
    indices = sample_negatives(loss, negative, sampling, 6).tolist()
    assert len(indices) == (0 if sampling == "none" else 6) and all(index % 2 == 0 for index in indices)
    num_hard = {"hard": 6, "half_hard": 3}.get(sampling, 0)
    assert indices[:num_hard] == [98, 96, 94, 92, 90, 88][:num_hard]
    torch.manual_seed(1)
    again = sample_negatives(loss, negative, sampling, 6).tolist()
    assert (again == indices) == (sampling in ("hard", "none"))


def test_the_loss_falls_and_all_weights_have_gradients(pair, data):
    net, regressor = pair
    net.add_context()
    options = DetectorConfig(negatives_per_tile=4, stride="coarse", flip=False)
    task = DetectorTask(net, regressor, data, options=options)
    batch = collate_list([task.dataset[(0, number)] for number in range(5)])
    optimizer = torch.optim.Adam(task.module.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(0)
        loss, sums = task.loss(task.module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0] and sums["samples"] >= 2
    optimizer.zero_grad(set_to_none=True)
    small = torch.zeros(3, 60, 60, dtype=torch.uint8)  # less than a window at half the resolution
    empty = {
        name: [values[0][:0] if name != "image" else small] for name, values in batch.items() if name != "unreadable"
    }
    empty["unreadable"] = torch.tensor([0])
    loss, sums = task.loss(task.module, empty)
    loss.backward()
    assert loss.item() == 0 and sums["samples"] == 0 and all(w.grad is not None for w in task.module.parameters())


def test_frozen_features_stay(pair, data):
    task = DetectorTask(*pair, data, options=DetectorConfig(freeze_features=True))
    loss, _ = task.loss(task.module, collate_list([task.dataset[(0, number)] for number in range(4)]))
    loss.backward()
    assert all(weight.grad is None for weight in task.module.net.conv_layers.parameters())
    assert task.module.net.fc_layers[0].weight.grad.abs().sum() > 0


def test_warnings_and_mismatches(pair, data):
    net, _ = pair
    named = replace(data, class_names=[*DIGITS[:9], "zebra"], samples=[
        replace(sample, labels=sample.labels.clip(0, 8)) for sample in data.samples
    ])  # fmt: skip
    net.scale_factors = (0.02, 0.9)
    text = "\n".join(describe_choices(named, net, DetectorConfig(scales=net.scale_factors), None))
    assert "cannot be detected: " in text and "zebra" in text and "too small or too large" in text
    with pytest.raises(InputError, match="class_names"):
        DetectorTask(net, BoxRegressor(net.architecture), named)
    with pytest.raises(InputError, match="another net"):
        DetectorTask(net, BoxRegressor(net.architecture, 11), data)
    net.scale_factors = (60.0,)
    with pytest.raises(InputError, match=r"no object of the training data fits the window .* at 60 times"):
        DetectorTask(net, BoxRegressor(net.architecture), data)


def test_difficult_objects_do_not_contribute_to_the_loss(pair, data):
    """Neither as objects nor as background."""
    options = DetectorConfig(negative_sampling="random", negatives_per_tile=10**6)
    task = DetectorTask(*pair, data, options=options)
    batch = collate_list([task.dataset[(0, number)] for number in range(8)])
    batch["difficult"] = [torch.ones_like(flags) for flags in batch["difficult"]]
    _, sums = task.loss(task.module, batch)
    assert sums["samples"] == 0 and sums["iou_error"] == 0


# Prediction


def test_the_background_is_no_object(pair):
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    raw = candidates(net, regressor, image, scales=[1.0], top_k=None, relative_threshold=0.0)
    positions = 11 * 19
    assert raw.labels.max() == 9 and len(raw.labels) == 10 * positions
    assert not raw.boxes.requires_grad  # a graph would hold the maps of the whole image
    torch.nn.init.constant_(net.fc_layers[-1].bias[-1:], 20.0)
    assert len(detect(net, regressor, image)) == 0


def test_merging_and_nms(pair):
    """Merging counts all boxes; NMS leaves the best of those that overlap."""
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    raw = candidates(net, regressor, image, scales=[0.6, 1.0], top_k=None, relative_threshold=0.0, score_threshold=0.1)
    merged = detect(net, regressor, image, score_threshold=0.1, nms_iou_threshold=1.0)
    fewer = detect(net, regressor, image, score_threshold=0.1, nms_iou_threshold=0.3)
    overlaps = iou(fewer.boxes, fewer.boxes) * (fewer.labels[:, None] == fewer.labels)
    assert 0 < len(fewer) < len(merged) and (overlaps.fill_diagonal_(0) <= 0.3).all()
    assert int(merged.counts.sum()) == len(raw.labels) and (merged.scores.diff() <= 0).all()
    assert_matches(merged.confidence_sum.sum(), raw.scores.sum(), torch.float32)
    assert (merged.scores < 1).all() and (merged.scores > 0).all()
    left = detect(net, regressor, image, postprocess="nms", score_threshold=0.1)
    assert (left.counts == 1).all() and torch.equal(left.scores[0], raw.scores.max())
    concentric = Candidates(
        torch.tensor([[0.0, 0, 10, 10], [1, 1, 9, 9], [0, 0, 10, 10]]),
        torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long(), torch.zeros(3).long(),
    )  # fmt: skip
    each = combine(concentric, [Grid((47, 47), 4, (60, 60), (60, 60))], postprocess="nms", nms_iou_threshold=1.0)
    assert each.counts.tolist() == [1, 1, 1] and torch.equal(each.scores, concentric.scores)
    all_boxes = detect(
        net, regressor, image, scales=[0.6], postprocess="nms", nms_iou_threshold=1.0, score_threshold=0.1
    )
    raw = candidates(net, regressor, image, scales=[0.6], top_k=None, relative_threshold=0.0, score_threshold=0.1)
    assert len(all_boxes) == len(raw.labels) > 5
    with pytest.raises(InputError, match="postprocess must be one of"):
        detect(net, regressor, image, postprocess="max")
    with pytest.raises(InputError, match=r"^nms_iou_threshold must be between 0 and 1, not 2$"):
        detect(net, regressor, image, nms_iou_threshold=2)
    with pytest.raises(InputError, match="no background class"):
        detect(load(SHIPPED_WEIGHTS), regressor, image)


def test_scales_of_small_images(pair):
    net, regressor = pair
    assert clamp_scales(net.geometry, 60, 200, (0.5, 0.9, 1.3)) == [47 / 60, 0.9, 1.3]
    assert clamp_scales(net.geometry, 100, 100, (1, 2)) == [1.0, 2.0] and net.scale_factors is not None
    assert clamp_scales(net.geometry, 40, 200, (0.5, 0.9)) == [47 / 40]
    for shape in ((3, 20, 30), (3, 47, 47), (3, 300, 30)):
        detect(net, regressor, torch.zeros(shape, dtype=torch.uint8))


def test_normalized_scores():
    """0.5 where all positive windows give full confidence, in the middle as at the border."""
    grids = [Grid((47, 47), 4, (127, 127), (127, 127))]
    boxes = torch.tensor([[48.5, 48.5, 78.5, 78.5], [8.5, 48.5, 38.5, 78.5]])  # centred on windows
    sums = torch.tensor([9.0, 6.0])  # 3 x 3 of them within 7.05 px; 2 x 3 beside the left border
    assert expected_votes(boxes, grids).tolist() == [9.0, 6.0]
    assert normalize_scores(sums, boxes, grids).tolist() == pytest.approx([0.5, 0.5])
    assert normalize_scores(9 * sums, boxes, grids).tolist() == pytest.approx([0.9, 0.9])
