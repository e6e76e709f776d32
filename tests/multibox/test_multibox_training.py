"""DeepMultiBox's loss and matching against the paper's equations taken literally, and its two training tasks."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from overfeat.data.readers.coco import read_coco
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, MULTIBOX_ARCHITECTURES
from overfeat.models.checkpoint import load, load_multibox
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.models.transfer import copy_matching_weights, with_background
from overfeat.multibox.config import BoxClassifierConfig, MultiBoxConfig
from overfeat.multibox.matching import ALPHA, fit_priors, hungarian_match, multibox_loss
from overfeat.multibox.train import BoxClassifierTask, MultiBoxTask, num_missed
from overfeat.training.config import TrainConfig
from overfeat.training.trainer import train


def literal(boxes, confidences, true, priors):
    """Equations 1 to 5 for one image, by brute force: F at the optimal assignment, and the assignment."""
    count, best = min(len(true), len(boxes)), None
    for objects in itertools.combinations(range(len(true)), count):
        for chosen in itertools.permutations(range(len(boxes)), count):
            match = sum(((boxes[i] - true[j]) ** 2).sum() / 2 for i, j in zip(chosen, objects, strict=True))
            loss = ALPHA * match
            for i, c in enumerate(confidences):
                loss = loss - (np.log(c) if i in chosen else np.log(1 - c))
            cost = loss
            if priors is not None:
                cost = sum(((priors[i] - true[j]) ** 2).sum() for i, j in zip(chosen, objects, strict=True))
            if best is None or cost < best[0]:
                best = (cost, loss, sorted(zip(chosen, objects, strict=True)))
    return best[1], best[2]


@pytest.mark.parametrize("matching", ["prior", "prediction"])
@pytest.mark.parametrize("objects", [0, 1, 3, 4, 6])
def test_loss_equals_the_equations(matching, objects):
    draw = torch.Generator().manual_seed(objects)
    boxes = torch.rand(2, 4, 4, generator=draw, dtype=torch.float64)
    logits = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    priors = torch.rand(4, 4, generator=draw, dtype=torch.float64) if matching == "prior" else None
    truths = [torch.rand(objects, 4, generator=draw, dtype=torch.float64), torch.rand(2, 4, generator=draw).double()]
    losses, _, assigned = multibox_loss(boxes, logits, truths, priors=priors)
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
    losses, _, assigned = multibox_loss(
        boxes, confidences.logit(), [true], priors=torch.rand(5, 4, generator=draw).double()
    )
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
    """Of the loss, where the assignment stays the same."""
    draw = torch.Generator().manual_seed(2)
    boxes = torch.rand(2, 6, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    truths = [torch.rand(n, 4, generator=draw).double() for n in (3, 0)]
    priors = torch.rand(6, 4, generator=draw).double() if matching == "prior" else None
    assert torch.autograd.gradcheck(lambda b, c: multibox_loss(b, c, truths, priors=priors)[0], (boxes, logits))


def test_equal_costs_give_every_object_a_box_of_its_own():
    boxes, logits = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    true = torch.full((3, 4), 0.5)
    for priors in (None, boxes[0]):
        assigned = multibox_loss(boxes, logits, [true], priors=priors)[2]
        assert sorted(assigned[:, 2].tolist()) == [0, 1, 2] and len(set(assigned[:, 1].tolist())) == 3


def test_nan_costs_do_not_stop_the_solver():
    """The loss is then NaN too, and the training loop reports it."""
    boxes = torch.full((1, 3, 4), torch.nan)
    losses, _, assigned = multibox_loss(boxes, torch.zeros(1, 3), [torch.rand(2, 4)])
    assert len(assigned) == 2 and losses.isnan().all()
    costs = torch.tensor([[torch.nan, 1.0], [0.0, torch.inf]])
    assert hungarian_match(costs, [2]).tolist() == [[0, 1], [1, 0]]


def test_difficult_objects_do_not_contribute_to_the_loss():
    """Their boxes have no gradient; unmatched boxes are negatives."""
    boxes = torch.rand(1, 4, 4, requires_grad=True)
    logits = torch.zeros(1, 4, requires_grad=True)
    true = torch.rand(2, 4)
    losses, _, assigned = multibox_loss(
        boxes, logits, [true], priors=boxes[0].detach(), difficult=[torch.tensor([True, False])]
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
    priors = fit_priors(boxes, 3).double()
    means = torch.from_numpy(np.stack([boxes[50 * k : 50 * k + 50].mean(axis=0) for k in range(3)]))
    assert (torch.cdist(means, priors).amin(dim=1) < 1e-6).all()
    assert torch.equal(fit_priors(boxes, 3), fit_priors(boxes, 3))
    with pytest.raises(InputError, match=r"2 distinct boxes .* 3 priors.*num_boxes"):
        fit_priors(np.repeat(boxes[:2], 30, axis=0), 3)


def tiny(names=None, priors=True, boxes=6):
    """A net with an input of 47 px and few channels."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["small"].with_input_size(47, (16,))
    return MultiBox(architecture, boxes, names, torch.rand(boxes, 4).sort().values if priors else None)


def config(**changes):
    options = {"epochs": 2, "batch_size": 8, "optimizer": "adagrad", "lr": 0.01, "num_workers": 0, "device": "cpu"}
    return TrainConfig(**options | changes)


def options(**changes):
    return MultiBoxConfig(**{"samples_per_image": 4} | changes)


@pytest.mark.parametrize("kind", ["priors", "predictions", "per class"])
def test_training_lowers_the_loss_and_writes_the_net(multi_object, tmp_path, kind):
    data = read_coco(multi_object / "train.json")
    model = tiny(data.class_names if kind == "per class" else None, kind != "predictions")
    matching = "prediction" if kind == "predictions" else "prior"
    validation = read_coco(multi_object / "validation.json")
    chosen = options(matching=matching, dropout=0.5)
    task = MultiBoxTask(model, data, validation, chosen, config(epochs=6))
    log = train(task, tmp_path / "run")
    assert log[-1]["train_loss"] < 0.97 * log[0]["train_loss"]
    assert 0 <= log[-1]["validation_missed_error"] <= 1
    loaded = load_multibox(tmp_path / "run" / "net.safetensors")
    images = torch.randint(0, 256, (2, 3, 47, 47), dtype=torch.uint8)
    for ours, theirs in zip(model.eval()(images), loaded(images), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.class_names == model.class_names and (loaded.priors is None) == (kind == "predictions")


def test_a_batch_without_objects_trains(multi_object):
    data = read_coco(multi_object / "train.json")
    task = MultiBoxTask(tiny(), data, None, options(), config())
    empty = [i for i in range(len(task.dataset)) if not len(task.dataset[i]["boxes"])][:4]
    assert empty
    loss, sums = task.loss(task.module, task.collate([task.dataset[i] for i in empty]))
    loss.backward()
    assert sums["samples"] == 0 and loss > 0
    assert task.module.net.fc_layers[-1].weight.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matching": "best"}, "matching must be one of prior, prediction, not 'best'"),
        ({"alpha": 0.0}, "alpha must be at least"),
        ({"model": tiny(priors=False)}, "matching must be prediction for a model without priors"),
        ({"model": tiny(["cat"])}, "not the net's class_names"),
    ],
)
def test_mismatches_are_refused(multi_object, changes, message):
    model = changes.pop("model", None) or tiny()
    with pytest.raises(InputError, match=message):
        MultiBoxTask(model, read_coco(multi_object / "train.json"), options=options(**changes))


def test_the_nets_take_squares_of_their_input_size():
    for name, architecture in MULTIBOX_ARCHITECTURES.items():
        with torch.device("meta"):
            model = MultiBox(architecture, 3)
        assert model.image_size == architecture.window, name
    model = MultiBox(MULTIBOX_ARCHITECTURES["small"], 3)
    boxes, logits = model(torch.zeros(2, 3, model.image_size, model.image_size))
    assert boxes.shape == (2, 1, 3, 4) and logits.shape == (2, 1, 3)
    with pytest.raises(ValueError, match="143 px squares"):
        model(torch.zeros(1, 3, 150, 150))


def test_box_classifier_trains(multi_object, tmp_path, make_net):
    data = read_coco(multi_object / "train.json")
    net = with_background(make_net("small", 10), data.class_names)
    options = BoxClassifierConfig(samples_per_image=3, dropout=0.5)
    task = BoxClassifierTask(net, data, data, options, config(optimizer="adam", lr=0.001, epochs=8))
    log = train(task, tmp_path / "run")
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert log[-1]["validation_top1_error"] < 0.6
    loaded = load(tmp_path / "run" / "net.safetensors")
    assert isinstance(loaded, OverFeat) and loaded.background and loaded.class_names[-1] == "background"


def test_box_classifier_refuses_other_classes(multi_object, make_net):
    data = read_coco(multi_object / "train.json")
    with pytest.raises(InputError, match="not the net's class_names"):
        BoxClassifierTask(make_net("small", 10), data)
    net = make_net("small", 10)
    net.class_names = data.class_names
    with pytest.raises(InputError, match="no background class"):
        BoxClassifierTask(net, data)


def test_a_broken_image_does_not_contribute_to_the_loss(multi_object, make_net):
    """A batch with an image that broke after the check, and a batch of such images alone, still train."""
    data = read_coco(multi_object / "train.json")
    task = BoxClassifierTask(with_background(make_net("small", 10), data.class_names), data)
    items = [task.dataset[i] for i in range(3)]
    expected, _ = task.loss(task.module, task.collate(items))
    broken = {**task.dataset.empty_item(), "unreadable": 0}
    loss, sums = task.loss(task.module, task.collate([*items, broken]))
    assert sums["samples"] == 3 and float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss, sums = task.loss(task.module, task.collate([broken, broken]))
    loss.backward()
    assert sums["samples"] == 0 and loss == 0 and not task.module.fc_layers[-1].weight.grad.any()


def test_each_class_has_boxes_of_its_own(multi_object):
    """An object of class k is matched with the boxes of class k alone."""
    data = read_coco(multi_object / "train.json")
    task = MultiBoxTask(tiny(data.class_names), data, options=options())
    item = next(item for item in map(task.dataset.__getitem__, range(len(task.dataset))) if len(item["labels"]) == 1)
    task.loss(task.module, task.collate([item]))[0].backward()
    grad = task.module.net.fc_layers[-1].bias.grad.view(10, 6, 5)[..., :4].abs().sum(dim=(1, 2))
    assert grad.nonzero()[:, 0].tolist() == item["labels"].tolist()


def test_objects_missed_by_the_highest_confidence_boxes(monkeypatch):
    monkeypatch.setattr("overfeat.multibox.train.RECALL_AT", 2)
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6], [2, 2, 3, 3]])
    true = torch.tensor([[0.0, 0, 1, 0.9], [2, 2, 3, 3.1], [5, 5, 6, 6]])
    assert num_missed(boxes, torch.tensor([3.0, 2.0, 1.0]), true) == 2
    assert num_missed(boxes, torch.tensor([3.0, 1.0, 2.0]), true) == 1
    assert num_missed(boxes, torch.tensor([3.0, 1.0, 2.0]), true[:0]) == 0


def test_layers_are_copied_up_to_the_first_of_another_shape():
    model, source = MultiBox(MULTIBOX_ARCHITECTURES["small"], 3), OverFeat(ARCHITECTURES["small"], 2)
    assert copy_matching_weights(model.net.conv_layers, source.conv_layers) == 6 and len(model.net.conv_layers) == 9
    for layer, known in zip(model.net.conv_layers, source.conv_layers, strict=False):
        assert torch.equal(layer.weight, known.weight)
    assert copy_matching_weights(model.net.fc_layers, source.fc_layers) == 0


def test_validation_images_need_an_object_in_the_middle(multi_object):
    data = read_coco(multi_object / "train.json")
    sample = replace(data.samples[0], size=(100, 400), boxes=np.array([[0.0, 0, 20, 20]]), labels=np.array([1]))
    sample = replace(sample, difficult=np.array([False]))
    with pytest.raises(InputError, match="no object lies in the centre square of a validation image"):
        MultiBoxTask(tiny(), data, replace(data, samples=[sample]))


def test_unmatched_objects_count_as_errors(multi_object):
    """With one box for several objects the others have no overlap at all."""
    task = MultiBoxTask(tiny(boxes=1), read_coco(multi_object / "train.json"), options=options())
    items = [item for item in map(task.dataset.__getitem__, range(len(task.dataset))) if len(item["labels"]) >= 3]
    assert items
    _, sums = task.loss(task.module, task.collate(items))
    assert sums["iou_error"] >= sums["samples"] - len(items)


def test_truths_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"P truths are needed, not \(2, 3, 4\), \(2, 3\) and 1"):
        multibox_loss(torch.rand(2, 3, 4), torch.rand(2, 3), [torch.rand(1, 4)])
