"""Compile every kernel and report its resources, without a GPU: python -m bench.kernel_report

Every kernel is compiled for each chip with every dtype and every launch configuration that overfeat.kernels.launch
chooses, through the functions that launch it: a substitute for Triton's driver keeps the binaries, and meta tensors
stand in for real ones. The report has registers, spills, shared memory and matrix instructions. Nothing runs, and no
speed is measured.
"""

import argparse
import multiprocessing
import re
import struct
import subprocess
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

try:
    import triton
except ModuleNotFoundError as error:
    raise SystemExit("the kernels' compiler is missing: pip install 'overfeat[bench]'") from error
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import sm_arch_from_capability

from bench.common import write_results
from overfeat.kernels import box_merge, class_scores, launch, offset_pool, skip_classifier, skip_classifier_backward

COMMAND = "python -m bench.kernel_report"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Chip:
    """A GPU architecture; `capability` selects the launch configurations."""

    name: str
    capability: tuple[int, int]
    shared: int  # bytes of shared memory available to a program
    matrix: str  # a regular expression of its matrix instruction for tiles of 64 rows or more; HMMA for smaller ones

    @property
    def target(self) -> GPUTarget:
        if self.name.startswith("gfx"):
            return GPUTarget("hip", self.name, 64)
        return GPUTarget("cuda", int(self.name.removeprefix("sm_")), 32)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("sm_80", (8, 0), 163 * 1024, "HMMA"),
        Chip("sm_86", (8, 6), 99 * 1024, "HMMA"),
        Chip("sm_90", (9, 0), 227 * 1024, "HGMMA"),
        Chip("sm_100", (10, 0), 227 * 1024, r"UTC\w*MMA"),
        Chip("sm_120", (8, 0), 99 * 1024, "HMMA"),
        Chip("gfx942", (8, 0), 64 * 1024, "not disassembled"),
    )
}
KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}


@dataclass(frozen=True)
class Compiled:
    """One row of the report. spills: bytes of local memory per thread; shared: bytes per program."""

    chip: str
    kernel: str
    kind: str
    options: str
    warps: int
    stages: int
    registers: int
    spills: int
    shared: int
    matrix: str  # matrix instructions in the machine code, with their counts


class _Driver:
    """Substitute for Triton's driver: names the target, keeps binaries, launches nothing."""

    def __init__(self, chip: Chip, kind: str):
        self.chip, self.kind, self.utils, self.binaries, self.source = chip, kind, self, [], None

    def get_current_target(self) -> GPUTarget:
        return self.chip.target

    def get_current_device(self) -> str:
        return f"{self.chip.name} {self.kind}"  # Triton loads a kernel once for each device: here, for each kind

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.chip.shared}

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        self.source = source, metadata
        return lambda *arguments: None

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        source, metadata = self.source
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}
        self.binaries.append((name, constants, metadata, binary))
        return "loaded", None, 0, 0, 1024  # the module, function, registers, spills, threads


def launches(chip: Chip, kind: str) -> Iterator[Callable[[], object]]:
    """Every launch configuration of the library: tiles by number of positions, pooling, channels, bias, split-K."""
    dtype = KINDS[kind]

    def empty(*shape: int) -> torch.Tensor:
        maps = torch.empty(shape, dtype=dtype, device="meta")
        return maps.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else maps

    def call(
        positions: int, channels: int, split_k: int = 1, bias: bool = True, backward: bool = False,
        pool: launch.Pool | None = None,
    ) -> None:  # fmt: skip
        maps, weight = [empty(1, channels, 15, 14 + positions)], empty(4 * channels, channels, 5, 5)
        with launch.override(split_k=split_k, pool=pool):
            skip_classifier.forward(maps, weight, empty(4 * channels) if bias else None, 3, True, 3)
        if backward:
            grad, output = empty(positions, 4 * channels), empty(positions, 4 * channels)
            skip_classifier_backward.backward(grad, maps, weight, output, 3, 3, True, True)

    name = launch.arithmetic(dtype, kind)
    for max_rows, _ in launch.tiles(f"{name}, fused", chip.capability):
        yield partial(call, min(max_rows, 200), 1024, pool="fused")
    for max_rows, _ in launch.tiles(name, chip.capability):
        yield partial(call, min(max_rows, 200), 1024, pool="separate", backward=True)
        yield partial(call, min(max_rows, 200), 1024, split_k=4, pool="separate")
    yield partial(overlapping_pools, empty, "fused")
    yield partial(overlapping_pools, empty, "separate")
    yield lambda: call(200, 96, bias=False, backward=True)  # channels not divisible by the tile's k
    yield lambda: call(200, 1000, bias=False, pool="separate")  # channels not divisible by 16
    if kind == "ieee":  # boxes are float32 or float64
        for number, sizes in launch.MERGE_TILES.items():
            for tile in sizes:
                lengths = [3 * tile.block] if tile.tiled else [tile.max_boxes] * 3
                boxes = torch.empty(3 * tile.block, 4, dtype=number, device="meta")
                matches = box_merge.MATCH_METRICS if (tile.tiled or tile == sizes[0]) else ["normalised"]
                for metric, average in zip(matches, ("pairwise", "counts", "pairwise")):  # noqa: B905
                    rule = {"match_threshold": 0.5, "match_metric": metric, "box_average": average, "min_iou": 0.5}
                    yield lambda b=boxes, n=lengths, r=rule: box_merge.merge(b, b[:, 0], n, **r)
    else:  # kernels without matmuls do not depend on the precision
        for size in (2, 3):
            yield lambda size=size: offset_pool.backward(
                empty(1, 1024, 36 - size, 45 - size), empty(1, 1024, 35, 44), size, 1
            )
            yield lambda size=size: offset_pool.forward(empty(1, 1024, 35, 44), size, 1)
        yield lambda: offset_pool.backward(empty(1, 256, 31, 40), empty(1, 256, 35, 44), 3, 2)
        yield lambda: offset_pool.forward(empty(1, 256, 35, 44), 3, 2)
        maps = [empty(1, 1024, 17, 17 + i) for i in range(6)]
        yield lambda: offset_pool.backward_list(empty(15 * sum(15 + i for i in range(6)), 1024), maps, 3)
        contiguous = torch.empty(1, 1024, 35, 44, dtype=dtype, device="meta")
        yield lambda: offset_pool.backward(empty(1, 1024, 33, 42), contiguous, 3, 1)
        yield lambda: offset_pool.forward(contiguous, 3, 1)
        yield lambda: class_scores.forward(empty(630, 1000), [630])


def overlapping_pools(empty: Callable[..., torch.Tensor], pool: launch.Pool) -> None:
    """A first full layer after 3 x 3 pools of stride 2, as AlexNet's."""
    maps, weight = [empty(1, 256, 20, 23)], empty(4096, 256, 6, 6)
    with launch.override(pool=pool):
        output = skip_classifier.forward(maps, weight, empty(4096), 3, True, 2)
    skip_classifier_backward.backward(output, maps, weight, output, 3, 2, True, True)


def compile_for(chip: Chip, kind: str) -> list[Compiled]:
    """Compile all kernels for one chip and one kind of arithmetic."""
    driver, before = _Driver(chip, kind), torch.get_float32_matmul_precision()
    previous = triton.runtime.driver._active  # the property would initialize a GPU driver
    triton.runtime.driver.set_active(driver)
    torch.set_float32_matmul_precision("highest" if kind == "ieee" else "high")
    try:
        with launch.on_chip(chip.capability, multiprocessors=132):
            for run in launches(chip, kind):
                run()
    finally:
        triton.runtime.driver.set_active(previous)
        torch.set_float32_matmul_precision(before)
    amd = chip.target.backend == "hip"
    binaries = [binary for *_, binary in driver.binaries]
    matrix = [""] * len(binaries) if amd else _matrix_instructions(chip, binaries)
    rows = {_row(chip, kind, *binary, text) for binary, text in zip(driver.binaries, matrix, strict=True)}
    return sorted(rows, key=str)


def _row(chip: Chip, kind: str, name: str, constants: dict, metadata: object, binary: bytes, matrix: str) -> Compiled:
    registers, spills = (_amd if chip.target.backend == "hip" else _nvidia)(binary)
    shown = {k: v for k, v in constants.items() if k not in ("num_warps", "num_stages") and v is not None}
    options = " ".join(f"{key}={value}" for key, value in sorted(shown.items()))
    return Compiled(chip.name, name, kind, options, metadata.num_warps, metadata.num_stages, registers, spills,
                    metadata.shared, matrix)  # fmt: skip


def _nvidia(binary: bytes) -> tuple[int, int]:
    """Registers, and bytes spilled, of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _matrix_instructions(chip: Chip, cubins: list[bytes]) -> list[str]:
    """The matrix instructions of each cubin. The disassembler is slow to start, so it gets the code of all at once."""
    codes = [_machine_code(cubin) for cubin in cubins]
    ends = list(accumulate(map(len, codes)))
    counts: list[Counter[str]] = [Counter() for _ in codes]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        architecture = "SM" + sm_arch_from_capability(chip.target.arch).removeprefix("sm_")
        command = [TOOLS / "nvdisasm", "--no-dataflow", "--binary", architecture, file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = re.findall(r"^\s*/\*([0-9a-f]+)\*/(.*)", listing, re.MULTILINE)
    assert int(instructions[-1][0], 16) + 16 == ends[-1], "an instruction has 16 bytes, and all were disassembled"
    for offset, text in instructions:
        if match := re.search(r"\b(HMMA|HGMMA|UTC\w*MMA)\b", text):
            counts[bisect(ends, int(offset, 16))][match[1]] += 1
    return [" ".join(f"{name} x{count}" for name, count in sorted(counter.items())) for counter in counts]


def _machine_code(cubin: bytes) -> bytes:
    """The code sections of a 64-bit ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # A header: name, type, flags (64 bits), address, offset, length.
    sections = [struct.unpack_from("<2I4Q", cubin, headers + number * size) for number in range(count)]
    code = [s for s in sections if cubin.startswith(b".text.", sections[names][4] + s[0])]
    return b"".join(cubin[offset : offset + length] for *_, offset, length in code)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=CHIPS, action="append", help="only this one; repeatable")
    args = parser.parse_args()
    rows = compile_all(args.chip or tuple(CHIPS))
    for row in rows:
        print(f"{row.chip:7} {row.kernel:24} {row.kind:9} {row.registers:3} registers, {row.spills:4} B spilled, "
              f"{row.shared:6} B shared, {row.matrix:10}  {row.options}")  # fmt: skip
    if not args.chip:
        write_results("kernel-report", COMMAND, {"triton": triton.__version__, "kernels": [asdict(r) for r in rows]})


if __name__ == "__main__":
    main()
