"""Convolutions of small weights in compiled code: direct sums and minimal filtering, against eager PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit
from numba.core import caching
from op_checks import single

from bench.tolerance import assert_matches
from overfeat.ops import reference
from overfeat.ops.backends import eager, parallel, prepacked, simd, winograd, workspace
from overfeat.ops.backends.numba_compile import compiled, compiled_for_c

if simd.registers() is None or prepacked.supports("convolution", torch.device("cpu"), torch.float32):
    pytest.skip("this processor has no compiled convolutions", allow_module_level=True)

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def fresh():
    prepacked.clear_cache()
    yield
    prepacked.clear_cache()


@pytest.fixture(params=["direct", "filtered"])
def method(request, monkeypatch):
    """Either method, at any size of the maps; minimal filtering where it applies."""
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", 0.0 if request.param == "direct" else INF)
    return request.param


def twice(function, *arguments):
    """The second call's result: the first one only registers the weight."""
    function(*arguments)
    return function(*arguments)


def expected(maps, weight, bias, stride, pad, relu, dilation, pool=1):
    result = F.conv2d(maps.double(), weight.double(), None if bias is None else bias.double(), stride, pad, dilation)
    result = result.relu() if relu else result
    return F.max_pool2d(result, pool) if pool > 1 else result


SHAPES = [  # channels, outputs, kernel, stride, pad, dilation
    (3, 32, 5, 2, 0, 1), (32, 64, 3, 1, 0, 1), (16, 33, 3, 1, 1, 1), (16, 10, 1, 1, 0, 1), (32, 40, 2, 1, 0, 3),
    (48, 31, 3, 1, 2, 2), (16, 5, 2, 1, 0, 1), (5, 7, (1, 3), 1, 1, 2), (1, 1, 4, 3, 0, 1), (64, 8, 3, 2, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_convolution(method, shape, threads, monkeypatch):
    channels, outputs, kernel, stride, pad, dilation = shape
    k_y, k_x = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, bias = single(outputs, channels, k_y, k_x, seed=1), single(outputs, seed=2)
    for size, relu, some in (((2, 23, 31), True, bias), ((1, 8, 9), False, None), ((3, 11, 37), True, None)):
        maps = single(size[0], channels, *size[1:], seed=3)
        actual = twice(prepacked.convolution, maps, weight, some, stride, pad, relu, dilation)
        assert_matches(actual, expected(maps, weight, some, stride, pad, relu, dilation), torch.float32)


@pytest.mark.parametrize("pool", [2, 3, 4])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(3, 5, 2), (16, 3, 1), (32, 2, 1), (8, 1, 1)])
def test_pooling(method, pool, channels, kernel, stride):
    weight, bias = single(40, channels, kernel, kernel, seed=1), single(40, seed=2)
    for n, height, width in ((2, 26, 75), (1, 13, 13)):
        maps = single(n, channels, height, width, seed=3)
        maps[0, 0, height // 2, width // 2] = NAN
        actual = twice(prepacked.convolution_pool, maps, weight, bias, stride, 0, pool)
        assert_matches(actual, expected(maps, weight, bias, stride, 0, True, 1, pool), torch.float32)


def test_filtering_is_used_where_it_applies(method):
    """A result that differs in its last bits shows it; direct sums are equal whatever the size of the maps."""
    maps, weight = single(1, 32, 40, 40), single(32, 32, 3, 3, seed=1)
    whole = twice(prepacked.convolution, maps, weight, None, 1, 0, False, 1)
    part = prepacked.convolution(maps[:, :, 3:, 2:], weight, None, 1, 0, False, 1)
    assert torch.equal(whole[:, :, 3:, 2:], part) == (method == "direct")
    with winograd.without_winograd():
        assert torch.equal(prepacked.convolution(maps[:, :, 3:, 2:], weight, None, 1, 0, False, 1), part) == (
            method == "direct"
        )


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (2, 1), (2, 3), (1, 1)])
def test_non_finite_values_reach_the_outputs_that_see_them(method, value, kernel, dilation):
    maps, weight, bias = single(1, 16, 22, 25), single(20, 16, kernel, kernel, seed=1), single(20, seed=2)
    maps[0, 3, 10, 11] = value
    weight[0] = 0.0  # infinity times 0
    for relu in (False, True):
        actual = twice(prepacked.convolution, maps, weight, bias, 1, 0, relu, dilation)
        in_float32 = F.conv2d(maps, weight, bias, dilation=dilation)
        in_float32 = in_float32.relu() if relu else in_float32
        assert torch.equal(actual.isnan(), in_float32.isnan())
        assert torch.equal(actual.isinf(), in_float32.isinf())
        usual = in_float32.isfinite() & (in_float32.abs() < 1e6)
        assert_matches(actual[usual], in_float32[usual].double(), torch.float32)


@pytest.mark.parametrize("channels", [16, 1024])
def test_infinite_weights_with_padding_are_as_in_eager_pytorch(channels):
    maps, weight = single(1, channels, 5, 6).abs() + 1, single(32, channels, 3, 3, seed=1)
    weight[3, 5, 0, 0] = INF
    actual = twice(prepacked.convolution, maps, weight, None, 1, 1, False, 1)
    in_eager = eager.convolution(maps, weight, None, 1, 1, False, 1)  # PyTorch's own borders are NaN in some shapes
    torch.testing.assert_close(actual, in_eager, equal_nan=True, rtol=0, atol=0)
    assert actual[0, 3].isinf().any()


@pytest.mark.parametrize(("size", "tap"), [(1, 1), (2, 2), (3, 3), (3, 2)])
def test_skip_classifier(method, size, tap):
    maps = [single(2, 16, 17, 24), single(1, 16, 12, 9, seed=1)]
    maps[1][0, 5, 6, 4] = NAN
    weight, bias = single(24, 16, 2, 2, seed=2), single(24, seed=3)
    actual = twice(prepacked.skip_classifier_flat, maps, weight, bias, size, True, tap)
    twins = [reference.skip_classifier(m.double(), weight.double(), bias.double(), size, True, tap) for m in maps]
    assert_matches(actual, torch.cat([t.permute(0, 2, 3, 1).flatten(0, 2) for t in twins]), torch.float32)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_linear(count):
    flat, weight, bias = single(count, 80)[:, ::2], single(50, 40, 1, 1, seed=1), single(100, seed=2)[::2]
    flat[0, 3] = NAN
    actual = twice(prepacked.linear, flat, weight, bias, True)
    assert_matches(actual, F.linear(flat.double(), weight.double().flatten(1), bias.double()).relu(), torch.float32)


def test_other_memory_formats():
    weight, whole = single(20, 16, 3, 3, seed=1), single(1, 40, 30, 31)
    for maps in (whole[:, 3:19], whole.contiguous(memory_format=torch.channels_last)[:, 3:19, ::2], whole[:, :16].mT):
        actual = twice(prepacked.convolution, maps, weight.mT, None, 1, 0, True, 1)
        assert_matches(actual, expected(maps, weight.mT, None, 1, 0, True, 1), torch.float32)


WRONG = {
    "maps": {"maps": single(1, 16, 2, 9)},
    "channels": {"maps": single(1, 8, 9, 9)},
    "bias": {"bias": single(7)},
    "longer bias": {"bias": single(40)},
    "pad": {"pad": -1},
    "stride": {"stride": 0},
    "dilation": {"dilation": 0},
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_do_not_fit_are_eager_pytorchs_to_refuse(name):
    """Compiled code would read other memory."""
    weight, usual = single(20, 16, 3, 3), {"bias": single(20), "stride": 1, "pad": 0, "relu": True, "dilation": 1}
    usual["maps"] = single(1, 16, 9, 9)
    twice(lambda: prepacked.convolution(weight=weight, **usual))
    with pytest.raises(RuntimeError):
        prepacked.convolution(weight=weight, **{**usual, **WRONG[name]})


def test_features_that_do_not_fit_a_linear_layer_are_eager_pytorchs_to_refuse():
    flat, weight, bias = single(5, 40), single(50, 40, 1, 1, seed=1), single(50, seed=2)
    twice(prepacked.linear, flat, weight, bias, True)
    with pytest.raises(RuntimeError):
        prepacked.linear(flat[:, :30], weight, bias, True)
    with pytest.raises(RuntimeError):
        prepacked.linear(flat, weight, bias[:20], True)


def test_other_default_dtypes():
    maps, weight = single(1, 16, 9, 9), single(20, 16, 3, 3, seed=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        actual = twice(prepacked.convolution, maps, weight, None, 1, 0, True, 1)
    finally:
        torch.set_default_dtype(before)
    assert_matches(actual, expected(maps, weight, None, 1, 0, True, 1), torch.float32)


def test_without_openmp_threads_of_python_run_it(method, monkeypatch):
    monkeypatch.setattr(parallel, "_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    maps, weight = single(1, 16, 40, 40), single(20, 16, 3, 3, seed=1)
    actual = twice(prepacked.convolution, maps, weight, None, 1, 0, True, 1)
    assert_matches(actual, expected(maps, weight, None, 1, 0, True, 1), torch.float32)


def test_code_is_compiled_where_no_folder_can_be_written(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    parallel.run(compiled_for_c(lambda address: None), 0, 1)
    assert compiled(lambda x: x + 1)(1) == 2


def test_memory_is_used_again():
    workspace.clear()
    first = workspace.empty(1 << 20)
    address = first.data_ptr()
    second = workspace.empty(1 << 20)
    assert second.data_ptr() != address
    part = first[5:]
    del first
    third = workspace.empty(1 << 20)
    assert third.data_ptr() not in (address, second.data_ptr()), "a view is still there"
    del part
    assert workspace.empty(1 << 19, 2).data_ptr() == address
    workspace.clear()
    del second, third
    for _ in range(3):
        workspace.empty(1 << 20)
        workspace._give_back(np.empty(workspace.MAX_IDLE // 2 - 1, np.uint8))
        workspace._give_back(np.empty(workspace.MAX_IDLE // 2 + 1, np.uint8))
    assert [len(m) for m in workspace._idle] == [1 << 22, workspace.MAX_IDLE // 2 - 1], "the memory used last is kept"


@pytest.mark.parametrize("size", [simd.AVX512, simd.AVX2, simd.NEON, simd.Registers(4, 2, 3)])
def test_microkernels_of_other_processors(size):
    """LLVM splits vectors that are too long for this one."""
    kernel = simd.microkernel(size)

    @njit
    def call(maps, positions, taps, weight, bias, out, targets):
        kernel(maps, positions, taps, 3, 7, weight, bias, out, targets, 1)

    maps, weight = single(40, 9), single(3, 7, size.columns, seed=1)
    bias, out = single(size.columns, seed=2), torch.full((size.rows, size.columns + 1), NAN)
    rows, taps = 2 * torch.arange(size.rows), torch.tensor([0, 5, 2])
    order = torch.randperm(size.rows, generator=torch.Generator().manual_seed(0))
    tensors = maps, 36 * rows, 36 * taps, weight, bias, out, 4 * out.stride(0) * order
    call(*(t.data_ptr() for t in tensors))
    runs = maps[rows[:, None] + taps, :7].double()
    total = torch.einsum("rtc,tco->ro", runs, weight.double()) + bias
    assert_matches(out[order, :-1], total.relu(), torch.float32)
    assert out[:, -1].isnan().all()


@pytest.mark.parametrize("size", [simd.AVX512, simd.AVX2, simd.NEON])
def test_streaming_kernels_of_other_processors(size):
    kernel = simd.streaming_kernel(size)

    @njit
    def call(rows, pitch, weight, start, distance, out):
        kernel(rows, pitch, weight, 7, start, distance, out, 1)

    rows, weight, start = single(size.rows, 9), single(7, size.columns, seed=1), single(size.rows, size.columns, seed=2)
    rows[1, 3] = NAN
    expected = rows[:, :7].double() @ weight.double()
    for distance, first in ((0, start[:1]), (4 * size.columns, start)):
        out = torch.full((size.rows, size.columns), NAN)
        call(rows.data_ptr(), 4 * 9, weight.data_ptr(), start.data_ptr(), distance, out.data_ptr())
        assert_matches(out, (expected + first).relu(), torch.float32)
