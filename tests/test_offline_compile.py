"""Every kernel compiled for GPUs that are not here: no spills worth the name, shared memory, matrix instructions."""

import os
import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("under the interpreter there is nothing to compile", allow_module_level=True)

from bench.kernel_report import CHIPS, KINDS, compile_all

NAMES = ["sm_80", "sm_90", "sm_100"]  # python -m bench.kernel_report has more
SPILLS = 200  # bytes a thread, in the epilogue of the largest tiles; the rest spills nothing
PRODUCTS = {"forward_kernel", "maps_backward_kernel", "weight_backward_kernel"}
KERNELS = PRODUCTS | {"finish_kernel", "relu_backward_kernel", "pool_kernel", "pool_backward_kernel"}
KERNELS |= {"chunk_kernel", "run_kernel"}
MERGING = {"rows_kernel", "merge_kernel", "merge_tiled_kernel"}


@pytest.fixture(scope="module")
def rows():
    return compile_all(NAMES)


def options(row):
    return dict(pair.split("=") for pair in row.options.split())


def test_everything_was_compiled(rows):
    for chip in NAMES:
        for kind in KINDS:
            found = {row.kernel for row in rows if (row.chip, row.kind) == (chip, kind)}
            assert found >= (PRODUCTS | MERGING if kind == "ieee" else KERNELS), (chip, kind)


def test_spills_stay_below_the_stated_count(rows):
    assert not [row for row in rows if row.spills > SPILLS]
    assert sum(row.spills > 0 for row in rows) < len(rows) / 20


def test_shared_memory_fits_the_chip(rows):
    assert not [row for row in rows if row.shared > CHIPS[row.chip].shared]
    # 8.6, 8.9 and 12.0 launch what 8.0 does, with less memory.
    assert not [row for row in rows if row.chip == "sm_80" and row.shared > CHIPS["sm_86"].shared]


def test_products_run_on_matrix_units(rows):
    checked = 0
    for row in rows:
        if row.kernel in PRODUCTS and row.kind != "ieee":
            expected = CHIPS[row.chip].matrix if int(options(row)["BLOCK_M"]) >= 64 else "HMMA"
            assert re.search(expected, row.matrix), row
            checked += expected != "HMMA"
    assert checked > 20


def test_full_precision_stays_off_them(rows):
    assert not [row for row in rows if row.kind == "ieee" and row.matrix]
