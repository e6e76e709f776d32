"""The Triton kernels in every variant and launch configuration, on a GPU or under Triton's interpreter."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_checks import numbers

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU; `make test` also runs these with TRITON_INTERPRET=1", allow_module_level=True)

from overfeat.kernels import box_merge, class_scores, launch, offset_pool, skip_classifier  # noqa: E402
from overfeat.kernels.launch import MergeTile, Tile  # noqa: E402
from overfeat.kernels.maps import MAX_MAPS  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SCALES = [(17, 17), (20, 23), (23, 29), (29, 35), (32, 38), (35, 44)]  # the accurate net's last maps


@pytest.fixture(autouse=True)
def poisoned():
    """Unwritten memory holds NaN: torch fills it in this mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    if INTERPRETED and request.param == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 GEMMs wrongly by design: for a GPU")
    return request.param


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


# GEMMs


@pytest.mark.parametrize("pool", ["separate", "fused"])
@pytest.mark.parametrize("split_k", [1, 2, 7])
@pytest.mark.parametrize(("channels", "outputs"), [(32, 32), (20, 33), (1, 1), (7, 50)])
def test_forward_in_every_variant(dtype, pool, split_k, channels, outputs):
    maps, weight = unequal(channels, dtype), made((outputs, channels, 2, 2), dtype, 8)
    bias = made((outputs,), dtype, 9)
    with launch.override(pool=pool, split_k=split_k):
        for relu, some in ((True, bias), (False, None)):
            actual = skip_classifier.forward(maps, weight, some, 3, relu, 3)
            assert actual.dtype == dtype
            assert_matches(actual, truth(maps, weight, some, 3, relu), dtype)


# (kernel, pooling, its stride): overlapping pools, pools with gaps, kernels of unequal sides
TAPS = [((k, k), size, tap) for size, tap, k in ((3, 2, 3), (2, 1, 3), (3, 2, 2), (2, 4, 2), (1, 3, 2), (3, 3, 2))]
TAPS += [((1, 3), 2, 2), ((3, 2), 3, 2)]


def windows(kernel, size, tap, dtype=torch.float32, channels=12):
    """Maps of different sizes and layouts, down to a single window."""
    height, width = (size + (k - 1) * tap for k in kernel)
    shapes = [(2, channels, height + 3, width + 1), (1, channels, height, width + 2), (1, channels, height, width)]
    return [made(shape, dtype, i, last=i == 0) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("pool", ["separate", "fused"])
@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize(("kernel", "size", "tap"), TAPS)
def test_pools_whose_stride_is_not_their_size(dtype, pool, split_k, kernel, size, tap):
    maps, bias = windows(kernel, size, tap, dtype), made((18,), dtype, 9)
    weight = made((18, 12, *kernel), dtype, 8)
    with launch.override(pool=pool, split_k=split_k):
        actual = skip_classifier.forward(maps, weight, bias, size, True, tap)
    assert_matches(actual, truth(maps, weight, bias, size, tap=tap), dtype)


@pytest.mark.parametrize(
    "tile", [Tile(16, 16, 16, 1, 1, 1), Tile(32, 64, 16, 4, 2, 3), Tile(64, 16, 32, 2, 3)], ids=str
)
def test_every_gemm_with_any_tile(dtype, tile):
    maps, weight = unequal(20, dtype), made((33, 20, 2, 2), dtype, 8)
    with launch.override(tile=tile):
        check_gradients(maps, weight, made((33,), dtype, 9), 3)


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
    gradients = skip_classifier.backward(grad, maps, weight, output if relu else None, size, taps, True, True)
    assert [g.dtype for g in gradients] == [dtype] * len(gradients)
    assert_matches(gradients, expected_gradients, dtype)
    some = skip_classifier.backward(grad, maps, weight, output if relu else None, size, taps, True, False)
    assert all(torch.equal(a, b) for a, b in zip(some, gradients, strict=False)), "two runs gave different bits"
    assert len(some) == len(maps)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (2, 1), (2, 2), (3, 3), (2, 4)])
def test_gradients(dtype, kernel, size, relu):
    shapes = [(2, 12, kernel * size + 3, kernel * size + 1), (1, 12, kernel * size, kernel * size + 2)]
    maps = [made(shape, dtype, i, last=i == 0) for i, shape in enumerate(shapes)]
    check_gradients(maps, made((18, 12, kernel, kernel), dtype, 8), made((18,), dtype, 9), size, relu)


@pytest.mark.parametrize(("kernel", "size", "tap"), TAPS)
def test_gradients_of_pools_whose_stride_is_not_their_size(dtype, kernel, size, tap):
    maps, weight = windows(kernel, size, tap, dtype), made((18, 12, *kernel), dtype, 8)
    check_gradients(maps, weight, made((18,), dtype, 9), size, tap=tap)


def test_a_list_of_many_maps():
    """More maps than a launch has pointers."""
    maps = [made((1, 3, 7, 6 + i % 3), seed=i) for i in range(MAX_MAPS + 2)]
    weight, bias = made((4, 3, 2, 2), seed=8), made((4,), seed=9)
    for pool in ("separate", "fused"):
        with launch.override(pool=pool):
            actual = skip_classifier.forward(maps, weight, bias, 3, True, 2)
        assert_matches(actual, truth(maps, weight, bias, 3, tap=2), torch.float32)


@pytest.mark.parametrize("pool", ["separate", "fused"])
def test_the_six_scales_of_the_accurate_net(pool):
    maps = [made((1, 6, *size), seed=i, last=True) for i, size in enumerate(SCALES)]
    weight, bias = made((8, 6, 5, 5), seed=8), made((8,), seed=9)
    with launch.override(pool=pool), ops.backend("torch"):
        actual = skip_classifier.forward(maps, weight, bias, 3, True, 3)
        assert actual.shape[0] == 9 + 54 + 135 + 315 + 432 + 630
        assert_matches(actual, ops.skip_classifier_flat(maps, weight, bias, 3), torch.float32)


def test_nan_passes_and_minus_infinity_pools():
    maps = [torch.full((1, 3, 7, 8), -float("inf"), device=DEVICE), made((1, 3, 9, 9), seed=1)]
    maps[1][0, 1, 4, 5] = float("nan")
    weight = made((5, 3, 2, 2), seed=8).abs()
    for pool in ("separate", "fused"):
        with launch.override(pool=pool):
            actual = skip_classifier.forward(maps, weight, None, 3, False, 3)
        assert_matches(actual, truth(maps, weight, None, 3, False), torch.float32)


def test_tables_are_cached_per_shape():
    """The same list of shapes at other addresses, and other shapes at the same addresses."""
    weight = made((4, 3, 2, 2), seed=8)
    for seed in range(3):
        for shape in ((1, 3, 7, 9), (1, 3, 9, 7)):
            maps = [made(shape, seed=seed), made((1, 3, 6, 6), seed=seed + 5)]
            assert_matches(
                skip_classifier.forward(maps, weight, None, 3, True, 3), truth(maps, weight, None, 3), torch.float32
            )


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


# Pooling


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


# Class scores


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_class_scores(dtype, classes):
    counts = [1, 40, 16, 3]
    scores = made((60, classes + 3), dtype)[:, :classes] * 5
    actual = class_scores.forward(scores, counts)
    assert actual.dtype == torch.float32
    assert_matches(actual, reference.class_scores(scores, counts), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_class_scores_of_non_finite_logits(value):
    scores = made((20, 7))
    scores[3, 2] = value
    scores[18] = value
    assert_matches(class_scores.forward(scores, [10, 5, 5]), reference.class_scores(scores, [10, 5, 5]), torch.float32)


# Launching


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("m", [1, 9, 54, 1575, 25200])
def test_plans_fill_the_chip(capability, dtype, m):
    device = torch.device("meta")
    with launch.on_chip(capability, multiprocessors=132):
        plan = launch.choose("forward", dtype, device, m=m, n=4096, taps=25, channels=1024, size=3)
        tiles = -(-m // plan.tile.m) * (4096 // plan.tile.n)
        assert 1 <= plan.num_programs <= 132
        assert plan.num_programs == min(132, tiles * plan.split_k)
        assert plan.even_k and 1 <= plan.split_k <= launch.MAX_SPLIT_K
        idle = [-(tiles * split_k) % 132 / -(-tiles * split_k // 132) for split_k in (1, plan.split_k)]
        assert plan.split_k == 1 or idle[1] < idle[0], "split-K is for chips that are not full"
        uneven = launch.choose("forward", dtype, device, m=m, n=4096, taps=25, channels=1001, size=3)
        assert not uneven.even_k


def test_maps_at_odd_addresses():
    """A map that is not aligned to the 16 bytes of a load is copied first."""
    memory = made((1 + 64 * 9 * 9,), torch.float16)
    maps = memory[1:].view(1, 9, 9, 64).permute(0, 3, 1, 2)
    assert maps.is_contiguous(memory_format=torch.channels_last) and maps.data_ptr() % 16
    weight = made((16, 64, 2, 2), torch.float16, 8)
    for pool in ("separate", "fused"):
        for size in (1, 3):
            with launch.override(pool=pool):
                actual = skip_classifier.forward([maps], weight, None, size, True, size)
            assert_matches(actual, truth([maps], weight, None, size), torch.float16)
    assert skip_classifier._aligned(maps).data_ptr() % 16 == 0


def test_more_shapes_than_the_cache_holds(monkeypatch):
    """A table that was evicted is made again."""
    import overfeat.kernels.maps as tables

    monkeypatch.setattr(tables, "MAX_TABLES", 2)
    tables.output_positions.tables.clear()
    weight = made((4, 3, 2, 2), seed=8)
    expected = {}
    for _ in range(2):
        for width in range(6, 12):
            maps = made((1, 3, 7, width))
            actual = skip_classifier.forward([maps], weight, None, 3, True, 3)
            assert torch.equal(actual, expected.setdefault(width, actual))
            assert_matches(actual, truth([maps], weight, None, 3), torch.float32)
    assert len(tables.output_positions.tables) <= 2


def _plan_float32(device):
    return launch.choose("forward", torch.float32, device, m=100, n=64, taps=4, channels=64, size=3)


def test_overrides_are_of_a_thread():
    """Another thread launches by the tables; so does the code after the block."""
    with launch.override(split_k=5, tile=Tile(16, 16, 16, 1, 1)), ThreadPoolExecutor(1) as pool:
        assert launch.active_override() == launch.Override(tile=Tile(16, 16, 16, 1, 1), split_k=5)
        assert pool.submit(launch.active_override).result() == launch.Override()
        with launch.override(pool="fused"):
            assert launch.active_override() == launch.Override(pool="fused")
        assert _plan_float32(torch.device("cpu")).split_k == 5
    assert launch.active_override() == launch.Override()


def test_float32_follows_the_matmul_precision():
    device, before = torch.device("meta"), torch.get_float32_matmul_precision()
    try:
        for setting, precision in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(setting)
            with launch.on_chip((9, 0), 132):
                assert _plan_float32(device).precision == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(INTERPRETED, reason="streams are a GPU's")
def test_concurrent_streams():
    weight, bias = made((64, 64, 3, 3), seed=8), made((64,), seed=9)
    maps = [[made((2, 64, 30 + i, 33), seed=i, last=True)] for i in range(4)]
    expected = [skip_classifier.forward(m, weight, bias, 3, True, 3) for m in maps]
    streams = [torch.cuda.Stream() for _ in maps]
    torch.cuda.synchronize()
    actual = []
    for m, stream in zip(maps, streams, strict=True):
        with torch.cuda.stream(stream):
            actual.append([skip_classifier.forward(m, weight, bias, 3, True, 3) for _ in range(5)])
    torch.cuda.synchronize()
    for results, one in zip(actual, expected, strict=True):
        assert all(torch.equal(r, one) for r in results)


@pytest.mark.skipif(INTERPRETED, reason="graphs are a GPU's")
def test_cuda_graph():
    weight, bias = made((64, 64, 3, 3), seed=8, last=True), made((64,), seed=9)
    maps = [made((1, 64, *size), seed=i, last=True) for i, size in enumerate(SCALES)]
    ops.skip_classifier_flat(maps, weight, bias, 3)  # compiles the kernels and caches the tables
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = ops.skip_classifier_flat(maps, weight, bias, 3)
    for seed in (20, 30):
        for i, m in enumerate(maps):
            m.copy_(made(m.shape, seed=seed + i))
        graph.replay()
        assert torch.equal(result, ops.skip_classifier_flat(maps, weight, bias, 3))


# Box merging


@pytest.mark.parametrize(
    "tiles",
    [
        (MergeTile(4, 4, 1), MergeTile(16, 16, 1), MergeTile(launch.ANY, 64, 2)),
        (MergeTile(launch.ANY, 16, 1, tiled=True),),
        (MergeTile(8, 8, 1), MergeTile(launch.ANY, 4, 1, tiled=True)),
    ],
    ids=["in registers", "tiled", "both"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merging_in_every_variant(monkeypatch, tiles, dtype):
    """Groups of one box, of a tile, of one more, and of many, some of them tied, bit for bit."""
    monkeypatch.setattr(box_merge, "MERGE_TILES", {dtype: tiles})
    lengths = [1, 4, 5, 16, 17, 9, 1]
    corner = (numbers((sum(lengths), 2), DEVICE, 0, torch.float32) * 4).round().to(dtype)
    side = (numbers((sum(lengths), 2), DEVICE, 1, torch.float32).abs() * 6).round().to(dtype)
    boxes, scores = torch.cat([corner, corner + side], dim=1), torch.rand(sum(lengths), dtype=dtype, device=DEVICE)
    for match, threshold, average in (("normalised", 1.4, "pairwise"), ("sum", 12, "counts"), ("centres", 2, "counts")):
        rule = {"match_threshold": threshold, "match_metric": match, "box_average": average, "min_iou": 0.05}
        actual, expected = (f(boxes, scores, lengths, **rule) for f in (box_merge.merge, reference.merge_boxes))
        assert torch.equal(actual[3], expected[3]) and torch.equal(actual[4], expected[4])
        left = expected[3] > 0
        assert all(torch.equal(a[left], b[left]) for a, b in zip(actual[:3], expected[:3], strict=True))
        assert len(lengths) < left.sum() < 0.9 * sum(lengths)
