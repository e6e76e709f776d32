"""Measuring: wall times, this machine, its ceilings, and the multiplications that a net takes."""

import datetime
import importlib
import importlib.util
import itertools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.architectures import Architecture, Stride
from overfeat.geometry import output_size

PRODUCTS = (1024, 2048, 4096)  # sides of the square matrices that are multiplied for a ceiling
# Channels, side of the maps and kernel of the convolutions: those of the nets at large scales.
CONVOLUTIONS = ((512, 64, 3), (1024, 32, 3), (256, 96, 5))
COPIED = 1 << 28  # bytes
LARGER = 4  # times, on a GPU: the sides of the products, and the bytes
BATCH = 32  # images in a convolution there


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of times, and their number."""
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
    """Device, versions, date and commit, for the head of a result; more about the GPU where there is one.

    The commit is the clone's, or what OVERFEAT_COMMIT says, or "unknown".
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    commit, clone = os.environ.get("OVERFEAT_COMMIT", ""), Path(__file__).resolve().parent.parent
    if not commit and (clone / ".git").exists():
        with suppress(FileNotFoundError):  # a machine without git
            describe = ["git", "describe", "--always", "--dirty"]
            commit = subprocess.run(describe, cwd=clone, capture_output=True, text=True).stdout.strip()
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


def ceilings(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 3) -> dict[str, float]:
    """The best rates that this device reaches: {"product", "convolution": FLOP/s, "copy": bytes/s, read and written}.

    Of large square matrix products and plain convolutions, each the best of a few sizes, by stock torch; larger ones
    on a GPU, where the time to start them would count.
    """
    larger, images = (LARGER, BATCH) if device.type == "cuda" else (1, 1)

    def timed(run: Callable[[], object]) -> float:
        return seconds(lambda: (run(), synchronize(device)), repeats)["median"]

    best = {"product": 0.0, "convolution": 0.0}
    with torch.no_grad():
        for side in (larger * side for side in PRODUCTS):
            a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            best["product"] = max(best["product"], 2 * side**3 / timed(lambda a=a, b=b: a @ b))
        for channels, side, kernel in CONVOLUTIONS:
            maps = torch.randn(images, channels, side, side, device=device, dtype=dtype)
            weight = torch.randn(channels, channels, kernel, kernel, device=device, dtype=dtype)
            maps, weight = (t.to(memory_format=torch.channels_last) for t in (maps, weight))
            work = 2 * images * channels**2 * kernel**2 * (side - kernel + 1) ** 2
            rate = work / min(timed(run) for run in _convolutions(maps, weight))
            best["convolution"] = max(best["convolution"], rate)
    source = torch.ones(larger * COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {**best, "copy": 2 * source.nbytes / timed(lambda: target.copy_(source))}


def _convolutions(maps: Tensor, weight: Tensor) -> list[Callable[[], object]]:
    """Ways to run a plain convolution: torch's and, on a CPU with oneDNN, with weights that are packed beforehand."""
    ways: list[Callable[[], object]] = [lambda: F.conv2d(maps, weight)]
    if maps.device.type == "cpu" and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        with suppress(RuntimeError):  # a type that oneDNN does not have here
            plain = weight.contiguous().to_mkldnn()
            arguments = [0, 0], [1, 1], [1, 1], 1
            packed = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *arguments, list(maps.shape))
            ways.append(lambda: torch.ops.mkldnn._convolution_pointwise(maps, packed, None, *arguments, "none", [], ""))
    return ways


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiplications(
    architecture: Architecture, height: int, width: int, classes: int, stride: Stride
) -> tuple[dict[str, int], int]:
    """Multiply-accumulates for one image by stage, named as in `stages`, and the number of places."""
    channels, sides, found = 3, [height, width], {}
    steps = iter(architecture.feature_steps)
    for number, conv in enumerate(architecture.convs, 1):
        step = next(steps)
        sides = [output_size([step], side) for side in sides]
        found[f"conv {number}"] = sides[0] * sides[1] * conv.channels * channels * conv.kernel**2
        channels = conv.channels
        if conv.pool > 1 and number < len(architecture.convs):
            step = next(steps)
            sides = [output_size([step], side) for side in sides]
    reach = architecture.pool * architecture.kernel
    step = 1 if stride == "fine" else architecture.pool
    places = ((sides[0] - reach) // step + 1) * ((sides[1] - reach) // step + 1)
    widths = (*architecture.hidden, classes)
    found["first full layer"] = places * channels * architecture.kernel**2 * widths[0]
    found["other full layers"] = places * sum(a * b for a, b in itertools.pairwise(widths))
    return found, places


def work(architecture: Architecture, height: int, width: int, classes: int, stride: Stride) -> dict[str, int]:
    """The same in sum: the features, the first full layer, the rest; and the places."""
    found, places = multiplications(architecture, height, width, classes, stride)
    first, rest = found.pop("first full layer"), found.pop("other full layers")
    return {"features": sum(found.values()), "first": first, "rest": rest, "places": places}
