"""Convolutions of the feature layers by minimal filtering, and the choice of it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DEVICE, INTERPRETED, made

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.kernels import convolution, launch, minimal_filtering
from overfeat.kernels.problem import Problem
from overfeat.ops.backends import triton

# The fifth layer of the accurate net on eight images of the largest scale; nothing is computed.
LAYER = Problem(((8, 37, 46),), 1024, 1024, (3, 3), 1, 1, torch.bfloat16, torch.device("meta"))


@pytest.fixture(autouse=True)
def no_weights():
    yield
    minimal_filtering.clear_cache()


@pytest.mark.parametrize(("pad", "dilation", "last"), [(1, 1, True), (0, 2, False)])
def test_convolution(pad, dilation, last):
    maps, weight = made((2, 5, 7, 8), torch.bfloat16, last=last), made((6, 5, 3, 3), torch.bfloat16, 8)
    bias = made((6,), torch.bfloat16, 9)
    with launch.override(variant="filter4"):
        actual = convolution.forward(maps, weight, bias, pad, True, dilation)
    expected = F.conv2d(maps.double(), weight.double(), bias.double(), 1, pad, dilation).relu()
    assert actual.dtype == torch.bfloat16 and actual.is_contiguous(memory_format=torch.channels_last)
    assert_matches(actual, expected, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_stays_where_it_is():
    maps, weight = made((1, 5, 9, 9)), made((6, 5, 3, 3), seed=8)
    maps[0, 2, 4, 4] = math.nan
    with launch.override(variant="filter3"):
        actual = convolution.forward(maps, weight, None, 1, False, 1)
    assert_matches(actual, F.conv2d(maps.double(), weight.double(), None, 1, 1), torch.float32)


def test_where_it_pays():
    with launch.on_chip((9, 0), 132):
        plan = convolution.choose(LAYER)
        assert plan is not None and plan.variant in ("filter3", "filter4")
        few = {"shapes": ((1, 17, 17),)}, {"channels": 3}, {"kernel": (1, 1)}, {"kernel": (2, 3)}, {"kernel": (40, 40)}
        for change in (*few, {"dtype": torch.float16}, {"shapes": ((0, 37, 46),)}):
            assert convolution.choose(replace(LAYER, **change)) is None
        with launch.override(variant="direct"):
            assert convolution.choose(LAYER) is None
        with launch.override(variant="filter4"):
            assert convolution.choose(replace(LAYER, **few[2])) is None
            assert convolution.choose(replace(LAYER, **few[0])) is not None


@pytest.mark.parametrize("stride", [1, 2])
def test_the_backend_runs_the_rest_in_torch(stride):
    """A stride, and a weight at its first call."""
    maps, weight = made((2, 5, 7, 8)), made((6, 5, 3, 3), seed=8)
    with torch.no_grad():
        actual = triton.convolution(maps, weight, None, stride, 1, True, 1)
    assert torch.equal(actual, F.conv2d(maps, weight, None, stride, 1).relu())


@pytest.mark.skipif(INTERPRETED, reason="the backend is for GPUs")
def test_the_backend_is_chosen_in_evaluation():
    maps, weight = made((1, 64, 35, 44), torch.bfloat16, last=True), made((64, 64, 3, 3), torch.bfloat16, 8)
    expected = F.conv2d(maps.double(), weight.double(), None, 1, 1).relu()
    for _ in range(3):
        with torch.no_grad(), launch.override(variant="filter4"):
            assert_matches(ops.convolution(maps, weight, None, 1, 1), expected, torch.bfloat16)
    assert minimal_filtering._seen[weight].transformed


def test_what_the_backend_supports():
    gpu = torch.device("cuda")
    assert "bfloat16" in triton.supports_filtering("convolution", gpu, torch.float16)
    assert "GPUs" in triton.supports_filtering("convolution", torch.device("cpu"), torch.bfloat16)
    assert DEVICE.type == "cpu" or triton.supports_filtering("convolution", gpu, torch.bfloat16) is None
