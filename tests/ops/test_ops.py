"""The ops: values and gradients against reference.py, on every kind of input."""

import itertools

import op_checks
import pytest
import torch
from op_checks import CASE, LAYOUTS, check_classifier, check_pool, laid_out, numbers, parameters, scales

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference
from overfeat.ops.backends import eager
from overfeat.ops.max_pool import max_pool

# Values and gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "size", "dilation"),
    [
        ((2, 3, 5, 7), 1, 1),
        ((2, 3, 7, 10), 2, 1),
        ((1, 3, 11, 13), 3, 1),
        ((1, 2, 17, 12), 4, 1),
        ((1, 1, 4, 4), 4, 1),  # exactly one window
        ((0, 3, 7, 8), 3, 1),  # no images
        ((2, 3, 5, 7), 1, 3),
        ((2, 3, 7, 10), 2, 3),
        ((1, 3, 11, 8), 3, 2),
        ((1, 2, 5, 5), 3, 2),  # exactly one window
        ((0, 3, 7, 8), 3, 2),
    ],
)
def test_pool(implementation, device, shape, size, dilation, layout):
    check_pool(laid_out(numbers(shape, device), layout), size, dilation)


@pytest.mark.parametrize("layout", LAYOUTS)
@CASE
@pytest.mark.usefixtures("implementation", "eager_path")
def test_classifier(device, shape, out, kernel, size, tap, layout):
    maps = laid_out(numbers(shape, device), layout)
    check_classifier([maps], *parameters(out, shape[1], kernel, device), size, tap=tap)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
def test_classifier_without_bias_and_without_relu(implementation, device, eager_path, relu, bias):
    weight, some = parameters(4, 3, 2, device)
    check_classifier([numbers((2, 3, 8, 9), device)], weight, some if bias else None, 3, relu)


@pytest.mark.parametrize("weight_layout", ["channels last", "transposed", "strided"])
def test_layout_of_the_weight(implementation, device, eager_path, weight_layout):
    weight, bias = parameters(4, 3, 2, device)
    check_classifier([numbers((2, 3, 8, 9), device)], laid_out(weight, weight_layout), bias, 3)


@pytest.mark.parametrize("arrange", [lambda b: b.repeat_interleave(2)[::2], lambda b: b[:1].expand(len(b))])
def test_layout_of_the_bias(implementation, device, eager_path, arrange):
    weight, bias = parameters(4, 3, 2, device)
    check_classifier(scales(device), weight, arrange(bias), 3)


@pytest.mark.parametrize(("kernel", "size", "tap"), [(2, 3, None), (2, 3, 2), (2, 2, 4), ((3, 2), 2, 1)])
def test_maps_of_different_sizes_in_one_call(implementation, device, eager_path, kernel, size, tap):
    check_classifier(scales(device), *parameters(4, 3, kernel, device), size, tap=tap)


@CASE
def test_the_reference_supports_every_map_with_an_output(shape, out, kernel, size, tap):
    """Down to maps of a single window, in which most offsets of the pooling do not fit."""
    weight, bias = parameters(out, shape[1], kernel)
    height, width = (size + (k - 1) * (tap or size) for k in weight.shape[2:])
    maps = numbers((shape[0] or 1, shape[1], height, width + 1))
    expected = ops.skip_classifier(maps, weight, bias, size, tap=tap)
    assert_matches(reference.skip_classifier(maps, weight, bias, size, tap=tap), expected, op_checks.DTYPE)


@CASE
def test_the_reference_is_pooling_and_convolution_of_the_window(shape, out, kernel, size, tap):
    """At every position, pooled by its stride and size alone: what a net does with the window cropped."""
    maps, (weight, bias) = numbers((2, *shape[1:])), parameters(out, shape[1], kernel)
    actual = reference.skip_classifier(maps, weight, bias, size, tap=tap)
    height, width = (size + (k - 1) * (tap or size) for k in weight.shape[2:])
    assert actual.shape[2:] == (shape[2] - height + 1, shape[3] - width + 1)
    for y, x in itertools.product(*map(range, actual.shape[2:])):
        pooled = torch.nn.functional.max_pool2d(maps[:, :, y : y + height, x : x + width], size, tap)
        expected = torch.nn.functional.linear(pooled.flatten(1), weight.flatten(1), bias).relu()
        assert_matches(actual[:, :, y, x], expected, op_checks.DTYPE)


def test_small_and_large_maps_keep_their_order(device, monkeypatch):
    monkeypatch.setattr(eager, "GATHER_MAX_POSITIONS", 30)  # the list alternates between both paths
    check_classifier(scales(device), *parameters(4, 3, 2, device), 3)


def test_one_map_is_a_list_of_one(implementation, device):
    weight, bias = parameters(4, 3, 2, device)
    maps = numbers((2, 3, 8, 9), device)
    (one,) = ops.skip_classifier_scales([maps], weight, bias, 3)
    assert torch.equal(ops.skip_classifier(maps, weight, bias, 3), one)
    assert torch.equal(torch.ops.overfeat.skip_classifier(maps, weight, bias, 3, True), one)
    assert torch.equal(ops.skip_classifier(maps, weight, bias, 3, tap=3), one)
    assert ops.skip_classifier_scales([], weight, bias, 3) == []


@pytest.mark.parametrize("gathered", [True, False])
def test_few_positions_avoid_the_convolution(monkeypatch, gathered):
    weight, bias = parameters(4, 3, 2)
    maps = numbers((2, 3, 8, 9))  # 2 * 3 * 4 positions
    expected = reference.skip_classifier(maps, weight, bias, 3)

    def refuse(*args, **options):
        raise AssertionError("the convolution ran")

    monkeypatch.setattr(eager, "GATHER_MAX_POSITIONS", 25 if gathered else 24)
    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    if gathered:
        assert_matches(ops.skip_classifier(maps, weight, bias, 3), expected, op_checks.DTYPE)
    else:
        with pytest.raises(AssertionError, match="the convolution ran"):
            ops.skip_classifier(maps, weight, bias, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_types(implementation, device, eager_path, dtype):
    """Against the reference on the same values in float64."""
    if dtype == torch.bfloat16 and implementation == "triton" and device.type == "cpu":
        pytest.skip("Triton's interpreter computes bfloat16 GEMMs wrongly by design: for a GPU")
    maps = numbers((2, 32, 13, 11), device, dtype=torch.float64).to(dtype)
    weight, bias = (t.to(dtype) for t in parameters(16, 32, 3, device))
    actual = ops.skip_classifier(maps, weight, bias, 3)
    assert actual.dtype == dtype
    assert_matches(actual, reference.skip_classifier(maps.double(), weight.double(), bias.double(), 3), dtype)
    check_pool(maps, 3, dtype=dtype)


@pytest.mark.parametrize("relu", [True, False])
def test_float32_gradients(implementation, device, eager_path, relu):
    weight, bias = parameters(16, 32, 3, device, torch.float32)
    maps = [numbers((2, 32, 13, 11), device, dtype=torch.float32)]
    check_classifier(maps, weight, bias, 3, relu, dtype=torch.float32)


# Ties, NaN and infinities


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_ties_give_their_gradient_to_the_first(implementation, device, size, layout):
    maps = numbers((2, 3, 9, 10), device).mul(0.7).round()  # mostly -1, 0 and 1
    check_pool(laid_out(maps, layout), size)
    check_pool(laid_out(torch.zeros_like(maps), layout), size)
    check_pool(laid_out(maps, layout), size, dilation=2)
    check_classifier([laid_out(maps, layout)], *parameters(4, 3, 2, device), size)
    check_classifier([laid_out(maps, layout)], *parameters(4, 3, 2, device), size, tap=2)


def test_gradient_of_a_constant_map():
    maps = torch.zeros(1, 1, 3, 4, requires_grad=True)
    ops.offset_max_pool(maps, 2).sum().backward()
    assert maps.grad[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_negative_maps(implementation, device, eager_path, layout):
    maps = -numbers((2, 3, 7, 8), device).abs() - 1
    check_pool(laid_out(maps, layout), 3)
    check_classifier([laid_out(maps, layout)], *parameters(4, 3, 2, device), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_nan_and_infinities(implementation, device, eager_path, value, layout):
    maps = numbers((2, 3, 9, 10), device)
    maps[0, 1, 4, 5] = value
    maps[1, :, 0, 9] = value
    check_pool(laid_out(maps, layout), 3)
    check_pool(laid_out(maps, layout), 3, dilation=2)
    check_pool(laid_out(maps, layout), 1)
    weight, bias = parameters(4, 3, 2, device)
    for tap in (2, 3):
        check_classifier([laid_out(maps, layout)], weight, bias, 3, relu=False, tap=tap)
    actual = ops.skip_classifier(laid_out(maps, layout), weight, bias, 3)
    assert_matches(actual, reference.skip_classifier(maps, weight, bias, 3), op_checks.DTYPE)


def test_gradients_of_nan_under_relu(implementation, device, eager_path):
    maps = numbers((1, 3, 9, 10), device)
    maps[0, 1, 4, 5] = float("nan")
    check_classifier([maps], *parameters(4, 3, 2, device), 3)


def test_a_map_of_minus_infinity(implementation, device, eager_path):
    maps = torch.full((1, 2, 6, 7), -float("inf"), dtype=op_checks.DTYPE, device=device)
    check_pool(maps, 3)
    weight = parameters(3, 2, 2, device)[0].abs()
    actual = ops.skip_classifier(maps, weight, None, 3, relu=False)
    assert_matches(actual, reference.skip_classifier(maps, weight, None, 3, relu=False), op_checks.DTYPE)


def test_infinite_gradients_stop_at_a_dead_output(implementation, device, eager_path):
    """Where the ReLU is 0 its gradient is 0, even if the output's gradient is infinite."""
    maps = numbers((1, 3, 6, 6), device).requires_grad_()
    weight = parameters(4, 3, 2, device)[0].requires_grad_()
    dead = torch.full((4,), -1e6, dtype=op_checks.DTYPE, device=device)
    result = ops.skip_classifier(maps, weight, dead, 3)
    gradients = torch.autograd.grad(result, [maps, weight], torch.full_like(result, float("inf")))
    assert all(not g.any() for g in gradients)


# Gradients of some inputs


def test_an_unused_result_contributes_no_gradient(implementation, device):
    weight, bias = parameters(4, 3, 2, device)
    maps = [m.requires_grad_() for m in (numbers((1, 3, 7, 8), device), numbers((1, 3, 9, 9), device))]
    first = ops.skip_classifier_scales(maps, weight, bias, 3)[0]
    of_maps = torch.autograd.grad(first.sum(), maps, allow_unused=True, materialize_grads=True)
    alone = torch.autograd.grad(ops.skip_classifier(maps[0], weight, bias, 3).sum(), maps[0])
    assert_matches(of_maps[0], alone[0], op_checks.DTYPE)
    assert not of_maps[1].any()


@pytest.mark.parametrize("inputs", ["maps", "one map", "weight", "bias"])
def test_gradients_of_some_inputs_only(implementation, device, inputs):
    weight, bias = parameters(4, 3, 2, device)
    maps = [numbers((1, 3, 7, 8), device), numbers((1, 3, 9, 9), device, seed=5)]
    leaves = {"maps": maps, "one map": maps[1:], "weight": [weight], "bias": [bias]}[inputs]
    for leaf in leaves:
        leaf.requires_grad_()
    actual = torch.autograd.grad(sum(r.sum() for r in ops.skip_classifier_scales(maps, weight, bias, 3)), leaves)
    expected = sum(reference.skip_classifier(m, weight, bias, 3).sum() for m in maps)
    assert_matches(actual, torch.autograd.grad(expected, leaves), op_checks.DTYPE)


def test_second_gradients_are_refused():
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    (first,) = torch.autograd.grad(ops.offset_max_pool(maps, 2).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), maps)


# Memory format


@pytest.mark.parametrize(("size", "tap"), [(1, 1), (2, 2), (3, 3), (3, 2), (1, 3)])
@pytest.mark.parametrize("last", [True, False])
def test_results_keep_the_memory_format(implementation, device, eager_path, size, tap, last):
    layout = torch.channels_last if last else torch.contiguous_format
    maps = numbers((2, 3, 8, 9), device).contiguous(memory_format=layout).requires_grad_()
    weight, bias = parameters(4, 3, 2, device)
    weight = weight.contiguous(memory_format=layout).requires_grad_()
    for result in (ops.offset_max_pool(maps, size, tap), ops.skip_classifier(maps, weight, bias, size, tap=tap)):
        assert result.is_contiguous(memory_format=layout)
    gradients = torch.autograd.grad(ops.skip_classifier(maps, weight, bias, size, tap=tap).sum(), [maps, weight])
    assert all(g.is_contiguous(memory_format=layout) for g in gradients)
    (of_maps,) = torch.autograd.grad(ops.offset_max_pool(maps, size, tap).sum(), maps)
    assert of_maps.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2])
def test_results_do_not_alias_and_inputs_are_unchanged(implementation, device, eager_path, layout, size):
    maps = laid_out(numbers((2, 3, 6, 7), device), layout)
    before = maps.clone()
    weight, bias = parameters(4, 3, 2, device)
    pooled = ops.offset_max_pool(maps, size)
    assert pooled.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
    ops.skip_classifier(maps, weight, bias, size)
    assert torch.equal(maps, before)


# Class scores, linear layers and convolutions


def test_class_scores(implementation, device):
    scores = numbers((30, 12), device) * 3
    for counts in ([30], [1, 29], [10, 1, 19]):
        actual = ops.class_scores(scores, counts)
        assert actual.dtype == torch.float32 and actual.shape == (len(counts), 12)
        assert_matches(actual, reference.class_scores(scores, counts), torch.float32)
    assert ops.class_scores(scores[:0], []).shape == (0, 12)


@pytest.mark.parametrize(
    ("scores", "counts", "words"),
    [
        (torch.zeros(4, 5, 6), [4], r"logits must be \[M, num_classes\]"),
        (torch.zeros(4, 5), [3], r"add up to 4 positions, not \[3\]"),
        (torch.zeros(4, 5), [4, 0], "counts must be positive"),
    ],
)
def test_class_scores_refuses(scores, counts, words):
    with pytest.raises(ValueError, match=words):
        ops.class_scores(scores, counts)


@pytest.mark.parametrize("relu", [True, False])
def test_linear(device, relu):
    flat, weight, bias = numbers((5, 3), device), numbers((4, 3, 1, 1), device, 1), numbers((4,), device, 2)
    expected = torch.nn.functional.linear(flat, weight.flatten(1), bias)
    leaf = flat.clone().requires_grad_()
    actual = ops.linear(leaf, weight, bias, relu)
    assert_matches(actual, expected.relu() if relu else expected, torch.float64)
    with torch.no_grad():
        assert torch.equal(ops.linear(flat, weight, bias, relu), actual)
    actual.sum().backward()
    slopes = (expected > 0).to(expected) if relu else torch.ones_like(expected)
    assert_matches(leaf.grad, slopes @ weight.flatten(1), torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "stride", "dilation"),
    [
        ((1, 1), (1, 1), (1, 1)),
        ((1, 1), (2, 3), (1, 1)),
        ((3, 3), (2, 2), (1, 1)),
        ((2, 3), (1, 2), (3, 2)),
        ((1, 4), (3, 1), (1, 2)),
        ((9, 1), (1, 1), (1, 1)),
    ],
)
def test_max_pool(device, size, stride, dilation, layout):
    maps = laid_out(numbers((2, 3, 9, 10), device), layout)
    maps[0, 0, 4, 5], maps[1, 1, 0] = float("nan"), -float("inf")
    expected = torch.nn.functional.max_pool2d(maps, size, stride, 0, dilation)
    actual = max_pool(maps, size, stride, dilation)
    assert torch.equal(actual.nan_to_num(99), expected.nan_to_num(99))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "pad", "dilation"), [((3, 3), 2, 1, 1), ((2, 3), 1, 0, 3)])
def test_convolution(device, relu, kernel, stride, pad, dilation):
    maps, weight, bias = numbers((2, 3, 9, 8), device), numbers((4, 3, *kernel), device, 1), numbers((4,), device, 2)
    expected = torch.nn.functional.conv2d(maps, weight, bias, stride, pad, dilation)
    leaf = maps.clone().requires_grad_()
    actual = ops.convolution(leaf, weight, bias, stride, pad, relu, dilation)
    assert_matches(actual, expected.relu() if relu else expected, torch.float64)
    with torch.no_grad():
        assert torch.equal(ops.convolution(maps, weight, bias, stride, pad, relu, dilation), actual)
    twin = maps.clone().requires_grad_()
    plain = torch.nn.functional.conv2d(twin, weight, bias, stride, pad, dilation)
    (gradient,) = torch.autograd.grad(actual.sum(), leaf)
    (expected_gradient,) = torch.autograd.grad((plain.relu() if relu else plain).sum(), twin)
    assert_matches(gradient, expected_gradient, torch.float64)
