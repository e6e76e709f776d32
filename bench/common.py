"""What every run shares: where results go, memory, and writing them."""

import json
from pathlib import Path

import torch

from overfeat.files import replacing
from overfeat.measuring import machine, seconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def matrix_product_rate(size: int = 4096, repeats: int = 5) -> float:
    """FLOP/s of a large float32 matrix product on the CPU, median."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / seconds(lambda: a @ b, repeats)["median"]


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
