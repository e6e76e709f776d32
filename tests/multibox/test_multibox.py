"""Boxes of DeepMultiBox in images: mapped, cut, after NMS, classified; its files and its figures."""

import json
from dataclasses import replace

import pytest
import torch
from cropped_net import CroppedNet, all_windows
from safetensors.torch import load_file, save_file

from overfeat import InputError, load, load_multibox, save, save_multibox
from overfeat.cli.main import main
from overfeat.data.resize import resize_crop
from overfeat.dense.detections import Detections, best_per_class
from overfeat.metrics.average_precision import Boxes
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.multibox import OUTPUT_SCALE, MultiBox
from overfeat.multibox.evaluate import accuracy_at_5, class_agnostic, detection_rate, rate_table
from overfeat.multibox.predict import classify_boxes, detect_multibox, label_names, propose, square_crops, with_classes
from overfeat.ops.boxes import iou

IMAGE = torch.randint(0, 256, (3, 120, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def fixed(boxes, logits, names=None):
    """A model that gives these boxes [K, 4] (for every class) for any image."""
    architecture = ARCHITECTURES["small"].with_input_size(47, (8,))
    model = MultiBox(architecture, len(boxes), names, torch.tensor(boxes))
    last = model.net.fc_layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias.view(model.num_groups, len(boxes), 5)[..., 4] = torch.tensor(logits)
    return model.eval()


def test_crops_are_the_middle_and_nine_windows_that_cover_the_image():
    assert square_crops(120, 200, "centre") == [(40, 0, 160, 120)]
    # 60 % of 200 is the shorter side: three crops are left, one of them the middle.
    assert square_crops(120, 200, "both") == [(40, 0, 160, 120), (0, 0, 120, 120), (80, 0, 200, 120)]
    results = square_crops(100, 100, "both")
    assert results[0] == (0, 0, 100, 100) and len(results) == 10
    assert {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in results[1:]} == {(60, 60)}
    assert {(x1, y1) for x1, y1, _, _ in results[1:]} == {(x, y) for x in (0, 20, 40) for y in (0, 20, 40)}
    for height, width in ((1, 1), (1, 50), (37, 20), (500, 3)):
        for x1, y1, x2, y2 in square_crops(height, width, "both"):
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and x2 - x1 == y2 - y1
    with pytest.raises(InputError, match="must be one of both, centre, not 'all'"):
        square_crops(10, 10, "all")


def test_boxes_are_mapped_back_and_clipped():
    model = fixed([[0.25, 0.25, 0.5, 0.75], [-0.5, 0.5, 0.2, 1.5], [0.9, 0.9, 0.7, 0.6]], [0.0, 1.0, 2.0])
    results = propose(model, IMAGE, crops="centre")
    # Edges in the wrong order are exchanged; only the image cuts, not the square, which starts at 40.
    expected = [[124, 72, 148, 108], [0, 60, 64, 120], [70, 30, 100, 90]]
    torch.testing.assert_close(results.boxes, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(results.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    assert results.labels.tolist() == [0, 0, 0]


def test_boxes_are_mapped_back_in_a_tall_image():
    results = propose(fixed([[0.25, 0.25, 0.5, 0.75]], [0.0]), IMAGE.transpose(1, 2), crops="centre")
    torch.testing.assert_close(results.boxes, torch.tensor([[30.0, 70, 60, 130]]))


def test_of_overlapping_boxes_the_surest_stays():
    model = fixed([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.95]], [0.0, 1.0, -1.0])
    assert len(propose(model, IMAGE, crops="centre", nms_iou_threshold=1.0)) == 3
    results = propose(model, IMAGE, crops="centre", nms_iou_threshold=0.5)
    assert results.scores.tolist() == [pytest.approx(0.7310586), pytest.approx(0.26894143)]
    assert (iou(results.boxes, results.boxes).fill_diagonal_(0) <= 0.5).all()


def test_boxes_out_of_the_image_are_none():
    model = fixed([[1.5, 0.1, 1.9, 0.5], [0.2, 0.2, 0.2, 0.9], [0.1, 0.1, 0.5, 0.5]], [3.0, 2.0, 1.0])
    assert len(propose(model, IMAGE[:, :, :120], crops="centre")) == 1


def test_all_crops_give_their_boxes():
    model = fixed([[0.4, 0.4, 0.6, 0.6]], [0.0])
    results = propose(model, IMAGE[:, :100, :100], crops="both")
    middles = (results.boxes[:, :2] + results.boxes[:, 2:]) / 2
    # The nine windows of 60 px around 30, 50, 70; the whole image's box is dropped by NMS for the first of equals.
    expected = {(50.0, 50.0)} | {(x, y) for x in (30.0, 50.0, 70.0) for y in (30.0, 50.0, 70.0)}
    assert {tuple(round(v, 3) for v in middle) for middle in middles.tolist()} == expected


def test_nms_is_by_class():
    model = fixed([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52]], [0.0, 1.0], ["cat", "dog"])
    results = propose(model, IMAGE, crops="centre")
    assert sorted(results.labels.tolist()) == [0, 1] and label_names(model, None) == ["cat", "dog"]
    results = detect_multibox(model, None, IMAGE, crops="centre")
    assert sorted(results.labels.tolist()) == [0, 1]


@pytest.fixture
def classifier(make_net):
    """A net of two classes and the background."""
    net = make_net("small", 3)
    net.class_names, net.background = ["cat", "dog", "background"], True
    return net


@pytest.mark.parametrize("square", ["maximum", "minimum"])
def test_boxes_are_classified_on_their_squares(classifier, square, monkeypatch):
    monkeypatch.setattr("overfeat.multibox.predict.SQUARE_BATCH", 2)
    boxes = torch.tensor([[10.0, 20, 50, 60], [100, 10, 180, 90], [20, 20, 60, 100]])
    results = classify_boxes(classifier, IMAGE, boxes, square=square)
    squares = {"maximum": [[10, 20, 50, 60], [100, 10, 180, 90], [0, 20, 80, 100]],
               "minimum": [[10, 20, 50, 60], [100, 10, 180, 90], [20, 40, 60, 80]]}[square]  # fmt: skip
    batch = torch.stack([resize_crop(IMAGE, one, (47, 47)) for one in squares])
    with torch.no_grad():
        expected = classifier(batch).flatten(1).softmax(dim=1)[:, :2]
    torch.testing.assert_close(results, expected)
    assert classify_boxes(classifier, IMAGE, boxes[:0]).shape == (0, 2)


def test_boxes_are_classified_on_rectangles_of_a_window_that_is_not_square():
    """Windows twice as high as wide: of a box's centre, as large as contains it, within the image."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())
    module.append(torch.nn.Linear(module(torch.zeros(1, 3, 40, 20)).shape[1], 3))
    net = CroppedNet(module, (40, 20), mean=120.0, std=60.0)
    boxes = torch.tensor([[60.0, 20, 80, 60], [60, 40, 100, 60], [0, 30, 30, 50]])
    rectangles = [[60, 20, 80, 60], [60, 10, 100, 90], [0, 10, 30, 70]]
    batch = torch.stack([resize_crop(IMAGE, one, (40, 20)) for one in rectangles])
    torch.testing.assert_close(classify_boxes(net, IMAGE, boxes), all_windows(net, batch, 1).flatten(1))


def test_scores_are_products_and_every_class_counts(classifier):
    model = fixed([[0.1, 0.1, 0.5, 0.5], [0.6, 0.5, 0.9, 0.9]], [0.0, 1.0])
    boxes = propose(model, IMAGE, crops="centre")
    probabilities = classify_boxes(classifier, IMAGE, boxes.boxes)
    results = detect_multibox(model, classifier, IMAGE, crops="centre", score_threshold=0.0)
    assert len(results) == 4 and (results.scores.diff() <= 0).all()
    for i in range(4):
        box = (boxes.boxes == results.boxes[i]).all(dim=1).nonzero().item()
        assert float(results.scores[i]) == pytest.approx(
            float(boxes.scores[box] * probabilities[box, results.labels[i]])
        )
        assert (
            results.confidence_sum[i] == boxes.scores[box]
            and results.max_score[i] == probabilities[box, results.labels[i]]
        )
    threshold = float(results.scores[1])
    assert len(detect_multibox(model, classifier, IMAGE, crops="centre", score_threshold=threshold)) == 2
    assert len(detect_multibox(model, classifier, IMAGE, crops="centre", max_detections=1, score_threshold=0.0)) == 2
    best = best_per_class(results)  # one box a class, as the localization task has it
    assert sorted(best.labels.tolist()) == [0, 1]
    assert float(best.scores[0]) == float(results.scores[0])


def test_what_does_not_fit_is_refused(classifier):
    model = fixed([[0.1, 0.1, 0.5, 0.5]], [0.0])
    with pytest.raises(InputError, match="max_detections must be 1 or more"):
        detect_multibox(model, classifier, IMAGE, max_detections=0)
    with pytest.raises(InputError, match="have classes already"):
        detect_multibox(fixed([[0.1, 0.1, 0.5, 0.5]], [0.0], ["cat", "dog"]), classifier, IMAGE)
    with pytest.raises(ValueError, match="one image at a time"):
        propose(model, IMAGE[None].repeat(2, 1, 1, 1))
    with pytest.raises(InputError, match="square must be one of"):
        detect_multibox(model, classifier, IMAGE, square="round")
    with pytest.raises(ValueError, match="one image at a time"):
        classify_boxes(classifier, IMAGE[None].repeat(2, 1, 1, 1), torch.rand(1, 4))
    with pytest.raises(ValueError, match=r"boxes must be \[n, 4\]"):
        classify_boxes(classifier, IMAGE, torch.rand(4))
    with pytest.raises(InputError, match="boxes hold NaN"):
        classify_boxes(classifier, IMAGE, torch.full((1, 4), torch.nan))
    with torch.no_grad():
        model.net.fc_layers[-1].bias[0] = torch.nan
        classifier.fc_layers[-1].bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite boxes"):
        propose(model, IMAGE)
    with pytest.raises(InputError, match="NaN scores"):
        classify_boxes(classifier, IMAGE, torch.tensor([[0.0, 0, 9, 9]]))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (40, 7), (900, 1200)])
def test_images_of_any_size(classifier, size):
    model = fixed([[0.1, 0.1, 0.9, 0.9], [-3.0, -3.0, 3.0, 3.0]], [0.0, 1.0])
    results = detect_multibox(model, classifier, torch.zeros(3, *size, dtype=torch.uint8), score_threshold=0.0)
    assert len(results) >= 2 and results.scores.isfinite().all()
    assert (results.boxes >= 0).all() and (results.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
@pytest.mark.parametrize("priors", [True, False])
def test_a_file_gives_the_same_model_back(tmp_path, names, priors):
    torch.manual_seed(0)
    given = torch.rand(7, 4) if priors else None
    model = MultiBox(ARCHITECTURES["small"].with_input_size(60, (8, 6)), 7, names, given).eval()
    model.flip = False
    save_multibox(model, tmp_path / "a.safetensors")
    results = load_multibox(tmp_path / "a.safetensors")
    assert results.to_json() == model.to_json() and results.net.architecture == model.net.architecture
    image = torch.rand(1, 3, model.image_size, model.image_size) * 255
    for ours, theirs in zip(model(image), results(image), strict=True):
        assert torch.equal(ours, theirs)
    save_multibox(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    torch.testing.assert_close(
        load_multibox(tmp_path / "half.safetensors")(image)[0], model(image)[0], atol=0.01, rtol=0.01
    )


def test_files_of_another_kind_are_refused(tmp_path, make_net):
    model = fixed([[0.1, 0.1, 0.5, 0.5]], [0.0])
    boxes, net = tmp_path / "boxes.safetensors", tmp_path / "net.safetensors"
    save_multibox(model, boxes)
    save(make_net("small", 2), net)
    with pytest.raises(InputError, match="holds no DeepMultiBox"):
        load_multibox(net)
    with pytest.raises(InputError, match="holds a DeepMultiBox"):
        load(boxes)
    from safetensors import safe_open

    with safe_open(boxes, framework="pt") as file:
        metadata = file.metadata()
    wrong_numbers = ({"num_boxes": value} for value in (2, "many", 0, 10**9, True))
    changes = (*wrong_numbers, {"priors": False})
    names = ({"class_names": value} for value in ([], "x", {"x": 1}, [None], [["x"]]))
    for change in (*changes, *names):
        broken = {**metadata, "multibox": json.dumps({**json.loads(metadata["multibox"]), **change})}
        save_file(load_file(boxes), tmp_path / "broken.safetensors", broken)
        with pytest.raises(InputError, match=r"broken\.safetensors"):
            load_multibox(tmp_path / "broken.safetensors")


def test_outputs_are_added_to_the_priors():
    model = fixed([[0.1, 0.2, 0.5, 0.6]], [0.0])
    with torch.no_grad():
        model.net.fc_layers[-1].bias[:4] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    boxes, _ = model(torch.zeros(1, 3, 47, 47))
    expected = torch.tensor([0.1, 0.2, 0.5, 0.6]) + OUTPUT_SCALE * torch.tensor([1.0, -1.0, 2.0, 0.5])
    torch.testing.assert_close(boxes[0, 0, 0], expected)


def detections_of(boxes, scores):
    boxes, scores = torch.tensor(boxes).view(-1, 4).float(), torch.tensor(scores)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Detections.from_boxes(boxes, labels, scores)


def labelled(detections, labels):
    return replace(detections, labels=torch.tensor(labels))


TRUTHS = [
    Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 50, 10, 60]]), torch.tensor([0, 1, 1]),
          difficult=torch.tensor([False, False, True])),
    Boxes(torch.tensor([[5.0, 5, 15, 15]]), torch.tensor([1]), difficult=torch.tensor([False])),
    Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), difficult=torch.empty(0, dtype=torch.bool)),
]  # fmt: skip
DETECTIONS = [
    detections_of(
        [[40, 0, 50, 10], [0, 0, 10, 9], [1, 0, 10, 10], [20, 0, 30, 9], [0, 50, 10, 60]], [0.9, 0.8, 0.7, 0.6, 0.5]
    ),
    detections_of([[5, 5, 15, 13]], [0.95]),
    detections_of([[0, 0, 5, 5]], [0.1]),
]


def test_detection_rate_counts_objects_found_by_the_best_boxes():
    rate = detection_rate(DETECTIONS, TRUTHS)
    assert rate[:5] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1], abs=1e-6) and rate[-1] == 1
    assert detection_rate([detections_of([], [])], TRUTHS[:1]) == [0.0] * len(rate)


def test_class_agnostic_precision():
    """In falling score: right, wrong, right, a second box for it, right, one that does not count, wrong."""
    results = class_agnostic(DETECTIONS, TRUTHS)
    assert results["recall"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1], abs=1e-3)
    assert results["precision"] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2, 3 / 5, 3 / 6], abs=1e-3)
    assert results["ap"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_top_5_predictions():
    """One of them names an object, and overlaps it by half; an image without objects does not count."""
    # A wrong box for class 1, the right one for class 0; class 1 as the sixth prediction.
    first = labelled(detections_of([[40, 0, 50, 10], [0, 0, 10, 9]], [0.9, 0.5]), [1, 0])
    others = labelled(detections_of([[5, 5, 15, 13]] * 6, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), [2, 3, 4, 5, 6, 1])
    assert accuracy_at_5([first[:1], others, DETECTIONS[2]], TRUTHS) == {"detection5": 0.0, "classification5": 0.5}
    assert accuracy_at_5([first, others, DETECTIONS[2]], TRUTHS) == {"detection5": 0.5, "classification5": 0.5}
    assert accuracy_at_5([first, others[1:], DETECTIONS[2]], TRUTHS) == {"detection5": 1.0, "classification5": 1.0}


def test_boxes_of_several_classes_around_one_object_are_one_class_agnostic_box():
    several = labelled(detections_of([[0, 0, 10, 10]] * 3, [0.9, 0.8, 0.7]), [0, 1, 2])
    truth = [Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([0, 0]))]
    assert class_agnostic([several], truth)["precision"] == [1.0]
    other = detections_of([[50, 50, 60, 60]], [0.1])
    both = Detections(*(torch.cat(pair) for pair in zip(vars(several).values(), vars(other).values(), strict=True)))
    assert detection_rate([both], truth)[:2] == [0.5, 1.0]


def test_figures_as_text():
    rate = detection_rate(DETECTIONS, TRUTHS)
    results = {
        "rate": rate,
        "agnostic": class_agnostic(DETECTIONS, TRUTHS),
        "windows": {"5": {"detection5": 0.25, "classification5": 0.5}},
    }
    lines = rate_table(results).splitlines()
    assert (
        "    2  66.67 %" in lines and "    5 boxes classified: detection@5  25.00 %, classification@5  50.00 %" in lines
    )


def test_combining_keeps_the_order_of_scores():
    results = with_classes(DETECTIONS[0], torch.rand(5, 3), score_threshold=0.0)
    assert len(results) == 15 and (results.scores.diff() <= 0).all()


def test_convert_halves_a_file(tmp_path, capsys):
    save_multibox(fixed([[0.1, 0.1, 0.5, 0.5]], [1.5]), tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--half"]) == 0
    assert len(propose(load_multibox(tmp_path / "b.safetensors"), IMAGE, crops="centre")) == 1
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "net_weight_9")]) == 1
    assert "can only become .safetensors" in capsys.readouterr().err
