"""What the tests of the kernels share: inputs, expected results, the check of gradients; on a GPU or interpreted."""

import os

import pytest
import torch
from op_checks import numbers

from bench.tolerance import assert_matches
from overfeat.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU; `make test` also runs these with TRITON_INTERPRET=1", allow_module_level=True)

from overfeat.kernels import skip_classifier, skip_classifier_backward  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SCALES = [(17, 17), (20, 23), (23, 29), (29, 35), (32, 38), (35, 44)]  # the accurate net's last maps
# (kernel, pooling, its stride): overlapping pools, pools with gaps, kernels of unequal sides
TAPS = [((k, k), size, tap) for size, tap, k in ((3, 2, 3), (2, 1, 3), (3, 2, 2), (2, 4, 2), (1, 3, 2), (3, 3, 2))]
TAPS += [((1, 3), 2, 2), ((3, 2), 3, 2)]


def windows(kernel, size, tap, dtype=torch.float32, channels=12):
    """Maps of different sizes and layouts, down to a single window."""
    height, width = (size + (k - 1) * tap for k in kernel)
    shapes = [(2, channels, height + 3, width + 1), (1, channels, height, width + 2), (1, channels, height, width)]
    return [made(shape, dtype, i, last=i == 0) for i, shape in enumerate(shapes)]


def made(shape, dtype=torch.float32, seed=0, last=False):
    maps = numbers(shape, DEVICE, seed, torch.float32).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last) if last else maps


def truth(maps, weight, bias, size, relu=True, tap=None):
    """The reference in float64, as flat features."""
    wide = weight.double(), None if bias is None else bias.double()
    results = [reference.skip_classifier(m.double(), *wide, size, relu, tap) for m in maps]
    return torch.cat([r.permute(0, 2, 3, 1).flatten(0, 2) for r in results])


def unequal(channels, dtype=torch.float32):
    """Maps of different sizes and layouts: a single window, several images, none."""
    shapes = [(1, channels, 9, 11), (2, channels, 6, 6), (0, channels, 8, 7), (3, channels, 6, 10)]
    return [made(shape, dtype, seed, last=seed % 2 == 0) for seed, shape in enumerate(shapes)]


def check_gradients(maps, weight, bias, size, relu=True, tap=None):
    dtype, taps = weight.dtype, tap or size
    output = skip_classifier.forward(maps, weight, bias, size, relu, taps)
    leaves = [t.double().requires_grad_() for t in (*maps, weight, bias)]
    *m, w, b = leaves
    expected = truth(m, w, b, size, relu, tap)
    assert_matches(output, expected, dtype)
    grad = made(output.shape, dtype, 7)
    # The ReLU's mask is of the kernels' own output, since rounding may move a value across 0.
    mask = (output > 0) if relu else torch.ones_like(output, dtype=torch.bool)
    before = truth(m, w, b, size, False, tap)
    expected_gradients = torch.autograd.grad(before, leaves, grad.double() * mask)
    gradients = skip_classifier_backward.backward(grad, maps, weight, output if relu else None, size, taps, True, True)
    assert [g.dtype for g in gradients] == [dtype] * len(gradients)
    assert_matches(gradients, expected_gradients, dtype)
    some = skip_classifier_backward.backward(grad, maps, weight, output if relu else None, size, taps, True, False)
    assert all(torch.equal(a, b) for a, b in zip(some, gradients, strict=False)), "two runs gave different bits"
    assert len(some) == len(maps)
