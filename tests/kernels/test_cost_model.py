"""The estimates of variants: what passes compute and move, and that they rank as they should."""

from dataclasses import replace

import pytest
import torch
from kernel_checks import INTERPRETED, SCALES  # noqa: F401 (skips without a GPU or the interpreter)

from overfeat.kernels import cost_model, launch
from overfeat.kernels.cost_model import VARIANTS, Constants, Waves, filter_tiles, passes
from overfeat.kernels.launch import Tile
from overfeat.kernels.problem import Problem

H200 = Constants(132, {"16 bit": 790e12, "tf32": 395e12, "ieee": 50e12}, 4.3e12)


def six_scales(images, dtype=torch.bfloat16):
    """The accurate net's first fully connected layer on the maps of all six scales."""
    shapes = tuple((images, h, w) for h, w in SCALES)
    return Problem(shapes, 1024, 4096, (5, 5), 3, 3, dtype, torch.device("meta"))


def multiplications(variant, problem):
    return sum(step.flop for step in passes(variant, problem)) / 2


def test_direct_multiplications_and_bytes():
    problem = six_scales(1)
    assert problem.positions == 1575
    for variant in ("direct", "descriptor", "im2col"):
        assert multiplications(variant, problem) == 1575 * 25600 * 4096
    pooling, gemm = passes("direct", problem)
    pooled = sum((h - 2) * (w - 2) for h, w in SCALES)
    assert pooling.bytes == 2 * 1024 * (sum(h * w for h, w in SCALES) + pooled)
    assert gemm.bytes == 2 * (1024 * pooled + 25600 * 4096 + 1575 * 4096)
    (fused,) = passes("direct", problem, fused=True)
    assert fused.flop == gemm.flop


@pytest.mark.parametrize(("size", "phases"), [(3, (2, 3)), (4, (2, 2))])
def test_tiles_of_minimal_filtering(size, phases):
    """A map of 14 x 16 positions in nine phases of 5 or 4 rows and 6 or 5 columns."""
    problem = Problem(((2, 14 + 14, 16 + 14),), 8, 8, (5, 5), 3, 3, torch.bfloat16, torch.device("meta"))
    rows = sum(-(-n // size) for n in (5, 5, 4))
    columns = sum(-(-n // size) for n in (6, 5, 5))
    assert filter_tiles(problem, size) == 2 * rows * columns
    assert 2 * multiplications(f"filter{size}", problem) == 2 * (size + 4) ** 2 * 2 * rows * columns * 8 * 8


def test_fewer_multiplications():
    """At most 9 * 25 / 49 = 4.6 and 16 * 25 / 64 = 6.25 times fewer; tiles that overlap the border cost some."""
    direct = multiplications("direct", six_scales(8))
    fewer = [direct / multiplications(variant, six_scales(8)) for variant in ("filter3", "filter4")]
    assert fewer == pytest.approx([3.19, 3.80], abs=0.005)


def test_programs_of_the_last_wave_share_tiles():
    problem, tile = six_scales(1), Tile(128, 256, 64, 8, 3)
    with launch.on_chip((9, 0), 132), launch.override(variant="direct", tile=tile):
        plan = launch.choose("forward", problem)
    unsplit, split = (Waves.of("forward", problem, replace(plan, split_k=s), 132) for s in (1, 5))
    assert unsplit.padding == split.padding == 13 * 128 / 1575
    assert unsplit.busy == pytest.approx(208 / 132 / 2) and unsplit.partial_bytes == 0
    assert split.busy == pytest.approx(208 / 132 / (1 + 3 / 5)) and split.partial_bytes == 4 * 5 * 76 * 128 * 256
    assert plan.split_k > 1 and cost_model.roofline("forward", problem, plan, H200) < cost_model.roofline(
        "forward", problem, replace(plan, split_k=1), H200
    )


def test_measured_efficiencies_count():
    """Of the nearest number of positions, in proportion; where nothing was measured, the estimates."""
    measured = replace(H200, efficiency={("forward", "16 bit", "im2col"): {10: 0.1, 1000: 0.9}})
    assert measured.efficiency_of("forward", "16 bit", "im2col", 90) == 0.1
    assert measured.efficiency_of("forward", "16 bit", "im2col", 110) == 0.9
    assert measured.efficiency_of("forward", "tf32", "im2col", 110) == cost_model.EFFICIENCY["forward"]["im2col"]


def test_all_variants_have_estimates():
    problem = six_scales(1)
    with launch.on_chip((9, 0), 132):
        for gemm, variants in VARIANTS.items():
            for variant in variants:
                with launch.override(variant=variant):
                    plan = launch.choose(gemm, problem)
                assert plan.variant == variant
                limit = cost_model.roofline(gemm, problem, plan, H200)
                assert cost_model.seconds(gemm, problem, plan, H200) == limit / cost_model.EFFICIENCY[gemm][variant]
                assert 1e-4 < limit < 3e-3
