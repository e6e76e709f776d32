"""The ops in torch.func's transforms and forward mode: against central differences, or refused in words."""

import pytest
import torch
from torch.autograd import forward_ad

import overfeat
from overfeat import ops
from overfeat.models.architecture import Architecture, Conv
from overfeat.ops.vote_boxes import averages, support

MAPS, WEIGHT, BIAS = (
    torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for shape in ((2, 3, 7, 8), (4, 3, 2, 2), (4,))
)


def pool(maps):
    return ops.offset_max_pool(maps, 2, 2)


def classify(maps, weight, bias):
    return torch.cat([m.flatten() for m in ops.skip_classifier_scales([maps, maps[:1, :, 1:]], weight, bias, 2)])


def score(maps):
    return ops.class_scores(maps.flatten(1).t(), [100, 68])


def layers(maps, weight, bias):
    with torch.no_grad():  # does not end forward mode
        return ops.convolution(maps, weight, bias, stride=1, pad=0)


CASES = [(pool, (MAPS,)), (classify, (MAPS, WEIGHT, BIAS)), (score, (MAPS,)), (layers, (MAPS, WEIGHT, BIAS))]


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_forward_mode_equals_differences(function, inputs):
    g = torch.Generator().manual_seed(1)
    tangents = tuple(torch.randn(x.shape, generator=g, dtype=x.dtype) for x in inputs)
    step, tolerance = (1e-3, 1e-3) if function is score else (1e-6, 1e-5)  # scores are float32
    ahead, behind = (function(*(x + h * t for x, t in zip(inputs, tangents, strict=True))) for h in (step, -step))
    expected = (ahead.double() - behind.double()) / (2 * step)
    value, tangent = torch.func.jvp(function, inputs, tangents)
    torch.testing.assert_close(value, function(*inputs))
    torch.testing.assert_close(tangent.double(), expected, rtol=tolerance, atol=tolerance)
    with forward_ad.dual_level():
        dual = function(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)


@pytest.mark.parametrize(("function", "inputs"), CASES[:3])
def test_reverse_mode_transforms(function, inputs):
    """The transforms' gradients are those of forward mode and, where there are any, of autograd."""

    def total(*values):
        return function(*values).square().sum()

    every = tuple(range(len(inputs)))
    gradients = torch.func.grad(total, every)(*inputs)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    slope = torch.func.jvp(total, inputs, tangents)[1]
    along = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(along.double(), slope.double(), rtol=1e-4, atol=1e-6)
    if function is not score:
        leaves = [x.clone().requires_grad_() for x in inputs]
        torch.testing.assert_close(gradients, torch.autograd.grad(total(*leaves), leaves))


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_in_vmap(function, inputs):
    several = [torch.stack([x, x.flip(0), 2 * x]) for x in inputs]
    expected = torch.stack([function(*values) for values in zip(*several, strict=True)])
    torch.testing.assert_close(torch.func.vmap(function)(*several), expected)


def test_gradients_of_each_image_by_vmap():
    """Of a whole net, as in torch.func's per-sample gradients."""
    layers = (Conv(4, 3, pool=2), Conv(5, 3, pad=1, pool=2))
    net = overfeat.build(Architecture("a net", layers, 2, (6,), 20), classes=3).double().eval()
    pixels = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images, parameters = 255 * pixels, dict(net.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(net, parameters, (image[None],)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for number, image in enumerate(images):
        expected = torch.autograd.grad(net(image[None]).square().sum(), list(parameters.values()))
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(gradients[name][number], value)


def test_merging_and_voting_have_no_derivatives():
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [9, 9, 12, 12]]), torch.ones(3)
    functions = {
        "merge_boxes": lambda b: ops.merge_boxes(b, scores).boxes,
        "support": lambda b: support(b, scores),
        "averages": lambda b: averages(b, scores, chosen=torch.tensor([0]))[0],
    }
    for name, function in functions.items():
        with pytest.raises(ValueError, match=f"{name} has no derivatives: detach its inputs"):
            torch.func.jvp(function, (boxes,), (boxes,))
        with forward_ad.dual_level(), pytest.raises(ValueError, match=f"{name} has no derivatives"):
            function(forward_ad.make_dual(boxes, boxes))
        leaf = boxes.clone().requires_grad_()
        result = function(leaf)
        assert not result.requires_grad and torch.equal(result, function(boxes))
