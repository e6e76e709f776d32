"""DeepMultiBox's loss and matching against the paper's equations taken literally, and its two training tasks."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from overfeat.data.readers.coco import read_coco
from overfeat.detection.train import detector_from
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, MULTIBOX_ARCHITECTURES
from overfeat.models.checkpoint import load, load_multibox
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.multibox.matching import ALPHA, fit_priors, hungarian_match, multibox_loss
from overfeat.multibox.train import BoxClassifierTask, MultiBoxTask, _missed, copy_matching_weights
from overfeat.training.config import TrainConfig
from overfeat.training.trainer import train


def literal(boxes, confidences, true, priors):
    """Equations 1 to 5 for one image, every assignment tried: F at the best one, and the assignment."""
    count, best = min(len(true), len(boxes)), None
    for objects in itertools.combinations(range(len(true)), count):
        for chosen in itertools.permutations(range(len(boxes)), count):
            match = sum(((boxes[i] - true[j]) ** 2).sum() / 2 for i, j in zip(chosen, objects, strict=True))
            loss = ALPHA * match
            for i, c in enumerate(confidences):
                loss = loss - (np.log(c) if i in chosen else np.log(1 - c))
            judged = loss
            if priors is not None:
                judged = sum(((priors[i] - true[j]) ** 2).sum() for i, j in zip(chosen, objects, strict=True))
            if best is None or judged < best[0]:
                best = (judged, loss, sorted(zip(chosen, objects, strict=True)))
    return best[1], best[2]


@pytest.mark.parametrize("matching", ["prior", "prediction"])
@pytest.mark.parametrize("objects", [0, 1, 3, 4, 6])
def test_loss_is_that_of_the_equations(matching, objects):
    draw = torch.Generator().manual_seed(objects)
    boxes = torch.rand(2, 4, 4, generator=draw, dtype=torch.float64)
    logits = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    priors = torch.rand(4, 4, generator=draw, dtype=torch.float64) if matching == "prior" else None
    truths = [torch.rand(objects, 4, generator=draw, dtype=torch.float64), torch.rand(2, 4, generator=draw).double()]
    losses, _, assigned = multibox_loss(boxes, logits, truths, priors)
    for image, true in enumerate(truths):
        own = assigned[assigned[:, 0] == image]
        start = 0 if image == 0 else objects
        given = None if priors is None else priors.numpy()
        expected, pairs = literal(boxes[image].numpy(), logits[image].sigmoid().numpy(), true.numpy(), given)
        assert abs(float(losses[image]) - expected) < 1e-9
        assert sorted((box, number - start) for _, box, number in own.tolist()) == pairs


def test_gradients_are_equations_6_and_7():
    """By l_i: alpha (l_i - g_j) x_ij; by c_i: (c_i - sum x_ij) / (c_i (1 - c_i)), the derivative of equation 2."""
    draw = torch.Generator().manual_seed(1)
    boxes = torch.rand(1, 5, 4, generator=draw, dtype=torch.float64).requires_grad_()
    confidences = torch.rand(1, 5, generator=draw, dtype=torch.float64).requires_grad_()
    true = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    losses, _, assigned = multibox_loss(boxes, confidences.logit(), [true], torch.rand(5, 4, generator=draw).double())
    losses.sum().backward()
    x = torch.zeros(5, 3, dtype=torch.float64)
    x[assigned[:, 1], assigned[:, 2]] = 1
    assert x.sum() == 3
    by_box = (x[:, :, None] * (boxes[0].detach()[:, None] - true[None])).sum(dim=1)
    torch.testing.assert_close(boxes.grad[0], ALPHA * by_box)
    c = confidences.detach()[0]
    torch.testing.assert_close(confidences.grad[0], (c - x.sum(dim=1)) / (c * (1 - c)))


@pytest.mark.parametrize("matching", ["prior", "prediction"])
def test_gradients_agree_with_differences(matching):
    """Of the whole loss, where the assignment stays as it is."""
    draw = torch.Generator().manual_seed(2)
    boxes = torch.rand(2, 6, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    truths = [torch.rand(n, 4, generator=draw).double() for n in (3, 0)]
    priors = torch.rand(6, 4, generator=draw).double() if matching == "prior" else None
    assert torch.autograd.gradcheck(lambda b, c: multibox_loss(b, c, truths, priors)[0], (boxes, logits))


def test_equal_costs_give_every_object_a_box_of_its_own():
    boxes, logits = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    true = torch.full((3, 4), 0.5)
    for priors in (None, boxes[0]):
        found = multibox_loss(boxes, logits, [true], priors)[2]
        assert sorted(found[:, 2].tolist()) == [0, 1, 2] and len(set(found[:, 1].tolist())) == 3


def test_costs_that_are_no_numbers_do_not_stop_the_solver():
    """The loss is then none either, and the training loop says so."""
    boxes = torch.full((1, 3, 4), torch.nan)
    losses, _, assigned = multibox_loss(boxes, torch.zeros(1, 3), [torch.rand(2, 4)])
    assert len(assigned) == 2 and losses.isnan().all()
    costs = torch.tensor([[torch.nan, 1.0], [0.0, torch.inf]])
    assert hungarian_match(costs, [2]).tolist() == [[0, 1], [1, 0]]


def test_difficult_objects_teach_nothing():
    """Their boxes have no gradient; all others are told that nothing is there."""
    boxes = torch.rand(1, 4, 4, requires_grad=True)
    logits = torch.zeros(1, 4, requires_grad=True)
    true = torch.rand(2, 4)
    losses, _, assigned = multibox_loss(
        boxes, logits, [true], boxes[0].detach(), difficult=[torch.tensor([True, False])]
    )
    losses.sum().backward()
    of_object = {number: box for _, box, number in assigned.tolist()}
    assert not boxes.grad[0, of_object[0]].any() and logits.grad[0, of_object[0]] == 0
    assert boxes.grad[0, of_object[1]].any() and logits.grad[0, of_object[1]] < 0
    others = [i for i in range(4) if i not in of_object.values()]
    assert (logits.grad[0, others] > 0).all() and not boxes.grad[0, others].any()


def test_priors_are_the_means_of_clusters():
    draw = np.random.default_rng(0)
    centres = np.array([[0.1, 0.1, 0.3, 0.3], [0.6, 0.5, 0.9, 0.9], [0.0, 0.5, 0.4, 1.0]])
    boxes = np.concatenate([centre + draw.normal(0, 0.01, (50, 4)) for centre in centres])
    found = fit_priors(boxes, 3).double()
    means = torch.from_numpy(np.stack([boxes[50 * k : 50 * k + 50].mean(axis=0) for k in range(3)]))
    assert (torch.cdist(means, found).amin(dim=1) < 1e-6).all()
    assert torch.equal(fit_priors(boxes, 3), fit_priors(boxes, 3))
    with pytest.raises(InputError, match=r"2 different boxes .* 3 priors.*--predictions"):
        fit_priors(np.repeat(boxes[:2], 30, axis=0), 3)


def tiny(names=None, priors=True, boxes=6):
    """A net that sees 47 px, few channels."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["small"].with_input_size(47, (16,))
    return MultiBox(architecture, boxes, names, torch.rand(boxes, 4).sort().values if priors else None)


def config(**changes):
    settings = {"epochs": 2, "batch": 8, "optimizer": "adagrad", "lr": 0.01, "workers": 0, "device": "cpu"}
    return TrainConfig(**settings | changes)


@pytest.mark.parametrize("kind", ["priors", "predictions", "per class"])
def test_training_lowers_the_loss_and_what_it_writes_is_read(multi_object, tmp_path, kind):
    data = read_coco(multi_object / "train.json")
    model = tiny(data.class_names if kind == "per class" else None, kind != "predictions")
    matching = "prediction" if kind == "predictions" else "prior"
    task = MultiBoxTask(model, data, config(epochs=6), read_coco(multi_object / "validation.json"), matching)
    log = train(task, config(epochs=6), tmp_path / "run")
    assert log[-1]["train_loss"] < 0.97 * log[0]["train_loss"]
    assert 0 <= log[-1]["validation_missed_error"] <= 1
    found = load_multibox(tmp_path / "run" / "net.safetensors")
    images = torch.randint(0, 256, (2, 3, 47, 47), dtype=torch.uint8)
    for ours, theirs in zip(model.eval()(images), found(images), strict=True):
        assert torch.equal(ours, theirs)
    assert found.class_names == model.class_names and (found.priors is None) == (kind == "predictions")


def test_a_batch_without_objects_trains(multi_object):
    data = read_coco(multi_object / "train.json")
    task = MultiBoxTask(tiny(), data, config())
    empty = [i for i in range(len(task.data)) if not len(task.data[i]["boxes"])][:4]
    assert empty
    loss, sums = task.loss(task.module, task.collate([task.data[i] for i in empty]))
    loss.backward()
    assert sums["samples"] == 0 and loss > 0
    assert task.module.net.fc_layers[-1].weight.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matching": "best"}, "--matching is one of prior, prediction, not 'best'"),
        ({"alpha": 0.0}, "--alpha is a number above 0"),
        ({"model": tiny(priors=False)}, "--matching prior needs priors"),
        ({"model": tiny(["cat"])}, "not the net's class_names"),
    ],
)
def test_settings_that_do_not_fit_are_refused(multi_object, changes, message):
    model = changes.pop("model", None) or tiny()
    with pytest.raises(InputError, match=message):
        MultiBoxTask(model, read_coco(multi_object / "train.json"), config(), **changes)


def test_the_nets_see_the_squares_they_are_made_for():
    for name, architecture in MULTIBOX_ARCHITECTURES.items():
        with torch.device("meta"):
            model = MultiBox(architecture, 3)
        assert model.image_size == architecture.window, name
    model = MultiBox(MULTIBOX_ARCHITECTURES["small"], 3)
    boxes, logits = model(torch.zeros(2, 3, model.image_size, model.image_size))
    assert boxes.shape == (2, 1, 3, 4) and logits.shape == (2, 1, 3)
    with pytest.raises(ValueError, match="143 px squares"):
        model(torch.zeros(1, 3, 150, 150))


def test_box_classifier_learns_what_is_in_boxes(multi_object, tmp_path, make_net):
    data = read_coco(multi_object / "train.json")
    net = detector_from(make_net("small", 10), data.class_names)
    task = BoxClassifierTask(net, data, config(optimizer="adam", lr=0.001, epochs=8), data)
    log = train(task, config(optimizer="adam", lr=0.001, epochs=8), tmp_path / "run")
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert log[-1]["validation_top1_error"] < 0.6
    found = load(tmp_path / "run" / "net.safetensors")
    assert isinstance(found, OverFeat) and found.background and found.class_names[-1] == "background"


def test_box_classifier_takes_no_other_classes(multi_object, make_net):
    data = read_coco(multi_object / "train.json")
    with pytest.raises(InputError, match="not the net's class_names"):
        BoxClassifierTask(make_net("small", 10), data, config())
    net = make_net("small", 10)
    net.class_names = data.class_names
    with pytest.raises(InputError, match="no background class"):
        BoxClassifierTask(net, data, config())


def test_a_broken_image_teaches_a_box_classifier_nothing(multi_object, make_net):
    """It went after the check: a batch with it, and one of such alone, still train."""
    data = read_coco(multi_object / "train.json")
    task = BoxClassifierTask(detector_from(make_net("small", 10), data.class_names), data, config())
    items = [task.data[i] for i in range(3)]
    whole, _ = task.loss(task.module, task.collate(items))
    broken = {**task.data.empty_item(), "unreadable": 0}
    loss, sums = task.loss(task.module, task.collate([*items, broken]))
    assert sums["samples"] == 3 and float(loss) == pytest.approx(float(whole), rel=1e-5)
    loss, sums = task.loss(task.module, task.collate([broken, broken]))
    loss.backward()
    assert sums["samples"] == 0 and loss == 0 and not task.module.fc_layers[-1].weight.grad.any()


def test_each_class_has_boxes_of_its_own(multi_object):
    """An object of class k is matched with the boxes of class k alone."""
    data = read_coco(multi_object / "train.json")
    task = MultiBoxTask(tiny(data.class_names), data, config())
    item = next(item for item in map(task.data.__getitem__, range(len(task.data))) if len(item["labels"]) == 1)
    task.loss(task.module, task.collate([item]))[0].backward()
    grad = task.module.net.fc_layers[-1].bias.grad.view(10, 6, 5)[..., :4].abs().sum(dim=(1, 2))
    assert grad.nonzero()[:, 0].tolist() == item["labels"].tolist()


def test_objects_that_the_surest_boxes_miss(monkeypatch):
    monkeypatch.setattr("overfeat.multibox.train.RECALL_AT", 2)
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6], [2, 2, 3, 3]])
    true = torch.tensor([[0.0, 0, 1, 0.9], [2, 2, 3, 3.1], [5, 5, 6, 6]])
    assert _missed(boxes, torch.tensor([3.0, 2.0, 1.0]), true) == 2
    assert _missed(boxes, torch.tensor([3.0, 1.0, 2.0]), true) == 1
    assert _missed(boxes, torch.tensor([3.0, 1.0, 2.0]), true[:0]) == 0


def test_layers_are_adopted_up_to_the_first_of_another_form():
    model, source = MultiBox(MULTIBOX_ARCHITECTURES["small"], 3), OverFeat(ARCHITECTURES["small"], 2)
    assert copy_matching_weights(model.net.conv_layers, source.conv_layers) == 6 and len(model.net.conv_layers) == 9
    for layer, known in zip(model.net.conv_layers, source.conv_layers, strict=False):
        assert torch.equal(layer.weight, known.weight)
    assert copy_matching_weights(model.net.fc_layers, source.fc_layers) == 0


def test_validation_images_need_an_object_in_the_middle(multi_object):
    data = read_coco(multi_object / "train.json")
    sample = replace(data.samples[0], size=(100, 400), boxes=np.array([[0.0, 0, 20, 20]]), labels=np.array([1]))
    sample = replace(sample, difficult=np.array([False]))
    with pytest.raises(InputError, match="no object lies in the middle square of a validation image"):
        MultiBoxTask(tiny(), data, config(), replace(data, samples=[sample]))


def test_objects_left_over_count_as_errors(multi_object):
    """With one box for several objects the others have no overlap at all."""
    task = MultiBoxTask(tiny(boxes=1), read_coco(multi_object / "train.json"), config())
    items = [item for item in map(task.data.__getitem__, range(len(task.data))) if len(item["labels"]) >= 3]
    assert items
    _, sums = task.loss(task.module, task.collate(items))
    assert sums["iou_error"] >= sums["samples"] - len(items)


def test_truths_that_do_not_belong_to_the_boxes():
    with pytest.raises(ValueError, match=r"P truths are needed, not \(2, 3, 4\), \(2, 3\) and 1"):
        multibox_loss(torch.rand(2, 3, 4), torch.rand(2, 3), [torch.rand(1, 4)])
