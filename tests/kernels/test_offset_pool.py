"""Offset pooling: every size, dilation and layout, lists of maps, more than 2^31 elements."""

import pytest
import torch
from kernel_checks import DEVICE, INTERPRETED, made, truth, unequal

from bench.tolerance import assert_matches
from overfeat.kernels import offset_pool, skip_classifier
from overfeat.ops import reference


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 1), (5, 1), (17, 1), (1, 4), (2, 3), (3, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_pool_of_any_size(dtype, size, dilation, last):
    reach = (size - 1) * dilation
    maps = made((2, 3, reach + 4, reach + 2), dtype, last=last)
    twin = maps.double().requires_grad_()
    expected = reference.offset_max_pool(twin, size, dilation)
    actual = offset_pool.forward(maps, size, dilation)
    assert torch.equal(actual.double(), expected)
    grad = made(actual.shape, dtype, 3)
    gradient = offset_pool.backward(grad, maps, size, dilation)
    assert_matches(gradient, torch.autograd.grad(expected, twin, grad.double())[0], dtype)
    assert torch.equal(offset_pool.backward(grad, maps, size, dilation), gradient)


def test_a_list_is_pooled_in_one_pass():
    maps = unequal(5)
    flat = [reference.offset_max_pool(m, 3).permute(0, 2, 3, 1).flatten(0, 2) for m in maps if len(m)]
    assert torch.equal(offset_pool.forward_list(maps, 3), torch.cat(flat))


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
