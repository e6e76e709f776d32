"""The thresholds that are chosen on validation images."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from overfeat import load, load_regressor, save
from overfeat.cli.assets import SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.data.annotated import align_boxes
from overfeat.data.readers.coco import read_coco
from overfeat.dense.candidates import Candidates
from overfeat.dense.grid import Grid
from overfeat.detection import calibrate
from overfeat.detection.calibrate import choose_thresholds
from overfeat.detection.evaluate import evaluate_detection
from overfeat.detection.predict import detect
from overfeat.errors import InputError
from overfeat.metrics.average_precision import Boxes
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.thresholds import DetectionThresholds
from overfeat.models.transfer import with_background

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture
def few_values(monkeypatch):
    for name, values in {
        "SCORE_THRESHOLDS": (0.2, 0.3), "MATCH_THRESHOLDS": (0.3, 0.5, 0.7), "NMS_THRESHOLDS": (0.3, 0.6),
        "CLASS_THRESHOLDS": (1.0, 0.5),
    }.items():  # fmt: skip
        monkeypatch.setattr(calibrate, name, values)


def test_thresholds_of_the_shipped_detector(multi_object, few_values, tmp_path):
    """No worse on these images than the defaults, as `detect` uses them; the same with an unreadable image."""
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = align_boxes(read_coco(multi_object / "train.json"), DIGITS)
    data = replace(data, samples=data.samples[:3])
    (tmp_path / "broken.png").write_bytes(b"broken")
    with_broken = replace(data, samples=[*data.samples, replace(data.samples[0], path=tmp_path / "broken.png")])

    def evaluate(**limits):
        detector = partial(detect, net, regressor, **limits)
        return evaluate_detection(detector, data, min_score=0, progress=False)

    before = evaluate(min_score=0)
    chosen = choose_thresholds(net, regressor, data, progress=False)
    net.thresholds = DetectionThresholds(0.0, 1.0, 1.0, 1.0)  # its own make no difference
    assert choose_thresholds(net, regressor, with_broken, progress=False) == chosen
    net.thresholds = chosen
    after, few = evaluate(min_score=0), evaluate()
    assert after["map"]["voc"] >= before["map"]["voc"] > 0.5
    assert few["at_iou"]["0.5"]["all"]["f1"] >= after["at_iou"]["0.5"]["all"]["best_f1"] - 0.03
    save(net, tmp_path / "net", regressor=regressor)
    assert load(tmp_path / "net").thresholds == chosen


def test_a_net_that_has_not_learned(multi_object, few_values):
    """It has no thresholds of its own."""
    torch.manual_seed(0)
    net = with_background(load(SHIPPED_WEIGHTS), DIGITS)
    torch.nn.init.zeros_(net.fc_layers[-1].weight)  # all windows score alike
    torch.nn.init.constant_(net.fc_layers[-1].bias[0], 3.0)
    net.scale_factors = (0.6, 1.0)
    data = align_boxes(read_coco(multi_object / "test.json"), DIGITS)
    regressor = BoxRegressor(net.architecture).eval()
    assert choose_thresholds(net.eval(), regressor, data, max_images=2, progress=False) == DetectionThresholds()


def test_data_that_have_no_use(multi_object, few_values):
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = align_boxes(read_coco(multi_object / "test.json"), DIGITS)
    with pytest.raises(InputError, match="class_names"):
        choose_thresholds(net, regressor, replace(data, class_names=["a", *DIGITS[1:]]))
    none = [replace(s, boxes=s.boxes[:0], labels=s.labels[:0], difficult=s.difficult[:0]) for s in data.samples]
    with pytest.raises(InputError, match="no objects in the 4 images"):
        choose_thresholds(net, regressor, replace(data, samples=none))


def cluster(centre, side, label, score, count=6):
    """Boxes around one position, as the windows near an object give them."""
    jitter = torch.linspace(-1, 1, count)[:, None].expand(count, 2)
    centres = torch.tensor([centre], dtype=torch.float32) + jitter
    scores, labels = torch.full((count,), score), torch.full((count,), label)
    return torch.cat([centres - side / 2, centres + side / 2], dim=1), scores, labels, labels * 0


def image_of(clusters, objects):
    """An image with candidates, and with objects (centre, side, label)."""
    columns = zip(*(cluster(*arguments) for arguments in clusters), strict=True)
    boxes = torch.tensor([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for (x, y), side, _ in objects])
    truth = Boxes(boxes, torch.tensor([label for *_, label in objects]))
    return calibrate._Image(Candidates(*map(torch.cat, columns)), [Grid((47, 47), 4, (300, 300), (300, 300))], truth)


def test_nms_across_classes_where_objects_are_detected_as_two():
    """Class 1 is also reported on objects of class 0, with a higher score than on its own objects."""
    clusters = [((60, 60), 30, 0, 0.9), ((60, 60), 30, 1, 0.7), ((200, 200), 30, 1, 0.6)]
    images = [image_of(clusters, [((60, 60), 30, 0), ((200, 200), 30, 1)])] * 4
    chosen = calibrate._Search(images, 2, False).run("merge")
    assert chosen.class_iou_threshold == 0.8 and chosen.score_threshold == 0.3 and chosen.match_threshold == 0.5
    alone = [image_of([clusters[0], clusters[2]], [((60, 60), 30, 0), ((200, 200), 30, 1)])] * 4
    assert calibrate._Search(alone, 2, False).run("merge") == DetectionThresholds(0.5, 0.3, 1.0, 0.3, "merge")


def test_weak_windows_count_where_that_gains():
    images = [image_of([((60, 60), 30, 0, 0.25)], [((60, 60), 30, 0)])] * 2
    assert calibrate._Search(images, 1, False).run().score_threshold in (0.1, 0.2)


def test_a_value_must_gain_and_lose_nowhere():
    """In the mean over classes, on all images and on both halves; a class has its own match threshold alone."""
    rows = {
        0.5: [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]],
        0.3: [[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]],
        0.4: [[0.9, 0.9], [1.0, 1.0], [0.4, 0.5]],
        0.7: [[0.51, 0.5], [0.51, 0.5], [0.51, float("nan")]],
    }
    figures = {value: torch.tensor(averages, dtype=torch.float64) for value, averages in rows.items()}
    assert calibrate._best(figures, 0.5, figures.get, 0.002) == 0.7
    assert calibrate._best(figures, 0.5, figures.get, 0.02) == 0.5
    figures |= {value: figures[0.5] for value in calibrate.MATCH_THRESHOLDS if value not in figures}
    assert calibrate._Search.class_match(0, 0.5, figures) == 0.3
    assert calibrate._Search.class_match(1, 0.5, figures) == 0.4


def test_the_lowest_score_is_that_of_the_best_f1():
    """Of each class; of one with few objects that of all together."""
    strong = [image_of([((60, 60), 30, 0, 0.9)], [((60, 60), 30, 0)])] * 12
    weak = [image_of([((60, 60), 30, 1, 0.6), ((200, 200), 30, 0, 0.5)], [((60, 60), 30, 1)])] * 12
    rare = [image_of([((60, 60), 30, 2, 0.7)], [((60, 60), 30, 2)])] * 4
    chosen = DetectionThresholds(score_threshold=0.3, nms_iou_threshold=0.3, class_iou_threshold=1.0, postprocess="nms")
    search = calibrate._Search(strong + weak + rare, 3, False)
    assert search.min_score(chosen) == (0.89, 0.6, 0.6)  # 0.9 in float32 is less than 0.9
    assert calibrate._Search(strong, 1, False).min_score(chosen) == 0.89
    certain = [image_of([((60, 60), 30, 0, 1.0)], [((60, 60), 30, 0)])] * 12
    assert calibrate._Search(certain, 1, False).min_score(chosen) == 0.95
    assert calibrate._rounded(0.001) == 0.05 and calibrate._rounded(float("nan")) == 0.3


def test_the_best_post_processing():
    """Another than voting where that gains."""
    clusters = [((60, 60), 30, 0, 0.9), ((66, 66), 30, 0, 0.8), ((200, 200), 30, 0, 0.6)]
    images = [image_of(clusters, [((x, x), 30, 0) for x in (60, 200)])] * 2
    search = calibrate._Search(images, 1, False)
    for way in ("merge", "vote", "nms"):
        assert search.run(way).postprocess == way
    assert search.run(None).postprocess == "vote"
    better = {"merge": 0.8, "vote": 0.5, "nms": 0.7}
    table = {way: torch.full((3, 1), value, dtype=torch.float64) for way, value in better.items()}
    search.merging = lambda: (DetectionThresholds(postprocess="merge"), table["merge"])
    search.other = lambda way: (DetectionThresholds(postprocess=way), table[way])
    assert search.run(None).postprocess == "merge" and search.run("vote").postprocess == "vote"


def test_thresholds_are_stated():
    assert str(DetectionThresholds(0.4, postprocess="merge", min_score=(0.25, 0.3))) == (
        "match threshold 0.4, postprocess merge, min score 0.25,0.3"
    )
    assert str(DetectionThresholds()) == "the defaults"
