"""The choice of launches, and what forces another."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from kernel_checks import INTERPRETED  # noqa: F401 (skips without a GPU or the interpreter)

from overfeat.kernels import launch
from overfeat.kernels.cost_model import VARIANTS, Waves, unsupported_reason
from overfeat.kernels.launch import Tile
from overfeat.kernels.problem import Problem

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
META = torch.device("meta")
HOPPER = (9, 0), 132


def first_layer(positions, channels, dtype, kernel=5, device=META, outputs=4096):
    """The accurate net's first fully connected layer on a map with so many output positions."""
    shape = 1, 3 * kernel, 3 * kernel - 1 + positions
    return Problem((shape,), channels, outputs, (kernel, kernel), 3, 3, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("m", [1, 9, 54, 1575, 25200])
def test_plans_fill_the_chip(capability, dtype, m):
    with launch.on_chip(capability, multiprocessors=132), launch.override(variant="direct"):
        problem = first_layer(m, 1024, dtype)
        plan = launch.choose("forward", problem)
        tiles = -(-m // plan.tile.m) * (4096 // plan.tile.n)
        programs = 132 * plan.tile.programs
        assert plan.num_programs == min(programs, tiles * plan.split_k)
        assert plan.even_k and 1 <= plan.split_k <= launch.MAX_SPLIT_K
        busy = [Waves.of("forward", problem, replace(plan, split_k=s), 132).busy for s in (1, plan.split_k)]
        assert plan.split_k == 1 or busy[0] < busy[1] <= 1, "split-K is for chips that are not full"
        assert busy[1] > 0.7, "most of the programs' time"
        uneven = launch.choose("forward", first_layer(m, 1001, dtype))
        assert not uneven.even_k and uneven.tile == launch.UNEVEN_TILE
        masked = launch.choose("forward", first_layer(m, 1000, dtype))
        assert not masked.even_k and masked.tile != launch.UNEVEN_TILE, "16 bytes of channels are loaded at a time"


def test_the_estimate_chooses_the_variant():
    """Direct where the weights' reading counts, fewer multiplications where they do, in bfloat16 alone."""
    narrow = first_layer(25200, 1024, torch.bfloat16)
    small, large = (replace(narrow, shapes=((1, 14 + h, 14 + w),)) for h, w in ((3, 3), (150, 168)))
    with launch.on_chip(*HOPPER):
        assert launch.choose("forward", small).variant in ("direct", "descriptor")
        assert launch.choose("forward", large).variant in ("filter3", "filter4")
        without = frozenset({"filter3", "filter4"})
        assert launch.choose("forward", large, without).variant not in without
        for dtype in (torch.float16, torch.float32):
            assert launch.choose("forward", first_layer(25200, 1024, dtype)).variant not in without
        assert launch.choose("weight", large).variant in ("direct", "im2col")
    on_cpu = first_layer(25200, 1024, torch.float16, device=torch.device("cpu"))
    assert launch.choose("forward", on_cpu).variant == "direct", "the interpreter's tests force a variant"


def test_options_of_our_gemm_force_it():
    with launch.on_chip(*HOPPER):
        for options in ({"tile": Tile(64, 64, 64, 4, 2)}, {"split_k": 3}, {"pool": "separate"}, {"num_programs": 5}):
            with launch.override(**options):
                assert launch.choose("forward", first_layer(25200, 1024, torch.bfloat16)).variant == "direct"


@pytest.mark.parametrize(
    ("variant", "problem", "why"),
    [
        ("descriptor", first_layer(9, 1001, torch.bfloat16), "16 bytes"),
        ("filter4", first_layer(9, 1024, torch.bfloat16, kernel=2), "square kernels"),
        ("filter3", first_layer(9, 1024, torch.float16), "bfloat16"),
    ],
)
def test_a_variant_that_cannot_is_not_forced(variant, problem, why):
    with launch.on_chip(*HOPPER), launch.override(variant=variant):
        with pytest.raises(ValueError, match=why):
            launch.choose("forward", problem)
        assert launch.choose("weight", problem).variant != variant, "this GEMM has no such variant"


def test_descriptors_need_hopper_but_not_under_the_interpreter():
    problem = first_layer(9, 1024, torch.bfloat16)
    assert "9.0" in unsupported_reason("descriptor", "forward", problem, (8, 0))
    assert unsupported_reason("descriptor", "forward", problem, (10, 0)) is None
    on_cpu = first_layer(9, 1024, torch.float16, device=torch.device("cpu"))
    for variant in VARIANTS["forward"]:
        assert unsupported_reason(variant, "forward", on_cpu, (8, 0)) is None


def test_a_repeated_choice_is_looked_up():
    launch.clear_cache()
    with launch.on_chip(*HOPPER):
        plans = [launch.choose("forward", first_layer(9, 1024, torch.bfloat16)) for _ in range(3)]
    assert plans[0] is plans[1] is plans[2]
    with launch.on_chip((9, 0), 64):
        assert launch.choose("forward", first_layer(9, 1024, torch.bfloat16)) != plans[0]


def _plan_float32(device):
    problem = Problem(((1, 15, 15),), 64, 64, (2, 2), 3, 3, torch.float32, device)
    return launch.choose("forward", problem)


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
