"""The first fully connected layer by minimal filtering: as the reference within the tolerance of bfloat16."""

import gc
import math
from dataclasses import replace

import pytest
import torch
from kernel_checks import DEVICE, INTERPRETED, made, truth

from bench.tolerance import assert_matches
from overfeat.kernels import launch, minimal_filtering, skip_classifier
from overfeat.kernels.minimal_filtering import balanced_transforms, filter_tiles, transform_weight
from overfeat.kernels.problem import Problem


@pytest.fixture(autouse=True)
def no_weights():
    yield
    minimal_filtering.clear_cache()


@pytest.fixture
def never_direct(monkeypatch):
    """Results that the direct kernel would write stay as they are."""
    monkeypatch.setattr(minimal_filtering, "_direct_where", lambda *_: None)


def few(channels=5):
    """Maps of two sizes: two images, and a single window."""
    return [made((2, channels, 6, 5), last=True), made((1, channels, 3, 3), seed=1)]


def filtered(maps, weight, bias, size, relu=True, tap=None, variant="filter3"):
    with launch.override(variant=variant):
        return skip_classifier.forward(maps, weight, bias, size, relu, tap or size)


F16, BF16 = torch.float16, torch.bfloat16  # the interpreter's GEMMs are of float16: bfloat16 is right here
CASES = [("filter3", 3, 3, 2, BF16), ("filter3", 5, 2, 3, BF16), ("filter3", 6, 1, 1, F16)]
CASES += [("filter4", 3, 1, 3, F16), ("filter4", 4, 2, 1, BF16), ("filter4", 5, 3, 3, BF16)]


@pytest.mark.parametrize(("variant", "k", "size", "tap", "dtype"), CASES)
def test_every_kernel(never_direct, variant, k, size, tap, dtype):
    """Several tiles along each axis, the last ones overhanging, phases of unequal lengths, one window, no image."""
    side = size + (k - 1) * tap
    shapes = [(2, 9, side + 1, side + 4 * tap), (0, 9, side, side), (1, 9, side, side)]
    maps = [made(shape, dtype, i, last=i == 0) for i, shape in enumerate(shapes)]
    weight, bias = made((10, 9, k, k), dtype, 8), made((10,), dtype, 9)
    actual = filtered(maps, weight, bias, size, True, tap, variant)
    assert actual.dtype == dtype
    assert_matches(actual, truth(maps, weight, bias, size, tap=tap), torch.bfloat16)


@pytest.mark.parametrize(("variant", "channels", "outputs"), [("filter4", 1, 1), ("filter3", 131, 260)])
def test_odd_widths(never_direct, variant, channels, outputs):
    """More channels and outputs than a block, no bias, no ReLU, two runs with the same bits."""
    maps, weight = [made((1, channels, 6, 7))], made((outputs, channels, 3, 3), seed=8)
    actual = filtered(maps, weight, None, 1, False, 2, variant)
    assert_matches(actual, truth(maps, weight, None, 1, False, 2), torch.bfloat16)
    assert torch.equal(actual, filtered(maps, weight, None, 1, False, 2, variant))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["maps", "weight"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_what_is_not_finite_runs_the_direct_kernel(value, where):
    maps, weight, bias = few(), made((6, 5, 3, 3), seed=8), made((6,), seed=9)
    (maps[0] if where == "maps" else weight)[1, 2, 2, 2] = value
    actual = filtered(maps, weight, bias, 1)
    assert_matches(actual, truth(maps, weight, bias, 1), torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_what_pooling_hides_is_no_obstacle(never_direct):
    maps, weight = [torch.full((1, 5, 5, 6), -math.inf, device=DEVICE)], made((6, 5, 3, 3), seed=8)
    maps[0][:, :, ::2, ::2] = made((1, 5, 3, 3))
    assert_matches(filtered(maps, weight, None, 2, tap=1), truth(maps, weight, None, 2, tap=1), torch.bfloat16)


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1e18, 1e30])
def test_large_and_small_values(never_direct, scale):
    """Nothing overflows in float16: not the largest maps, and not the sums where all values have one sign."""
    maps, weight = [made((1, 7, 8, 8)).relu()], made((6, 7, 5, 5), seed=8)
    expected = truth(maps, weight, None, 1, False)
    for factor in (1.0, 1e-4):
        actual = filtered([m * scale for m in maps], weight * factor, None, 1, False, variant="filter4")
        assert_matches(actual.double() / scale / factor, expected, torch.bfloat16)
    ones = torch.ones(1, 512, 7, 7, device=DEVICE)
    actual = filtered([ones * scale], torch.ones(2, 512, 3, 3, device=DEVICE), None, 1, variant="filter4")
    assert_matches(actual.double() / scale, torch.full_like(actual, 512 * 9).double(), torch.bfloat16)


def test_outliers(never_direct):
    """A few values 1,000 times as large as the others."""
    maps, weight = [made((1, 40, 9, 10)).abs()], made((20, 40, 3, 3), seed=8)
    maps[0][0, ::7, ::3, 5] *= 1000
    assert_matches(filtered(maps, weight, None, 1), truth(maps, weight, None, 1), torch.bfloat16)


def test_chunks(monkeypatch):
    """The same bits, however many tiles fit the memory."""
    maps, weight, bias = few(), made((6, 5, 3, 3), seed=8), made((6,), seed=9)
    expected = filtered(maps, weight, bias, 1)
    for most in (1, 2 * 25 * 11 * 2):
        monkeypatch.setattr(minimal_filtering, "MAX_BYTES", most)
        assert torch.equal(filtered(maps, weight, bias, 1), expected)


def test_a_weight_is_transformed_at_its_second_call(monkeypatch):
    made_for = []
    monkeypatch.setattr(
        minimal_filtering, "transform_weight", lambda w, m: made_for.append(w) or transform_weight(w, m)
    )
    plan = launch.choose("forward", Problem.of(few(), made((6, 5, 3, 3)), 1, 1))
    plan = replace(plan, variant="filter3")
    weight = made((6, 5, 3, 3), seed=8)
    for _ in range(3):  # as in training
        assert not minimal_filtering.is_ready(weight, plan)
        weight.mul_(2)
    assert not minimal_filtering.is_ready(weight, plan)
    assert minimal_filtering.is_ready(weight, plan) and not made_for
    maps = few()
    for variant, count in (("filter3", 1), ("filter3", 1), ("filter4", 2)):
        assert_matches(filtered(maps, weight, None, 1, variant=variant), truth(maps, weight, None, 1), torch.bfloat16)
        assert len(made_for) == count
    weight.neg_()
    assert_matches(filtered(maps, weight, None, 1), truth(maps, weight, None, 1), torch.bfloat16)
    assert len(made_for) == 3
    made_for.clear()
    del weight
    gc.collect()
    assert not minimal_filtering._seen


@pytest.mark.parametrize("last", [False, True])
def test_a_weight_that_torch_does_not_see_change(last):
    """Changes of an output or input channel run the direct kernel."""
    maps, weight = few(), made((6, 5, 3, 3), seed=8, last=last)
    filtered(maps, weight, None, 1)
    version = weight._version
    for channel in (weight.data[3], weight.data[:, 2]):
        channel.add_(1)
        assert weight._version == version
        assert_matches(filtered(maps, weight, None, 1), truth(maps, weight, None, 1), torch.float32)


def test_weights_without_a_version():
    """Inference tensors run the direct kernel."""
    maps = few()
    with torch.inference_mode():
        weight = made((6, 5, 3, 3), seed=8)
        actual = filtered(maps, weight, None, 1)
    assert_matches(actual, truth(maps, weight.clone(), None, 1), torch.float32)


@pytest.mark.parametrize(("k", "m"), [(3, 3), (4, 3), (5, 3), (6, 3), (3, 4), (4, 4), (5, 4)])
def test_transforms(k, m):
    """In float64 they give the convolution, and nothing in the kernels' matrices exceeds float16."""
    of_outputs, of_weights, of_maps = balanced_transforms(k, m)
    maps, weight = (torch.randn(n, n, dtype=torch.float64) for n in (m + k - 1, k))
    inner = (of_weights @ weight @ of_weights.T) * (of_maps @ maps @ of_maps.T)
    expected = torch.nn.functional.conv2d(maps[None, None], weight[None, None])[0, 0]
    assert_matches(of_outputs @ inner @ of_outputs.T, expected, torch.float64)
    matrices = minimal_filtering._matrices(k, m, torch.device("cpu"))
    for matrix, transform in zip(matrices, (of_maps, of_outputs), strict=True):
        rows, columns = (n**2 for n in transform.shape)
        total = matrix.double().sum(dim=0)[:rows, :columns]
        assert (total - torch.kron(transform, transform)).abs().max() < 1e-6 * total.abs().max()


def test_tiles_cover_every_output_once():
    shapes, k, m, tap = ((2, 9, 13), (0, 7, 7), (1, 7, 8)), 3, 4, 3
    tiles = filter_tiles(shapes, k, m, tap, torch.device("cpu"))
    covered = [
        (output + y * tap * pitch + x * tap)
        for output, pitch, rows, columns in zip(*(t.tolist() for t in tiles[2:]), strict=True)
        for y in range(rows)
        for x in range(columns)
    ]
    assert sorted(covered) == list(range(2 * 3 * 7 + 2))


@pytest.mark.skipif(INTERPRETED, reason="graphs are a GPU's")
def test_cuda_graph():
    weight, maps = made((64, 64, 5, 5), seed=8, last=True), [made((1, 64, 35, 44), last=True)]
    filtered(maps, weight, None, 3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = filtered(maps, weight, None, 3)
    for value in (1.0, math.nan):
        maps[0].copy_(made(maps[0].shape, seed=20))
        maps[0][0, 0, 20, 20] = value
        graph.replay()
        assert_matches(result, truth(maps, weight, None, 3), torch.bfloat16)
