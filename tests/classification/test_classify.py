"""Voting schemes against their definitions."""

import pytest
import torch

import overfeat
from bench.tolerance import assert_matches
from overfeat.classification.predict import scale_scores
from overfeat.data.resize import resize, resize_short_side
from overfeat.dense.config import DenseConfig, SixScales
from overfeat.dense.scales import six_scales
from overfeat.errors import InputError

SIZES = [(60, 81), (81, 60), (64, 64), (60, 81)]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]


@pytest.fixture
def net(make_net):
    return make_net("small", 4)


def by_hand(net, image, sizes, stride, flips):
    """Softmax at each position, the largest for each class, the mean over scales and flips."""
    best = []
    for size in sizes:
        scaled = resize(image[None], size)
        for view in [scaled, scaled.flip(-1)][: 2 if flips else 1]:
            with torch.no_grad():
                best.append(net(view, stride).softmax(1).flatten(2).max(2).values[0])
    return torch.stack(best).mean(0)


@pytest.mark.parametrize("stride", ["coarse", "fine"])
@pytest.mark.parametrize("flip", [False, True])
def test_classify_is_its_definition(net, images, stride, flip):
    for image in images[:2]:
        six = six_scales(net.geometry, *image.shape[1:])
        scores = overfeat.classify(net, image, flip=flip, stride=stride)
        assert_matches(scores, by_hand(net, image, six, stride, flip)[None], torch.float32)
        scores = overfeat.classify(net, image, scales=SixScales(1, 3), flip=flip, stride=stride)
        assert_matches(scores, by_hand(net, image, [six[0], six[2]], stride, flip)[None], torch.float32)


def test_accurate_runs_at_the_paper_s_sizes(make_net):
    net = make_net("thin accurate", 3)
    image = torch.randint(0, 256, (3, 375, 250), dtype=torch.uint8)
    sizes = [(w, h) for h, w in ((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569))]
    assert_matches(
        overfeat.classify(net, image, flip=True),
        by_hand(net, image, sizes, "fine", True)[None],
        torch.float32,
    )


def test_classify_is_the_maximum_of_the_maps(net, images):
    maps = overfeat.score_maps(net, images[0], flip=True)
    expected = torch.stack([m.scores.amax((2, 3)) for m in maps])
    assert_matches(scale_scores(net, images[0], DenseConfig(flip=True)), expected, torch.float32)
    assert_matches(overfeat.classify(net, images[0], flip=True), expected.mean(0), torch.float32)


@pytest.mark.parametrize("vote", [overfeat.classify, overfeat.centre_crop, overfeat.ten_views])
def test_a_list_is_each_image_alone(net, images, vote):
    scores = vote(net, images)
    assert scores.shape == (4, 4)
    for i, image in enumerate(images):
        assert_matches(scores[i], vote(net, image)[0], torch.float32)
    together = vote(net, torch.stack([images[0], images[3]]))
    assert_matches(together, scores[[0, 3]], torch.float32)


def test_no_images_give_no_scores(net):
    assert overfeat.classify(net, []).shape == (0, 4)
    assert overfeat.classify(net, torch.zeros(0, 3, 60, 70, dtype=torch.uint8), scales=[1.0]).shape == (0, 4)


def test_a_list_may_mix_types(net, images):
    mixed = [images[0], images[3].float()]
    scores = overfeat.classify(net, mixed)
    for i, image in enumerate(mixed):
        assert_matches(scores[i], overfeat.classify(net, image)[0], torch.float32)


def test_memory_does_not_change_the_result(net, images):
    batch = torch.stack([images[0]] * 5)
    assert_matches(overfeat.classify(net, batch, memory_limit=4 << 20), overfeat.classify(net, batch), torch.float32)


def views(net, image):
    """The paper's five crops: centre, then the corners."""
    window = net.architecture.window
    image = resize_short_side(image[None], net.architecture.short_side)
    height, width = image.shape[2:]
    middle = round(0.5 * (height - window)), round(0.5 * (width - window))
    corners = [(y, x) for y in (0, height - window) for x in (0, width - window)]
    return torch.cat([image[:, :, y : y + window, x : x + window] for y, x in (middle, *corners)])


def test_centre_crop_and_ten_views(net, images):
    for image in images:
        crops = views(net, image)
        with torch.no_grad():
            scores = net(torch.cat([crops, crops.flip(-1)])).softmax(1).flatten(1)
        assert_matches(overfeat.centre_crop(net, image)[0], scores[0], torch.float32)
        assert_matches(overfeat.ten_views(net, image, flip=True)[0], scores.mean(0), torch.float32)
        assert_matches(overfeat.ten_views(net, image, flip=False)[0], scores[:5].mean(0), torch.float32)
    net.flip = False
    assert_matches(overfeat.ten_views(net, image), overfeat.ten_views(net, image, flip=False), torch.float32)


def test_an_ensemble_is_the_mean(make_net, images):
    nets = [make_net("small", 4, seed=seed) for seed in range(3)]
    for vote in (overfeat.classify, overfeat.centre_crop, overfeat.ten_views):
        expected = torch.stack([vote(net, images[0]) for net in nets]).mean(0)
        assert_matches(vote(nets, images[0]), expected, torch.float32)
    nets[1].class_names = ["other"] * 4
    with pytest.raises(InputError, match="same classes"):
        overfeat.classify(nets, images[0])
    with pytest.raises(InputError, match="at least one net"):
        overfeat.classify([], images[0])


def test_voting_leaves_the_net_as_it_was(net, images):
    net.train()
    net.dropout = 0.9
    first, second = overfeat.classify(net, images[0]), overfeat.classify(net, images[0])
    assert torch.equal(first, second), "dropout was on"
    assert net.training and not first.requires_grad
