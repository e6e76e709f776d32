"""What every run shares: timing, the machine's description, counting work, and writing results."""

import datetime
import importlib
import importlib.util
import itertools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from overfeat.architectures import Architecture, Stride
from overfeat.files import replacing
from overfeat.geometry import output_size

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def seconds(run: Callable[[], object], repeats: int = 5, warm: int = 1) -> dict[str, float]:
    """Median, 20th and 80th percentile of the run's wall time, after `warm` runs that do not count."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times.sort()
    low, high = times[int(0.2 * (repeats - 1))], times[-1 - int(0.2 * (repeats - 1))]
    return {"median": statistics.median(times), "p20": low, "p80": high, "repeats": repeats}


def matrix_product_rate(size: int = 4096, repeats: int = 5) -> float:
    """FLOP/s of a large float32 matrix product on the CPU, median."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / seconds(lambda: a @ b, repeats)["median"]


def machine() -> dict[str, str | int | float]:
    """Device, versions, date and commit, for the head of a result; more about the GPU where there is one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    commit = ""
    with suppress(FileNotFoundError):  # a machine without git
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    found = {
        "cpu": model,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
        }
    if importlib.util.find_spec("triton"):
        found["triton"] = importlib.import_module("triton").__version__
    return found


def kilobytes(name: str) -> int:
    """A line of Linux's account of this process: VmRSS, its memory now, or VmHWM, its peak since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    """From now on VmHWM is the peak of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def write_results(name: str, command: str, results: dict) -> Path:
    """Write bench/results/NAME.json: the command, the machine, and the results."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps({"command": command, "machine": machine(), **results}, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return path


def work(architecture: Architecture, height: int, width: int, classes: int, stride: Stride) -> dict[str, int]:
    """Multiply-accumulates for one image: the features, the first full layer, the rest; and the places."""
    channels, sides, features = 3, [height, width], 0
    steps = iter(architecture.feature_steps)
    for conv in architecture.convs:
        step = next(steps)
        sides = [output_size([step], side) for side in sides]
        features += sides[0] * sides[1] * conv.channels * channels * conv.kernel**2
        channels = conv.channels
        if conv.pool > 1 and conv is not architecture.convs[-1]:
            step = next(steps)
            sides = [output_size([step], side) for side in sides]
    reach = architecture.pool * architecture.kernel
    step = 1 if stride == "fine" else architecture.pool
    places = ((sides[0] - reach) // step + 1) * ((sides[1] - reach) // step + 1)
    widths = (*architecture.hidden, classes)
    first = channels * architecture.kernel**2 * widths[0]
    rest = sum(a * b for a, b in itertools.pairwise(widths))
    return {"features": features, "first": places * first, "rest": places * rest, "places": places}
