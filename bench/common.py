"""What every run shares: where results go, memory, and writing them."""

import ctypes
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from overfeat.files import atomic_write
from overfeat.profiling.measure import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def kilobytes(name: str) -> int:
    """A line of Linux's account of this process: VmRSS, its memory now, or VmHWM, its peak since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    """From now on VmHWM is the peak of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_beyond(run: Callable[[], object], device: torch.device) -> tuple[object, int | None]:
    """What `run` gives, and how many bytes it takes at its peak beyond what was held before; None: nobody tells."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    before = None
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, or it would hide what is taken
        forget_peak()
        before = kilobytes("VmRSS")
    result = run()
    return result, None if before is None else max(0, 1024 * (kilobytes("VmHWM") - before))


def write_results(name: str, command: str, results: dict) -> Path:
    """Write bench/results/NAME.json: the command, the machine, and the results."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps({"command": command, "machine": machine(), **results}, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return path
