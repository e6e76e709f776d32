"""What every measurement shares: folders, process memory, and writing results."""

import ctypes
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from overfeat.files import atomic_write
from overfeat.profiling.measure import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
UNFINISHED_STATUS = 3  # exit status: nothing failed, but time ran out
LOST_STATUS = 70  # exit status: the device no longer responds, another process may go on
SOURCES = ("kernels", "overfeat", "bench", "tests")


def process_kilobytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, the memory now, or VmHWM, its peak since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Restart VmHWM from the memory in use now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_peak_memory(run: Callable[[], object], device: torch.device) -> tuple[object, int | None]:
    """The result of `run`, and the peak of its memory in bytes above what was in use before (None if unknown)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    before = None
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)  # return free memory to the system, or it would hide new allocations
        reset_peak()
        before = process_kilobytes("VmRSS")
    result = run()
    return result, None if before is None else max(0, 1024 * (process_kilobytes("VmHWM") - before))


def measured_state(device: torch.device) -> dict[str, str]:
    """What results depend on: the sources, by a digest, the device and the versions of torch and Triton."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    info = machine()
    name = str(info["gpu" if device.type == "cuda" else "cpu"])
    versions = {key: str(info.get(key, "none")) for key in ("torch", "triton")}
    return {"sources": digest.hexdigest()[:16], "device": name, **versions}


def write_results(name: str, command: str, results: dict) -> Path:
    """Write bench/results/NAME.json: the command, the machine, and the results."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps({"command": command, "machine": machine(), **results}, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return path
