"""Compile every kernel for absent GPUs, with every dtype and launch configuration of overfeat.kernels.launch.

The functions that launch the kernels run, with meta tensors in place of real ones and a substitute for Triton's driver
that keeps the binaries; nothing is computed.
"""

import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.nvidia.compiler import sm_arch_from_capability

from bench.kernel_report import sass
from bench.kernel_report.absent_gpu import CHIPS, KINDS, Chip, compiling
from overfeat.kernels import (
    box_merge,
    class_scores,
    cost_model,
    launch,
    offset_pool,
    skip_classifier,
    skip_classifier_backward,
)
from overfeat.kernels.problem import Problem

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """One row of the report.

    Attributes:
        spills: bytes of local memory per thread.
        shared: bytes per program.
        buffers: operands of so many steps of a GEMM fit the shared memory; 0 without a GEMM.
        code: None where it was not disassembled.
    """

    chip: str
    kernel: str
    kind: str
    options: str
    warps: int
    stages: int
    registers: int
    spills: int
    shared: int
    buffers: int
    code: sass.Code | None

    @property
    def constants(self) -> dict[str, str]:
        return dict(pair.split("=") for pair in self.options.split())


def launches(chip: Chip, kind: str) -> Iterator[Callable[[], object]]:
    """Every launch configuration of the library: tiles by number of positions, pooling, channels, bias, split-K."""
    dtype = KINDS[kind]
    call, empty = partial(first_layer, dtype), partial(meta, dtype)
    name = launch.arithmetic(dtype, kind)
    for max_rows, _ in launch.tiles(f"{name}, fused", chip.capability):
        yield partial(call, min(max_rows, 200), 1024, pool="fused")
    for max_rows, _ in launch.tiles(name, chip.capability):
        yield partial(call, min(max_rows, 200), 1024, split_k=1, pool="separate", backward=True)
        yield partial(call, min(max_rows, 200), 1024, split_k=4, pool="separate")
    for variant in cost_model.VARIANTS["forward"]:
        shape = Problem.of([empty(1, 1024, 15, 214)], empty(4096, 1024, 5, 5), 3, 3)
        if variant != "direct" and not cost_model.unsupported_reason(variant, "forward", shape, chip.capability):
            yield partial(call, 200, 1024, variant=variant)
    yield partial(call, 200, 1024, backward=True, variant="im2col")
    yield partial(call, 20000, 1024, backward=True, variant="im2col")  # in chunks
    yield partial(overlapping_pools, dtype, "fused")
    yield partial(overlapping_pools, dtype, "separate")
    yield lambda: call(200, 96, bias=False, backward=True)  # channels not divisible by the tile's k
    yield lambda: call(200, 1000, bias=False, pool="separate")  # channels not divisible by 16
    if kind == "ieee":  # boxes are float32 or float64
        yield from _merging()
    else:  # kernels without matmuls do not depend on the precision
        for size in (2, 3):
            yield lambda size=size: offset_pool.backward(
                empty(1, 1024, 36 - size, 45 - size), empty(1, 1024, 35, 44), size, 1
            )
            yield lambda size=size: offset_pool.forward(empty(1, 1024, 35, 44), size, 1)
        yield lambda: offset_pool.backward(empty(1, 256, 31, 40), empty(1, 256, 35, 44), 3, 2)
        yield lambda: offset_pool.forward(empty(1, 256, 35, 44), 3, 2)
        maps = [empty(1, 1024, 17, 17 + i) for i in range(6)]
        yield lambda: offset_pool.forward_list(maps, 3)
        yield lambda: offset_pool.backward_list(empty(15 * sum(15 + i for i in range(6)), 1024), maps, 3)
        contiguous = torch.empty(1, 1024, 35, 44, dtype=dtype, device="meta")
        yield lambda: offset_pool.backward(empty(1, 1024, 33, 42), contiguous, 3, 1)
        yield lambda: offset_pool.forward(contiguous, 3, 1)
        yield lambda: class_scores.forward(empty(630, 1000), [630])


def _merging() -> Iterator[Callable[[], object]]:
    """Merging of boxes with every tile and match metric."""
    for number, sizes in launch.MERGE_TILES.items():
        for tile in sizes:
            lengths = [3 * tile.block] if tile.tiled else [tile.max_boxes] * 3
            boxes = torch.empty(3 * tile.block, 4, dtype=number, device="meta")
            matches = box_merge.MATCH_METRICS if (tile.tiled or tile == sizes[0]) else ["normalised"]
            for metric, average in zip(matches, ("pairwise", "counts", "pairwise")):  # noqa: B905
                rule = {"match_threshold": 0.5, "match_metric": metric, "box_average": average, "min_iou": 0.5}
                yield lambda b=boxes, n=lengths, r=rule: box_merge.merge(b, b[:, 0], n, **r)


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor without memory; of four dimensions: channels-last."""
    maps = torch.empty(shape, dtype=dtype, device="meta")
    return maps.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else maps


def first_layer(
    dtype: torch.dtype, positions: int, channels: int, bias: bool = True, backward: bool = False, **forced: object
) -> None:
    """The classifier's first layer, 5 x 5, after 3 x 3 pools, with these launch options."""
    maps, weight = [meta(dtype, 1, channels, 15, 14 + positions)], meta(dtype, 4 * channels, channels, 5, 5)
    with launch.override(**{"variant": "direct"} | forced):
        skip_classifier.forward(maps, weight, meta(dtype, 4 * channels) if bias else None, 3, True, 3)
        if backward:
            grad, output = meta(dtype, positions, 4 * channels), meta(dtype, positions, 4 * channels)
            skip_classifier_backward.backward(grad, maps, weight, output, 3, 3, True, True)


def overlapping_pools(dtype: torch.dtype, pool: launch.Pool) -> None:
    """A first full layer after 3 x 3 pools of stride 2, as AlexNet's."""
    maps, weight = [meta(dtype, 1, 256, 20, 23)], meta(dtype, 4096, 256, 6, 6)
    with launch.override(pool=pool, variant="direct"):
        output = skip_classifier.forward(maps, weight, meta(dtype, 4096), 3, True, 2)
        skip_classifier_backward.backward(output, maps, weight, output, 3, 2, True, True)


def compile_for(chip: Chip, kind: str, calls: Iterable[Callable[[], object]] | None = None) -> list[Compiled]:
    """Compile what these calls launch, or all kernels, for one chip and one kind of arithmetic."""
    with compiling(chip, kind) as driver:
        for run in launches(chip, kind) if calls is None else calls:
            run()
    amd = chip.target.backend == "hip"
    binaries = [binary for *_, binary in driver.binaries]
    architecture = "" if amd else "SM" + sm_arch_from_capability(chip.target.arch).removeprefix("sm_")
    codes = [None] * len(binaries) if amd else sass.read(binaries, TOOLS / "nvdisasm", architecture)
    rows = {_row(chip, kind, *binary, code) for binary, code in zip(driver.binaries, codes, strict=True)}
    return sorted(rows, key=str)


def _row(
    chip: Chip, kind: str, name: str, constants: dict, metadata: object, binary: bytes, code: sass.Code | None
) -> Compiled:
    registers, spills = (_amd if chip.target.backend == "hip" else _nvidia)(binary)
    shown = {k: v for k, v in constants.items() if k not in ("num_warps", "num_stages") and v is not None}
    options = " ".join(f"{key}={value}" for key, value in sorted(shown.items()))
    return Compiled(chip.name, name, kind, options, metadata.num_warps, metadata.num_stages, registers, spills,
                    metadata.shared, _buffers(metadata.shared, constants, KINDS[kind].itemsize), code)  # fmt: skip


def _buffers(shared: int, constants: dict, itemsize: int) -> int:
    """Operands [BLOCK_M, BLOCK_K] and [BLOCK_K, BLOCK_N] that fit; fused pooling loads POOL * POOL of the first."""
    m, n, k = (constants.get(f"BLOCK_{axis}", 0) for axis in "MNK")
    return shared // ((m * constants.get("POOL", 1) ** 2 + n) * k * itemsize) if k else 0


def _nvidia(binary: bytes) -> tuple[int, int]:
    """Registers, and bytes spilled, of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _amd(binary: bytes) -> tuple[int, int]:
    """The same of an hsaco, from the notes in it."""

    def note(key: bytes) -> int:
        at = binary.index(key) + len(key)  # a MessagePack number follows
        length = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(binary[at], 0)
        return int.from_bytes(binary[at + 1 : at + 1 + length], "big") if length else binary[at]

    return note(b".vgpr_count"), 4 * note(b".vgpr_spill_count")


def compile_all(
    names: Sequence[str] = tuple(CHIPS), kinds: Sequence[str] = tuple(KINDS), workers: int = 2
) -> list[Compiled]:
    """All kernels for these chips with these kinds of arithmetic, in `workers` processes; one is this process."""
    pairs = [(CHIPS[name], kind) for name in names for kind in kinds]
    if workers == 1:
        return [row for pair in pairs for row in compile_for(*pair)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return [row for rows in pool.map(compile_for, *zip(*pairs, strict=True)) for row in rows]
