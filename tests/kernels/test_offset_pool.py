"""Offset pooling: every size, dilation and layout, lists of maps, more than 2^31 elements."""

import pytest
import torch
from kernel_checks import DEVICE, INTERPRETED, made, truth, unequal

from bench.tolerance import assert_matches
from overfeat.kernels import offset_pool, skip_classifier
from overfeat.ops import reference


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 1), (5, 1), (1, 4), (2, 3), (3, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_pool_of_any_size(dtype, size, dilation, last):
    check_pool(dtype, size, dilation, last)


def test_an_argmax_of_more_than_a_byte():
    check_pool(torch.float16, 17, 1, False)


def check_pool(dtype, size, dilation, last):
    reach = (size - 1) * dilation
    maps = made((2, 3, reach + 4, reach + 2), dtype, last=last)
    twin = maps.double().requires_grad_()
    expected = reference.offset_max_pool(twin, size, dilation)
    actual = offset_pool.forward(maps, size, dilation)
    assert torch.equal(actual.double(), expected)
    grad = made(actual.shape, dtype, 3)
    gradient = offset_pool.backward(grad, maps, size, dilation)
    assert gradient.stride() == maps.stride()
    assert_matches(gradient, torch.autograd.grad(expected, twin, grad.double())[0], dtype)
    assert torch.equal(offset_pool.backward(grad, maps, size, dilation), gradient)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_list_is_pooled_in_one_pass(mixed, monkeypatch):
    maps = unequal(5) if mixed else [m.contiguous(memory_format=torch.channels_last) for m in unequal(5)]
    pooled, gradients = check_list(maps)
    monkeypatch.setattr(offset_pool, "MAX_MAPS", 3)
    for actual, expected in zip(check_list(maps), (pooled, gradients), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_channels_of_a_block_and_a_part():
    check_list([made((1, 136, 4, 5), last=True), made((2, 136, 3, 3), seed=1, last=True)])


def check_list(maps):
    twins = [m.double().requires_grad_() for m in maps]
    flat = [reference.offset_max_pool(m, 3).permute(0, 2, 3, 1).flatten(0, 2) for m in twins if len(m)]
    expected = torch.cat(flat)
    assert torch.equal(offset_pool.forward_list(maps, 3), expected.float())
    grad = made(expected.shape, seed=3)
    expected_gradients = torch.autograd.grad(expected, twins, grad.double(), materialize_grads=True)
    gradients = offset_pool.backward_list(grad, maps, 3)
    assert_matches(gradients, expected_gradients, torch.float32)
    assert [g.stride() for g in gradients if len(g)] == [m.stride() for m in maps if len(m)]
    return offset_pool.forward_list(maps, 3), gradients


@pytest.mark.parametrize("last", [False, True])
def test_ties_nan_and_infinity(last):
    """Of equal values, and of several NaN, the first has the gradient."""
    maps = made((1, 8, 5, 6), last=last).round()  # many ties
    maps[0, 1, 2, 2] = maps[0, 1, 2, 4] = maps[0, 1, 3, 3] = float("nan")
    maps[0, 2, 1, 1] = maps[0, 2, 4, 2] = float("inf")
    maps[0, 3] = -float("inf")
    maps[0, 4] = float("nan")
    maps[0, 5, ::2], maps[0, 5, 1::2] = 0.0, -0.0
    twin = maps.clone().requires_grad_()
    expected = reference.offset_max_pool(twin, 3)
    assert torch.equal(offset_pool.forward(maps, 3, 1).nan_to_num(7, 8, 9), expected.detach().nan_to_num(7, 8, 9))
    grad = made(expected.shape, seed=3).round()
    grad[0, 6, 1, 1], grad[0, 6, 0, 0], grad[0, 7, 0, 0] = float("nan"), float("inf"), -float("inf")
    (expected_gradient,) = torch.autograd.grad(expected, twin, grad)
    gradient = offset_pool.backward(grad, maps, 3, 1)
    assert torch.equal(gradient.nan_to_num(7, 8, 9), expected_gradient.nan_to_num(7, 8, 9))


def test_gradients_of_any_strides():
    maps = made((2, 8, 6, 7), last=True)
    grad = made((2, 8, 4, 5), seed=3)
    expected = offset_pool.backward(grad, maps, 3, 1)
    for other in (grad.contiguous(memory_format=torch.channels_last), grad.transpose(2, 3).contiguous().mT):
        assert torch.equal(offset_pool.backward(other, maps, 3, 1), expected)
    ones = torch.ones((), device=DEVICE).expand(2, 8, 4, 5)
    assert torch.equal(offset_pool.backward(ones, maps, 3, 1), offset_pool.backward(ones.clone(), maps, 3, 1))


def test_maps_at_odd_addresses():
    memory = made((1 + 64 * 6 * 7,), torch.float16)
    maps = memory[1:].view(1, 6, 7, 64).permute(0, 3, 1, 2)
    assert maps.is_contiguous(memory_format=torch.channels_last) and maps.data_ptr() % 16
    assert torch.equal(offset_pool.forward(maps, 3, 1), offset_pool.forward(maps.clone(), 3, 1))
    grad = made((1, 64, 4, 5), torch.float16, 3)
    assert torch.equal(offset_pool.backward(grad, maps, 3, 1), offset_pool.backward(grad, maps.clone(), 3, 1))


@pytest.mark.parametrize("last", [False, True])
def test_empty_maps(last):
    for shape in ((0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 2, 6)):
        maps = made(shape, last=last)
        pooled = offset_pool.forward(maps, 3, 1)
        assert pooled.shape == (*shape[:2], shape[2] - 2, shape[3] - 2)
        gradient = offset_pool.backward(pooled, maps, 3, 1)
        assert gradient.shape == shape and not gradient.any()


@pytest.mark.skipif(not INTERPRETED and torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 12 << 30,
                    reason="needs 12 GB of GPU memory")  # fmt: skip
def test_more_than_2_to_31_elements_apart():
    """Images whose distance in memory needs more than 32 bits; on a CPU, untouched pages use no memory."""
    torch.use_deterministic_algorithms(False)
    stride = 2**31 + 8
    memory = torch.empty(stride + 400, dtype=torch.float16, device=DEVICE)
    maps = memory.as_strided((2, 4, 8, 9), (stride, 72, 9, 1))
    maps.copy_(made((2, 4, 8, 9), torch.float16))
    assert_matches(offset_pool.forward(maps, 3, 1), reference.offset_max_pool(maps.double(), 3), torch.float16)
    weight = made((5, 4, 2, 2), torch.float16, 8)
    actual = skip_classifier.forward([maps], weight, None, 3, True, 3)
    assert_matches(actual, truth([maps.clone()], weight, None, 3), torch.float16)
    grad = memory.as_strided((2, 4, 6, 7), (stride, 42, 7, 1))
    grad.copy_(made((2, 4, 6, 7), torch.float16, 3))
    twin = made((2, 4, 8, 9), torch.float16).double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.offset_max_pool(twin, 3), twin, grad.double())
    assert_matches(offset_pool.backward(grad, twin.detach().half(), 3, 1), expected, torch.float16)
