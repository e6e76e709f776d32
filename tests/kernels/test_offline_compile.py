"""Every kernel compiled for absent GPUs: resources, matrix instructions, and what its loops do."""

import os
import re
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.kernel_report import bounds
from bench.kernel_report.absent_gpu import CHIPS, compiling
from bench.kernel_report.compiled import compile_all, compile_for, first_layer
from overfeat.kernels import launch, offset_pool

SPILLS = 200  # bytes a thread, in the epilogue of the largest tiles, and outside of the loops of merging
GEMMS = {"skip_classifier_fwd_kernel", "skip_classifier_bwd_weight_kernel"}
KERNELS = GEMMS | {"split_k_reduce_kernel", "relu_backward_kernel", "pool_kernel", "pool_backward_kernel"}
KERNELS |= {"pool_rows_kernel", "pool_rows_backward_kernel", "chunk_softmax_max_kernel", "segment_max_kernel"}
KERNELS |= {"gather_windows_kernel", "gather_gradient_kernel"}
MERGING = {"best_partner_kernel", "merge_kernel", "merge_tiled_kernel"}
# python -m bench.kernel_report has all: more chips, and every kind of arithmetic for each.
COMPILED = [("sm_80", "float16"), ("sm_90", "bfloat16"), ("sm_90", "tf32"), ("sm_90", "ieee"), ("sm_100", "bfloat16")]


@pytest.mark.parametrize(("chip", "kind"), COMPILED)
def test_kernels_suit_the_chip(chip, kind):
    rows = compile_all([chip], [kind], workers=1)
    assert {row.kernel for row in rows} >= (GEMMS | MERGING if kind == "ieee" else KERNELS)
    assert not [row for row in rows if row.spills > SPILLS]
    assert sum(row.spills > 0 for row in rows) < len(rows) / 8
    # 8.6, 8.9 and 12.0 launch what 8.0 does, with less memory.
    shared = CHIPS["sm_86" if chip == "sm_80" else chip].shared
    assert not [row for row in rows if row.shared > shared]
    check_matrix_units(rows, chip, kind)
    assert bounds.broken(rows) == []
    assert bounds.unused(rows, chip, kind) == []


def check_matrix_units(rows, chip, kind):
    if kind == "ieee":
        assert not [row for row in rows if row.code.matrix], "full precision must not use the matrix units"
        return
    gemms = [row for row in rows if row.kernel in GEMMS]
    large = [row for row in gemms if int(row.constants["BLOCK_M"]) >= 64]
    assert len(large) >= 5
    for row in gemms:
        assert re.search(CHIPS[chip].matrix if row in large else "HMMA", row.code.matrix), row


BREAKING = {
    "buffers": launch.Tile(128, 256, 64, warps=8, stages=2),
    "local": launch.Tile(128, 256, 64, warps=4, stages=3),
}


@pytest.mark.parametrize("measure", BREAKING)
def test_bounds_are_broken_by_a_worse_launch(measure):
    call = partial(first_layer, torch.bfloat16, 200, 1024, pool="separate", tile=BREAKING[measure])
    rows = compile_for(CHIPS["sm_90"], "bfloat16", [call])
    assert any(f": {measure} " in complaint for complaint in bounds.broken(rows))


def test_a_new_number_of_maps_compiles_nothing():
    """Up to the next power of two; whatever their sizes."""
    with compiling(CHIPS["sm_90"], "float16") as driver:
        for count in (3, 4):
            for last in (False, True):
                maps = [torch.empty(1, 64, 3 + i, 5 + count, dtype=torch.float16, device="meta") for i in range(count)]
                maps = [m.contiguous(memory_format=torch.channels_last) for m in maps] if last else maps
                pooled = offset_pool.forward_list(maps, 3)
            offset_pool.backward_list(pooled, maps, 3)
            names = sorted(name for name, *_ in driver.binaries)
            assert names == ["pool_kernel", "pool_rows_backward_kernel", "pool_rows_kernel", "pool_rows_kernel"]
