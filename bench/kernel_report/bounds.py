"""Limits of the numbers in the kernel report, and which kernels break them."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.kernel_report.compiled import Compiled

GEMM = "skip_classifier_.*"
SMALL = "float16|bfloat16"

MEASURES: dict[str, Callable[["Compiled"], int]] = {
    "spills": lambda row: row.spills,  # bytes a thread
    "buffers": lambda row: row.buffers,  # steps of a GEMM whose operands fit the shared memory
    "total": lambda row: row.code.instructions,  # instructions of the whole kernel
    "loops": lambda row: row.code.loops,
    "step": lambda row: row.code.step.instructions,  # instructions a step of the hot loop
    "narrow": lambda row: row.code.step.narrow,  # global loads of less than 16 bytes a step
    "in flight": lambda row: row.code.step.in_flight or 0,  # groups of asynchronous copies while a step computes
    "full waits": lambda row: row.code.step.full_waits,  # of wgmma: serialised
    "local": lambda row: row.code.step.local,  # spilled registers loaded or stored a step
    "divisions": lambda row: row.code.step.divisions,  # of integers, and calls, a step
    "barriers": lambda row: row.code.barriers,  # in the outermost loop: for merging, a merge
    "shuffles": lambda row: row.code.shuffles,
}


@dataclass(frozen=True)
class Bound:
    """Limits for the kernels that match in everything; names are those of MEASURES."""

    kernel: str  # a regular expression of the name
    chips: str
    kinds: str
    constants: str = ""  # of the launch: "BLOCK_M=128 POOL=1"
    at_most: dict[str, int] = field(default_factory=dict)
    at_least: dict[str, int] = field(default_factory=dict)

    def compiles_for(self, chip: str, kind: str) -> bool:
        return bool(re.fullmatch(self.chips, chip) and re.fullmatch(self.kinds, kind))

    def matches(self, row: "Compiled") -> bool:
        named = self.compiles_for(row.chip, row.kind) and re.fullmatch(self.kernel, row.kernel)
        return bool(named) and set(self.constants.split()) <= set(row.options.split())


def bound(kernel: str, chips: str, kinds: str, constants: str = "", /, **limits: int) -> Bound:
    """A row of the table: step=140 is a maximum, min_buffers=3 a minimum."""
    named = {name.replace("_", " "): limit for name, limit in limits.items()}
    at_most = {name: limit for name, limit in named.items() if not name.startswith("min ")}
    at_least = {name.removeprefix("min "): limit for name, limit in named.items() if name.startswith("min ")}
    assert {*at_most, *at_least} <= set(MEASURES), limits
    return Bound(kernel, chips, kinds, constants, at_most, at_least)


NVIDIA, LARGE = "sm_.*", "sm_90|sm_100"
POOL, POOL_BACKWARD = "pool_rows_kernel", "pool_rows_backward_kernel"
FORWARD, WEIGHT = "skip_classifier_fwd_kernel", "skip_classifier_bwd_weight_kernel"
# The widest tile of the forward GEMM, which computes nearly all of a batch.
WIDE_TILE = "BLOCK_M=128 EVEN_K=True POOL=1"
POINTERS, DESCRIPTOR = f"{WIDE_TILE} DESCRIPTOR=False", f"{WIDE_TILE} DESCRIPTOR=True"
REDUCE = "split_k_reduce_kernel"

BOUNDS = (
    # Every GEMM: no spilled registers in its loop, and no wait for all wgmma where its operands are copied unmasked.
    bound(GEMM, NVIDIA, f"{SMALL}|tf32", "EVEN_K=True POOL=1", local=0, full_waits=0, narrow=0),
    bound(GEMM, LARGE, f"{SMALL}|tf32", local=0),
    # The forward GEMM.
    bound(FORWARD, "sm_80", SMALL, WIDE_TILE, step=160, divisions=0, min_buffers=3, min_in_flight=4),
    bound(FORWARD, "sm_80", "tf32", WIDE_TILE, step=170, divisions=0, min_buffers=2, min_in_flight=2),
    bound(FORWARD, LARGE, SMALL, f"{POINTERS} BLOCK_K=64", step=140, divisions=0, min_buffers=3, min_in_flight=2),
    bound(FORWARD, "sm_90", SMALL, f"{DESCRIPTOR} BLOCK_K=64", step=120, divisions=0, min_buffers=4),
    bound(FORWARD, "sm_100", SMALL, f"{DESCRIPTOR} BLOCK_K=64", step=140, divisions=0, min_buffers=4),
    bound(FORWARD, LARGE, "tf32", POINTERS, step=140, divisions=0, min_buffers=4, min_in_flight=4),
    bound(FORWARD, "sm_90", "tf32", DESCRIPTOR, step=120, divisions=0, min_buffers=4, min_in_flight=2),
    bound(FORWARD, "sm_100", "tf32", DESCRIPTOR, step=140, divisions=0, min_buffers=4, min_in_flight=2),
    bound(REDUCE, NVIDIA, f"{SMALL}|tf32", step=135, narrow=0, divisions=0),
    # The gradient of the weight; one of its loads (with Triton 3.6 eight) is of the table of positions. In TF32 an
    # operand is transposed in registers, for which the previous step's wgmma must be over.
    bound(WEIGHT, "sm_80", SMALL, "BLOCK_M=128", step=135, narrow=1, local=0, min_buffers=3, min_in_flight=4),
    bound(WEIGHT, LARGE, SMALL, "BLOCK_M=128", step=310, narrow=8, full_waits=0, min_buffers=3, min_in_flight=2),
    bound(WEIGHT, LARGE, "tf32", "BLOCK_M=128", step=245, narrow=4, min_buffers=4, min_in_flight=4),
    # im2col and col2im around GEMMs of the library: two loads of 16 bytes (of float32 four) a thread, and one a tap.
    bound("gather_windows_kernel", NVIDIA, SMALL, loops=0, total=150, narrow=4),
    bound("gather_gradient_kernel", NVIDIA, SMALL, "KERNEL_X=5", step=240, narrow=0),
    # Minimal filtering: 64 x 128 or 64 x 256 values a program; also loads of addresses and tables.
    bound("filter_input_kernel", "sm_90", "bfloat16", "SIDE=7", loops=0, local=0),
    bound("filter_input_kernel", "sm_90", "bfloat16", "SIDE=8", loops=0, total=700, narrow=6),
    bound("filter_output_kernel", "sm_90", "bfloat16", loops=0, total=950, narrow=9),
    # Pooling: without loops, 256 outputs a warp, eight channels (four of float32) a load; also of addresses and tables.
    bound(POOL, NVIDIA, SMALL, "SIZE=3 ARGMAX=False", loops=0, total=200, narrow=3),
    bound(POOL, NVIDIA, "tf32", "SIZE=3 ARGMAX=False EVEN_C=True", loops=0, total=260, narrow=6),
    bound(POOL, "sm_90", SMALL, "SIZE=3 ARGMAX=True EVEN_C=True", loops=0, total=380, narrow=3),
    bound(POOL_BACKWARD, "sm_90", SMALL, "SIZE=3", loops=0, total=640, narrow=14),
    # Merging boxes: one block-wide reduction a merge.
    bound("merge_kernel|merge_tiled_kernel", NVIDIA, "ieee", barriers=8, shuffles=32),
    # Full precision.
    bound(GEMM, NVIDIA, "ieee", "EVEN_K=True", local=0, narrow=0),
)


def broken(rows: Iterable["Compiled"]) -> list[str]:
    """A sentence for every bound that a kernel breaks; kernels that were not disassembled break none."""
    return [complaint for row in rows if row.code for b in BOUNDS if b.matches(row) for complaint in _broken(row, b)]


def _broken(row: "Compiled", b: Bound) -> list[str]:
    name = f"{row.chip} {row.kind} {row.kernel} ({row.options})"
    values = {measure: MEASURES[measure](row) for measure in (*b.at_most, *b.at_least)}
    too_many = [f"{name}: {m} {values[m]}, at most {limit}" for m, limit in b.at_most.items() if values[m] > limit]
    too_few = [f"{name}: {m} {values[m]}, at least {limit}" for m, limit in b.at_least.items() if values[m] < limit]
    return too_many + too_few


def unused(rows: Iterable["Compiled"], chip: str, kind: str) -> list[Bound]:
    """The bounds for a chip and a kind of arithmetic that match none of its kernels."""
    rows = list(rows)
    return [b for b in BOUNDS if b.compiles_for(chip, kind) and not any(map(b.matches, rows))]
