"""Every kernel compiled for absent GPUs: register spills, shared memory, matrix instructions."""

import os
import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.kernel_report import CHIPS, KINDS, compile_all

SPILLS = 200  # bytes a thread, in the epilogue of the largest tiles; other kernels spill nothing
GEMMS = {"skip_classifier_fwd_kernel", "skip_classifier_bwd_input_kernel", "skip_classifier_bwd_weight_kernel"}
KERNELS = GEMMS | {"split_k_reduce_kernel", "relu_backward_kernel", "pool_kernel", "pool_backward_kernel"}
KERNELS |= {"pool_rows_kernel", "pool_rows_backward_kernel", "chunk_softmax_max_kernel", "segment_max_kernel"}
MERGING = {"best_partner_kernel", "merge_kernel", "merge_tiled_kernel"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])  # python -m bench.kernel_report has more
def test_kernels_suit_the_chip(chip, kind):
    rows = compile_all([chip], [kind], workers=1)
    assert {row.kernel for row in rows} >= (GEMMS | MERGING if kind == "ieee" else KERNELS)
    assert not [row for row in rows if row.spills > SPILLS]
    assert sum(row.spills > 0 for row in rows) < len(rows) / 8
    # 8.6, 8.9 and 12.0 launch what 8.0 does, with less memory.
    shared = CHIPS["sm_86" if chip == "sm_80" else chip].shared
    assert not [row for row in rows if row.shared > shared]
    if kind == "ieee":
        assert not [row for row in rows if row.matrix], "full precision must not use the matrix units"
        return
    gemms = [row for row in rows if row.kernel in GEMMS]
    large = [row for row in gemms if int(options(row)["BLOCK_M"]) >= 64]
    assert len(large) >= 5
    for row in gemms:
        assert re.search(CHIPS[chip].matrix if row in large else "HMMA", row.matrix), row


def options(row):
    return dict(pair.split("=") for pair in row.options.split())
