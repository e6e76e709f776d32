"""Detectors: training and prediction."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.tolerance import assert_matches
from overfeat import load, load_regressor
from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.data.images import read_image
from overfeat.data.random_tiles import collate_list
from overfeat.data.readers.coco import read_coco
from overfeat.dense.candidates import Candidates, _Collected, candidates, collect_candidates
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import clamp_scales
from overfeat.detection.build import describe_choices
from overfeat.detection.config import MIN_SCORE, NEGATIVE_SAMPLING, TRAINING, DetectorConfig
from overfeat.detection.hard_negatives import sample_negatives
from overfeat.detection.predict import combine, detect, normalize_scores
from overfeat.detection.targets import expected_votes, typical_votes
from overfeat.detection.train import DetectorTask
from overfeat.errors import InputError
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.thresholds import DetectionThresholds
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
    assert losses[-1] < 0.7 * losses[0] and sums["samples"] == 1
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


@pytest.mark.parametrize("flip", [True, False])
def test_mirror_images_in_training_and_evaluation_go_together(pair, data, flip):
    DetectorTask(*pair, data, options=DetectorConfig(flip=flip))
    assert pair[0].flip == flip


def test_warnings_and_mismatches(pair, data):
    net, _ = pair
    named = replace(data, class_names=[*DIGITS[:9], "zebra"], samples=[
        replace(sample, labels=sample.labels.clip(0, 8)) for sample in data.samples
    ])  # fmt: skip
    net.scale_factors = (0.02, 0.9)
    text = "\n".join(describe_choices(named, net, DetectorConfig(scales=net.scale_factors), TRAINING, None))
    assert "cannot be detected: " in text and "zebra" in text and "too small, large or near" in text
    with pytest.raises(InputError, match="class_names"):
        DetectorTask(net, BoxRegressor(net.architecture), named)
    with pytest.raises(InputError, match="another net"):
        DetectorTask(net, BoxRegressor(net.architecture, 11), data)
    net.scale_factors = (60.0,)
    with pytest.raises(InputError, match=r"no object of the training data fits the window .* at 60 times"):
        DetectorTask(net, BoxRegressor(net.architecture), data)


def test_difficult_objects_do_not_contribute_to_the_loss(pair, data):
    """Neither as objects nor as background."""
    options = DetectorConfig(negative_sampling="random", negative_pool=10**6, negatives_per_tile=10**6)
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
    every = {"score_threshold": 0.1, "min_score": 0.0}
    merged = detect(net, regressor, image, postprocess="merge", nms_iou_threshold=1.0, **every)
    fewer = detect(net, regressor, image, postprocess="merge", nms_iou_threshold=0.3, **every)
    overlaps = iou(fewer.boxes, fewer.boxes) * (fewer.labels[:, None] == fewer.labels)
    assert 0 < len(fewer) < len(merged) and (overlaps.fill_diagonal_(0) <= 0.3).all()
    assert int(merged.counts.sum()) == len(raw.labels) and (merged.scores.diff() <= 0).all()
    assert_matches(merged.confidence_sum.sum(), raw.scores.sum(), torch.float32)
    assert (merged.scores < 1).all() and (merged.scores > 0).all()
    left = detect(net, regressor, image, postprocess="nms", **every)
    assert (left.counts == 1).all() and torch.equal(left.scores[0], raw.scores.max())
    concentric = Candidates(
        torch.tensor([[0.0, 0, 10, 10], [1, 1, 9, 9], [0, 0, 10, 10]]),
        torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long(), torch.zeros(3).long(),
    )  # fmt: skip
    each = combine(concentric, [Grid((47, 47), 4, (60, 60), (60, 60))], postprocess="nms", nms_iou_threshold=1.0)
    assert each.counts.tolist() == [1, 1, 1] and torch.equal(each.scores, concentric.scores)
    all_boxes = detect(net, regressor, image, scales=[0.6], postprocess="nms", nms_iou_threshold=1.0, **every)
    raw = candidates(net, regressor, image, scales=[0.6], top_k=None, relative_threshold=0.0, score_threshold=0.1)
    assert len(all_boxes) == len(raw.labels) > 5
    with pytest.raises(InputError, match="postprocess must be one of"):
        detect(net, regressor, image, postprocess="max")
    with pytest.raises(InputError, match=r"^nms_iou_threshold must be between 0 and 1, not 2$"):
        detect(net, regressor, image, nms_iou_threshold=2)
    with pytest.raises(InputError, match="no background class"):
        detect(load(SHIPPED_WEIGHTS), regressor, image)


@pytest.mark.parametrize("postprocess", ["vote", "merge", "nms"])
def test_boxes_outside_the_image_are_left_out(postprocess):
    boxes = torch.tensor([[10.0, 10, 30, 30], [55, 40, 75, 58], [61, 10, 80, 20], [20, -30, 40, 0], [-9, 70, -1, 90]])
    raw = Candidates(boxes, torch.linspace(0.5, 0.9, 5), torch.zeros(5).long(), torch.zeros(5).long())
    own_grids = [Grid((47, 47), 4, (60, 60), (60, 60))]
    detections, alone = (combine(some, own_grids, postprocess=postprocess) for some in (raw, raw[torch.arange(2)]))
    assert same_detections(detections, alone)
    assert sorted(alone.boxes.round().tolist()) == [[10, 10, 30, 30], [55, 40, 60, 58]]


def same_detections(one, other):
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_the_lowest_score_of_a_detection():
    """As on the command line; average precision needs all."""
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    net.thresholds = None
    image = read_image(ASSETS / "multi-object/test/00012.png")
    every, default = detect(net, regressor, image, min_score=0), detect(net, regressor, image)
    assert MIN_SCORE == 0.3 and 0 < len(default) < len(every) and default.scores.min() >= MIN_SCORE
    assert same_detections(default, every[every.scores >= MIN_SCORE])
    with pytest.raises(InputError, match="min_score must be between 0 and 1, not 2"):
        detect(net, regressor, image, min_score=2)


def test_the_lowest_score_of_each_class(pair):
    """Given, or the net's own for its own way of post-processing, else the default."""
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    low = {"score_threshold": 0.1}
    every = detect(net, regressor, image, min_score=0, **low)
    typical, common = float(every.scores.median()), int(every.labels.mode().values)
    of_class = tuple(1.0 if label == common else typical for label in range(10))
    kept = every[(every.scores >= typical) & (every.labels != common)]
    expected = detect(net, regressor, image, min_score=of_class, **low)
    assert 0 < len(kept) < len(every) and same_detections(expected, kept)
    default, alone = detect(net, regressor, image, **low), detect(net, regressor, image, postprocess="nms", **low)
    net.thresholds = DetectionThresholds(min_score=of_class)
    assert same_detections(detect(net, regressor, image, **low), kept)
    assert same_detections(detect(net, regressor, image, min_score=MIN_SCORE, **low), default)
    assert same_detections(detect(net, regressor, image, postprocess="nms", **low), alone) and len(alone)
    with pytest.raises(InputError, match="min_score must be one number or 10, one for each class, not"):
        detect(net, regressor, image, min_score=(0.5, 0.4))
    with pytest.raises(InputError, match=r"min_score must be between 0 and 1, not 1\.5"):
        detect(net, regressor, image, min_score=[1.5] * 10)


def test_thresholds_of_the_net(pair):
    """They are used where the caller names none; merging's NMS threshold is not that of NMS alone."""
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    per_class = (0.0, 0.9, *[0.4] * 8)
    given = {
        "postprocess": "merge", "match_threshold": per_class, "nms_iou_threshold": 0.8, "class_iou_threshold": 0.5
    }  # fmt: skip
    low = {"score_threshold": 0.1, "min_score": 0.0}
    expected = detect(net, regressor, image, **given, **low)
    plain, alone = (detect(net, regressor, image, postprocess=p, **low) for p in ("merge", "nms"))
    net.thresholds = DetectionThresholds(**given, score_threshold=0.1)
    assert same_detections(detect(net, regressor, image, min_score=0.0), expected) and len(expected)
    own = detect(net, regressor, image, match_threshold=0.5, nms_iou_threshold=0.3, class_iou_threshold=1.0, **low)
    assert same_detections(own, plain) and not same_detections(plain, expected)
    left = detect(net, regressor, image, postprocess="nms", **low)
    assert same_detections(left, alone)
    implied = detect(net, regressor, image, match_threshold=per_class, **low)
    assert same_detections(implied, expected)  # a match threshold is for merging
    with pytest.raises(InputError, match="match_threshold does not apply to postprocess vote"):
        detect(net, regressor, image, postprocess="vote", match_threshold=0.4)
    net.thresholds = DetectionThresholds((0.5, 0.5))
    with pytest.raises(InputError, match="match_threshold must be one number or 10, one for each class, not"):
        detect(net, regressor, image)


def test_voting():
    """Boxes around an object confirm each other: a lone box with a higher score of its own comes after them."""
    offsets = torch.tensor([[-1.0, 0, 1, 0], [0, 1, 0, -1], [1, 0, -1, 0], [0, -1, 0, 1]])
    boxes = torch.cat([torch.tensor([50.0, 50, 80, 80]) + offsets, torch.tensor([[80.0, 20, 110, 50]])])
    scores = torch.tensor([0.6, 0.6, 0.6, 0.6, 0.95])
    raw = Candidates(boxes, scores, torch.zeros(5).long(), torch.zeros(5).long())
    own_grids = [Grid((47, 47), 4, (127, 127), (127, 127))]
    detections = combine(raw, own_grids, postprocess="vote")
    assert detections.boxes.tolist() == [pytest.approx([50, 50, 80, 80], abs=0.1), [80, 20, 110, 50]]
    assert detections.counts.tolist() == [4, 1] and detections.max_score.tolist() == pytest.approx([0.6, 0.95])
    typical = (0.3 * 47 / 4) ** 2
    assert typical_votes(own_grids) == pytest.approx(typical)
    assert detections.scores[1].item() == pytest.approx(0.95**2 / (0.95**2 + typical))
    assert 0.95**2 < detections.confidence_sum[0] < 4 * 0.6**2
    two = combine(replace(raw, labels=torch.tensor([0, 0, 1, 1, 0])), own_grids, postprocess="vote")
    assert len(two) == 3 and len(combine(raw[raw.scores > 1], own_grids, postprocess="vote")) == 0
    one = combine(
        replace(raw, labels=torch.tensor([0, 0, 1, 1, 0])), own_grids, postprocess="vote", class_iou_threshold=0.5
    )
    assert len(one) == 2


def test_typical_votes():
    """Where scales overlap, an object has windows of several; mirror images count."""
    windows = (0.3 * 47 / 4) ** 2
    scaled = [(94, 94), (188, 188)]  # twice the size: the intervals of object sizes overlap by log(.95 / .45 / 2)
    pair = [Grid((47, 47), 4, size, (94, 94), flipped) for size in scaled for flipped in (False, True)]
    length = math.log(0.95 / 0.45)
    assert typical_votes(pair) == pytest.approx(4 * windows * length / (length + math.log(2)))
    assert typical_votes(pair[:2]) == pytest.approx(2 * windows)


def test_a_match_threshold_for_each_class(pair):
    """The boxes of each class are those of its own threshold."""
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    thresholds = [0.1 * (label % 3) for label in range(10)]
    options = {"score_threshold": 0.08, "min_score": 0.0, "nms_iou_threshold": 1.0}
    mixed = detect(net, regressor, image, match_threshold=thresholds, **options)
    for value in set(thresholds):
        alone = detect(net, regressor, image, match_threshold=value, **options)
        of_value = torch.tensor([thresholds[label] == value for label in range(10)])
        assert same_detections(mixed[of_value[mixed.labels]], alone[of_value[alone.labels]])
    assert len(mixed.labels.unique()) > 5 and (mixed.scores.diff() <= 0).all()


def test_nms_across_classes(pair):
    net, regressor = pair
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    for postprocess in ("merge", "nms"):
        options = {"score_threshold": 0.08, "min_score": 0.0, "postprocess": postprocess}
        every, fewer = (detect(net, regressor, image, class_iou_threshold=t, **options) for t in (1.0, 0.4))
        assert same_detections(every, detect(net, regressor, image, **options)) and 0 < len(fewer) < len(every)
        overlaps = iou(fewer.boxes, fewer.boxes).fill_diagonal_(0)
        clipping = 0.1 if postprocess == "nms" else 0.0  # NMS alone sees the boxes before they are clipped
        assert (overlaps <= 0.4 + clipping).all()


def test_more_candidates_than_can_be_merged(pair):
    """The best are used, the same whatever the tiles, and those left out are not kept in memory."""
    net, regressor = pair
    image = torch.randint(0, 256, (3, 150, 170), dtype=torch.uint8)
    own_grids = grids(net, (150, 170), DenseConfig([0.6, 1.0], True))
    every = collect_candidates(net, regressor, image, own_grids)
    best = every.scores.argsort(descending=True, stable=True)[:100].sort().values
    for memory_limit in (1 << 30, 1 << 21):
        with pytest.warns(UserWarning, match=r"more than 100 windows score 0 or more; only the best are used"):
            few = collect_candidates(net, regressor, image, own_grids, memory_limit, max_candidates=100)
        assert torch.equal(few.labels, every.labels[best]) and torch.equal(few.scales, every.scales[best])
        assert_matches(few.boxes, every.boxes[best], torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(collect_candidates(net, regressor, image, own_grids, max_candidates=len(every.labels)).labels)
    with pytest.warns(UserWarning, match="max_candidates"):
        low = {"score_threshold": 0.0, "min_score": 0, "nms_iou_threshold": 1}
        few = detect(net, regressor, image, postprocess="merge", max_candidates=100, **low)
        assert few.counts.sum() == 100
    for number in (0, 1.5, True, "100"):
        with pytest.raises(InputError, match=f"max_candidates must be 1 or more, not {number!r}"):
            detect(net, regressor, image, max_candidates=number)
    for fraction in ("0.3", np.array([0.3, 0.4]), torch.ones(2)):
        with pytest.raises(InputError, match="min_score must be between 0 and 1"):
            detect(net, regressor, image, min_score=fraction)


def test_boxes_with_equal_scores_are_cut_in_order(pair):
    """Of a net that scores all windows alike, the first boxes by scale and position; memory for few others."""
    net, _ = pair
    own_grids = [Grid((47, 47), 4, (127, 127), (127, 127))]
    collected = _Collected(net, own_grids, 0.3, 50)
    for start in reversed(range(0, 440, 22)):
        position = torch.arange(start, start + 22).flip(0)
        boxes, zeros = position[:, None].float().expand(22, 4), torch.zeros(22).long()
        collected.add([(boxes, torch.full((22,), 0.48), zeros, zeros, position)])
        assert sum(len(scores) for _, scores, *_ in collected._chunks) <= 100
    with pytest.warns(UserWarning, match="more than 50 windows score 0.3 or more; only the best are used"):
        assert collected.in_order()[1].tolist() == [position * net.num_classes for position in range(50)]


def test_scales_of_small_images(pair):
    net, regressor = pair
    assert clamp_scales(net.geometry, 60, 200, (0.5, 0.9, 1.3)) == [47 / 60, 0.9, 1.3]
    assert clamp_scales(net.geometry, 100, 100, (1, 2)) == [1.0, 2.0] and net.scale_factors is not None
    assert clamp_scales(net.geometry, 40, 200, (0.5, 0.9)) == [47 / 40]
    for shape in ((3, 20, 30), (3, 47, 47), (3, 300, 30)):
        detect(net, regressor, torch.zeros(shape, dtype=torch.uint8))


def test_normalized_scores():
    """An object at the border, where fewer windows are positive, needs a smaller sum for the same score."""
    grids = [Grid((47, 47), 4, (127, 127), (127, 127))]
    boxes = torch.tensor([[48.5, 48.5, 78.5, 78.5], [8.5, 48.5, 38.5, 78.5]])  # centred on windows
    sums = torch.tensor([9.0, 6.0])  # 3 x 3 of them within 7.05 px; 2 x 3 beside the left border
    assert expected_votes(boxes, grids).tolist() == [9.0, 6.0]
    typical = typical_votes(grids)
    needed = torch.tensor([math.sqrt(9 * typical), math.sqrt(6 * typical)])
    assert normalize_scores(needed, boxes, grids).tolist() == pytest.approx([0.5, 0.5])
    assert normalize_scores(9 * needed, boxes, grids).tolist() == pytest.approx([0.9, 0.9])
    middle, border = normalize_scores(sums, boxes, grids).tolist()
    assert middle == pytest.approx(9 / (9 + math.sqrt(9 * typical))) and border < middle
