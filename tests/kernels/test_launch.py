"""The choice of launches, and what forces another."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_checks import INTERPRETED  # noqa: F401 (skips without a GPU or the interpreter)

from overfeat.kernels import launch
from overfeat.kernels.launch import Tile
from overfeat.kernels.problem import Problem

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def first_layer(positions, channels, dtype):
    """The accurate net's first fully connected layer on a map with so many output positions."""
    return Problem(((1, 15, 14 + positions),), channels, 4096, (5, 5), 3, 3, dtype, torch.device("meta"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("m", [1, 9, 54, 1575, 25200])
def test_plans_fill_the_chip(capability, dtype, m):
    with launch.on_chip(capability, multiprocessors=132):
        plan = launch.choose("forward", first_layer(m, 1024, dtype))
        tiles = -(-m // plan.tile.m) * (4096 // plan.tile.n)
        assert 1 <= plan.num_programs <= 132
        assert plan.num_programs == min(132, tiles * plan.split_k)
        assert plan.even_k and 1 <= plan.split_k <= launch.MAX_SPLIT_K
        idle = [-(tiles * split_k) % 132 / -(-tiles * split_k // 132) for split_k in (1, plan.split_k)]
        assert plan.split_k == 1 or idle[1] < idle[0], "split-K is for chips that are not full"
        uneven = launch.choose("forward", first_layer(m, 1001, dtype))
        assert not uneven.even_k


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
