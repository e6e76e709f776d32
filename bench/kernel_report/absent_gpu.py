"""Compile kernels for a GPU that is absent: a substitute for Triton's driver keeps binaries, and launches nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
import triton
from triton.backends.compiler import GPUTarget

from overfeat.kernels import launch


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


class Driver:
    """Substitute for Triton's driver: names the target, keeps binaries, launches nothing."""

    numbers = count()

    def __init__(self, chip: Chip, kind: str):
        self.chip, self.utils, self.binaries, self.source, self.launched = chip, self, [], None, 0
        self.device = f"{chip.name} {kind} {next(Driver.numbers)}"

    def get_current_target(self) -> GPUTarget:
        return self.chip.target

    def get_current_device(self) -> str:
        return self.device  # Triton loads a kernel once for each device: here, for each driver

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.chip.shared}

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        self.source = source, metadata
        return self.launch

    def launch(self, *arguments: object) -> None:
        self.launched += 1

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        source, metadata = self.source
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}
        self.binaries.append((name, constants, metadata, binary))
        return "loaded", None, 0, 0, 1024  # the module, function, registers, spills, threads


@contextmanager
def compiling(chip: Chip, kind: str) -> Iterator[Driver]:
    """Kernels that are launched inside the block are compiled for the chip, and not run."""
    driver, before = Driver(chip, kind), torch.get_float32_matmul_precision()
    previous = triton.runtime.driver._active  # the property would initialize a GPU driver
    triton.runtime.driver.set_active(driver)
    torch.set_float32_matmul_precision("highest" if kind == "ieee" else "high")
    try:
        with launch.on_chip(chip.capability, multiprocessors=132):
            yield driver
    finally:
        triton.runtime.driver.set_active(previous)
        torch.set_float32_matmul_precision(before)
