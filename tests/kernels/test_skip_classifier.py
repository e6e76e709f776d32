"""The forward pass of the first fully connected layer in every variant and launch configuration."""

import pytest
import torch
from kernel_checks import DEVICE, SCALES, TAPS, made, truth, unequal, windows

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.kernels import direct, launch, skip_classifier
from overfeat.kernels.maps import MAX_MAPS
from overfeat.kernels.problem import Problem


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


@pytest.mark.parametrize("pool", ["separate", "fused"])
@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize(("kernel", "size", "tap"), TAPS)
def test_pools_whose_stride_is_not_their_size(dtype, pool, split_k, kernel, size, tap):
    maps, bias = windows(kernel, size, tap, dtype), made((18,), dtype, 9)
    weight = made((18, 12, *kernel), dtype, 8)
    with launch.override(pool=pool, split_k=split_k):
        actual = skip_classifier.forward(maps, weight, bias, size, True, tap)
    assert_matches(actual, truth(maps, weight, bias, size, tap=tap), dtype)


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


@pytest.mark.parametrize("split_k", [1, 3])
def test_a_guard_on_the_device_decides_whether_the_output_is_written(split_k):
    maps, weight, bias = unequal(20), made((33, 20, 2, 2), seed=8), made((33,), seed=9)
    problem = Problem.of(maps, weight, 3, 3)
    with launch.override(split_k=split_k):
        plan = launch.choose("forward", problem)
    expected = direct.forward(maps, weight, bias, problem, plan, True)
    output = torch.full_like(expected, 7.0)
    for flag, content in ((0, output.clone()), (1, expected)):
        guard = torch.tensor([flag], dtype=torch.int32, device=DEVICE)
        written = direct.forward(maps, weight, bias, problem, plan, True, guard=guard, output=output)
        assert written is output
        assert torch.equal(output, content)


@pytest.mark.parametrize("variant", ["direct", "descriptor"])
def test_only_tiles_of_the_last_wave_are_shared(dtype, variant):
    maps, weight, bias = unequal(32, dtype), made((50, 32, 2, 2), dtype, 8), made((50,), dtype, 9)
    problem, tile = Problem.of(maps, weight, 3, 3), launch.Tile(16, 16, 16, warps=1, stages=1, group_m=2)
    expected, tiles = truth(maps, weight, bias, 3), 4 * -(-problem.positions // 16)
    for num_programs, split_k, shared in (
        (3, 3, tiles % 3),
        (5, 2, tiles % 5),
        (tiles, 4, 0),
        (4, 3, 0),
        (100, 2, tiles),
    ):
        with launch.override(tile=tile, split_k=split_k, num_programs=num_programs, variant=variant):
            assert direct.whole_and_split(problem, launch.choose("forward", problem)) == (tiles - shared, shared)
            assert_matches(skip_classifier.forward(maps, weight, bias, 3, True, 3), expected, dtype)


def test_a_weight_through_a_descriptor(dtype, monkeypatch):
    """The same sums in the same order, so the same bits; pointers where a descriptor is impossible."""
    maps = windows((3, 2), 2, 2, dtype, channels=32)
    made_descriptors = []
    from_tensor = direct.TensorDescriptor.from_tensor
    monkeypatch.setattr(
        direct.TensorDescriptor, "from_tensor", lambda *a: made_descriptors.append(a) or from_tensor(*a)
    )
    memory = made((1 + 33 * 32 * 6,), dtype, 8)
    for start, channels, number in ((0, 32, 1), (1, 32, 0), (0, 24, 0)):
        weight = memory[start : start + 33 * channels * 6].view(33, 3, 2, channels).permute(0, 3, 1, 2)
        some = [m[:, :channels] for m in maps]
        results = []
        for variant in ("direct", "descriptor"):
            with launch.override(variant=variant, split_k=2):
                results.append(skip_classifier.forward(some, weight, None, 2, True, 2))
        assert torch.equal(*results)
        assert_matches(results[1], truth(some, weight, None, 2, tap=2), dtype)
        assert len(made_descriptors) == number
        made_descriptors.clear()


def test_offsets_of_64_bits_give_the_same_bits(monkeypatch):
    maps, weight = unequal(20), made((33, 20, 2, 2), seed=8)
    for pool in ("separate", "fused"):
        with launch.override(pool=pool):
            expected = skip_classifier.forward(maps, weight, None, 3, True, 3)
            with monkeypatch.context() as wide:
                wide.setattr(direct, "_is_wide", lambda problem: True)
                assert torch.equal(skip_classifier.forward(maps, weight, None, 3, True, 3), expected)
    large = Problem(((1, 40, 2**18),), 1024, 8, (5, 5), 3, 3, torch.float16, DEVICE)
    assert direct._is_wide(large) and not direct._is_wide(Problem.of(maps, weight, 3, 3))


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
    assert direct._aligned(maps).data_ptr() % 16 == 0


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
