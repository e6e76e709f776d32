"""Measuring: wall times, and what the machine is."""

import datetime
import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of times, and their number as "repeats"."""
    times = sorted(times)
    cut = int(0.2 * (len(times) - 1))
    return {"median": statistics.median(times), "p20": times[cut], "p80": times[-1 - cut], "repeats": len(times)}


def seconds(run: Callable[[], object], repeats: int = 5, warm: int = 1) -> dict[str, float]:
    """`summary` of the run's wall times, after `warm` runs that do not count."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return summary(times)


def machine() -> dict[str, str | int | float]:
    """Device, versions, date and commit, for the head of a result; with a GPU its properties as well.

    The commit is the clone's, or that of the environment variable OVERFEAT_COMMIT, or "unknown".
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    commit, clone = os.environ.get("OVERFEAT_COMMIT", ""), Path(__file__).resolve().parents[2]
    if not commit and (clone / ".git").exists():
        with suppress(FileNotFoundError):  # a machine without git
            describe = ["git", "describe", "--always", "--dirty"]
            commit = subprocess.run(describe, cwd=clone, capture_output=True, text=True).stdout.strip()
    info: dict[str, str | int | float] = {
        "cpu": model, "cpu capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(), "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        info |= {
            "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
        }  # fmt: skip
    if importlib.util.find_spec("triton"):
        info["triton"] = importlib.import_module("triton").__version__
    return info


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
