"""Shared by the tests of the ops: cases, memory layouts, and comparison with the reference."""

import os

import pytest
import torch

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference

# (maps, channels out, kernel, pooling, its stride): every pooling, with remainders that differ by axis
CASES = [
    ((2, 3, 5, 7), 4, 2, 1, None),
    ((2, 3, 7, 10), 4, 2, 2, None),
    ((1, 3, 11, 13), 4, 2, 3, None),
    ((1, 2, 17, 12), 3, 2, 4, None),
    ((2, 3, 10, 11), 5, 3, 3, None),
    ((2, 3, 6, 6), 4, 2, 3, None),  # exactly one window
    ((1, 2, 1, 1), 3, 1, 1, None),
    ((1, 1, 7, 11), 1, 1, 4, None),  # one channel in and out
    ((0, 3, 7, 8), 4, 2, 3, None),  # no images
    ((2, 3, 9, 11), 4, 3, 3, 2),  # overlapping pools
    ((1, 3, 6, 5), 4, 3, 2, 1),
    ((1, 2, 5, 8), 3, 2, 3, 2),
    ((2, 3, 7, 9), 4, 2, 2, 4),  # pools with gaps between them
    ((1, 2, 5, 6), 3, 2, 1, 3),
    ((2, 3, 7, 7), 4, 3, 3, 2),  # exactly one window
    ((2, 3, 8, 9), 4, (1, 3), 2, None),
    ((1, 3, 9, 7), 4, (3, 2), 3, 2),
]
CASE = pytest.mark.parametrize(("shape", "out", "kernel", "size", "tap"), CASES)
LAYOUTS = (
    "contiguous",
    "channels last",
    "sliced",
    "sliced channels last",
    "transposed",
    "strided",
    "expanded",
)


# For tests that no kernel affects; they run without the interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NO_KERNEL = pytest.mark.skipif(INTERPRETED, reason="the kernels do not support float64")
ONE_FOR_ALL = pytest.mark.skipif(INTERPRETED, reason="an op's registration is the same for every backend")

# The default dtype of the tests; the fixture `implementation` sets float32 for the kernels.
DTYPE = torch.float64


def numbers(shape, device="cpu", seed=0, dtype=None):
    dtype = dtype or DTYPE
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def single(*shape, seed=0):
    return numbers(shape, seed=seed, dtype=torch.float32)


def laid_out(maps, layout):
    """The same values in another memory layout; one image repeated if expanded."""
    n, c, h, w = maps.shape
    if layout == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout.startswith("sliced"):
        whole = maps.new_full((n + 1, c + 2, h + 3, w + 4), float("nan"))
        if layout.endswith("last"):
            whole = whole.contiguous(memory_format=torch.channels_last)
        part = whole[1:, 1 : 1 + c, 2 : 2 + h, 3 : 3 + w]
        return part.copy_(maps)
    if layout == "transposed":
        return maps.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        whole = maps.new_full((n, c, 2 * h, 2 * w), float("nan"))
        return whole[:, :, ::2, ::2].copy_(maps)
    if layout == "expanded":
        return maps[:1].expand(n, c, h, w) if n else maps
    return maps


def gradients(function, inputs, cotangents):
    """The function's list of results, and the gradients of the inputs that are tensors."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    results = function(*inputs)
    total = sum((r * c).sum() for r, c in zip(results, cotangents, strict=True))
    return results, torch.autograd.grad(total, inputs)


def check_pool(maps, size, dilation=1, dtype=None):
    reach = (size - 1) * dilation
    expected_shape = (*maps.shape[:2], maps.shape[2] - reach, maps.shape[3] - reach)
    cotangent = [numbers(expected_shape, maps.device, seed=9, dtype=maps.dtype)]
    actual, of_maps = gradients(lambda m: [ops.offset_max_pool(m, size, dilation)], [maps], cotangent)
    expected, expected_gradients = gradients(lambda m: [reference_pool(m, size, dilation)], [maps], cotangent)
    assert_matches(actual, expected, dtype or DTYPE)
    assert_matches(of_maps, expected_gradients, dtype or DTYPE)
    assert actual[0].dtype == of_maps[0].dtype == maps.dtype


def reference_pool(maps, size, dilation):
    if not maps.shape[0]:
        reach = (size - 1) * dilation
        return maps[:, :, reach:, reach:]
    return reference.offset_max_pool(maps, size, dilation)


def check_classifier(maps, weight, bias, size, relu=True, tap=None, dtype=None):
    """Values and all gradients of the op on a list of maps against the reference on each map."""
    reach = [size - 1 + (k - 1) * (tap or size) for k in weight.shape[2:]]
    shapes = [(m.shape[0], weight.shape[0], m.shape[2] - reach[0], m.shape[3] - reach[1]) for m in maps]
    cotangents = [numbers(s, weight.device, seed=i, dtype=weight.dtype) for i, s in enumerate(shapes)]
    tensors = [weight, *([] if bias is None else [bias]), *maps]

    def split(weight, *rest):
        return (rest, weight, None) if bias is None else (rest[1:], weight, rest[0])

    def op(*inputs):
        maps, weight, bias = split(*inputs)
        return ops.skip_classifier_scales(list(maps), weight, bias, size, relu, tap)

    def twin(*inputs):
        maps, weight, bias = split(*inputs)
        return [reference.skip_classifier(m, weight, bias, size, relu, tap) for m in maps]

    actual, actual_gradients = gradients(op, tensors, cotangents)
    expected, expected_gradients = gradients(twin, tensors, cotangents)
    assert_matches(actual, expected, dtype or DTYPE)
    assert_matches(actual_gradients, expected_gradients, dtype or DTYPE)


def parameters(out, channels, kernel, device="cpu", dtype=None):
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = numbers((out, channels, *sides), device, seed=1, dtype=dtype)
    return weight, numbers((out,), device, seed=2, dtype=dtype)


def scales(device, dtype=None):
    """Maps of several sizes, batches and layouts, an empty one among them."""
    shapes = [(1, 3, 9, 11), (2, 3, 6, 6), (0, 3, 8, 7), (1, 3, 20, 23), (3, 3, 6, 9)]
    layouts = ["channels last", "contiguous", "contiguous", "sliced", "transposed"]
    return [
        laid_out(numbers(shape, device, seed=i, dtype=dtype), layout)
        for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]
