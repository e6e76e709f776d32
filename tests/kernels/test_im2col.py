"""im2col and col2im around GEMMs of the library: chunks of every size, and what they do to the rest of torch."""

from types import SimpleNamespace

import pytest
import torch
from kernel_checks import DEVICE, SCALES, TAPS, check_gradients, made, truth, unequal, windows

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.kernels import col2im, launch, library_gemm, skip_classifier, skip_classifier_backward


@pytest.fixture(autouse=True)
def im2col():
    with launch.override(variant="im2col"):
        yield


@pytest.mark.parametrize("memory", [library_gemm.MAX_BUFFER, 2500], ids=["whole", "chunked"])
@pytest.mark.parametrize(("channels", "outputs"), [(32, 32), (20, 33), (1, 1), (7, 50)])
def test_forward(monkeypatch, dtype, memory, channels, outputs):
    monkeypatch.setattr(library_gemm, "MAX_BUFFER", memory)
    maps, weight = unequal(channels, dtype), made((outputs, channels, 2, 2), dtype, 8)
    bias = made((outputs,), dtype, 9)
    for relu, some in ((True, bias), (False, None)):
        actual = skip_classifier.forward(maps, weight, some, 3, relu, 3)
        assert actual.dtype == dtype
        assert_matches(actual, truth(maps, weight, some, 3, relu), dtype)


@pytest.mark.parametrize(("kernel", "size", "tap"), TAPS)
def test_pools_whose_stride_is_not_their_size(dtype, kernel, size, tap):
    maps, bias = windows(kernel, size, tap, dtype), made((18,), dtype, 9)
    weight = made((18, 12, *kernel), dtype, 8)
    actual = skip_classifier.forward(maps, weight, bias, size, True, tap)
    assert_matches(actual, truth(maps, weight, bias, size, tap=tap), dtype)


def test_scales_of_the_accurate_net(monkeypatch):
    monkeypatch.setattr(library_gemm, "MAX_BUFFER", 150 * 25 * 6 * 4)
    maps = [made((1, 6, *size), seed=i, last=True) for i, size in enumerate(SCALES[:3])]
    weight, bias = made((8, 6, 5, 5), seed=8), made((8,), seed=9)
    actual = skip_classifier.forward(maps, weight, bias, 3, True, 3)
    with ops.backend("torch"):
        assert_matches(actual, ops.skip_classifier_flat(maps, weight, bias, 3), torch.float32)


def test_no_positions_and_no_outputs():
    for count, outputs in ((0, 4), (1, 0)):
        maps, weight = [made((count, 3, 8, 9))], made((outputs, 3, 2, 2), seed=8)
        result = skip_classifier.forward(maps, weight, None, 3, True, 3)
        assert result.shape == (count * 3 * 4, outputs)
        check_gradients(maps, weight, made((outputs,)), 3)


def test_nan_passes_and_minus_infinity_pools():
    maps = [torch.full((1, 3, 7, 8), -float("inf"), device=DEVICE), made((1, 3, 9, 9), seed=1)]
    maps[1][0, 1, 4, 5] = float("nan")
    weight = made((5, 3, 2, 2), seed=8).abs()
    for relu in (False, True):
        actual = skip_classifier.forward(maps, weight, None, 3, relu, 3)
        assert_matches(actual, truth(maps, weight, None, 3, relu), torch.float32)


@pytest.mark.parametrize("memory", [2500, 160])
def test_gradients_in_chunks(monkeypatch, dtype, memory):
    """Chunks of a few rows, and of single taps and channels."""
    monkeypatch.setattr(library_gemm, "MAX_BUFFER", memory)
    shapes = [(2, 20, 9, 8), (0, 20, 8, 7), (1, 20, 7, 11)] if memory > 1000 else [(2, 3, 6, 7), (1, 3, 8, 6)]
    maps = [made(shape, dtype, seed, last=seed == 0) for seed, shape in enumerate(shapes)]
    channels = maps[0].shape[1]
    check_gradients(maps, made((9, channels, 2, 3), dtype, 8), made((9,), dtype, 9), 2)


@pytest.mark.parametrize("variant", ["direct", "im2col"])
@pytest.mark.parametrize("memory", [library_gemm.MAX_BUFFER, 500])
def test_gradients_that_are_not_finite(monkeypatch, memory, variant):
    """They reach the windows they belong to, and nothing else."""
    monkeypatch.setattr(library_gemm, "MAX_BUFFER", memory)
    maps, weight = [made((1, 3, 9, 10)), made((1, 3, 6, 7), seed=1)], made((5, 3, 2, 2), seed=8)
    leaves = [t.double().requires_grad_() for t in (*maps, weight)]
    before = truth(leaves[:2], leaves[2], None, 3, relu=False)
    grad = made(before.shape, seed=7)
    grad[3, 1], grad[-1, 2], grad[-2, 4] = float("nan"), float("inf"), -float("inf")
    expected = torch.autograd.grad(before, leaves, grad.double())
    with launch.override(variant=variant):
        actual = skip_classifier_backward.backward(grad, maps, weight, None, 3, 3, True, True)
    assert_matches(actual[:3], expected, torch.float32)
    assert actual[0].isfinite().any() and not actual[0].isfinite().all()


@pytest.mark.parametrize("step", [1, 4, 7, 100])
def test_the_input_positions_of_a_chunk(step):
    """Every position lies in the chunks from its first output to its last, and each chunk is a range of positions."""
    problem = SimpleNamespace(pooled=((1, 5, 7), (0, 4, 4), (2, 4, 3), (1, 9, 4)), reach=(3, 2))
    outputs, start = [], 0
    for n, height, width in problem.pooled:
        rows, columns = height - 3, width - 2
        for image in range(n):
            for y in range(height):
                used = range(max(y - 3, 0) * columns, (min(y, rows - 1) + 1) * columns)
                outputs += [
                    (start + image * rows * columns + used[0], start + image * rows * columns + used[-1])
                ] * width
        start += n * rows * columns
    for first in range(0, start, step):
        last = min(first + step, start)
        expected = [i for i, (low, high) in enumerate(outputs) if low < last and high >= first]
        assert list(range(*col2im.input_range(problem, first, last))) == expected


@pytest.mark.parametrize(
    ("total", "limit", "multiple"), [(1575, 5242, 128), (12600, 5242, 128), (7, 3, 128), (5, 0, 1)]
)
def test_chunks(total, limit, multiple):
    chunks = library_gemm.chunks(total, limit, multiple)
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(total))
    assert max(stop - start for start, stop in chunks) <= max(limit, 1)
    assert limit < multiple or all(start % multiple == 0 for start, _ in chunks)


def test_settings_of_the_library_are_restored():
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction
    try:
        for value in (True, False):
            settings.allow_fp16_reduced_precision_reduction = value
            with library_gemm.float32_sums():
                assert not settings.allow_fp16_reduced_precision_reduction
                assert not settings.allow_bf16_reduced_precision_reduction
            assert settings.allow_fp16_reduced_precision_reduction == value
    finally:
        settings.allow_fp16_reduced_precision_reduction = before
