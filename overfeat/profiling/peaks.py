"""Measured peaks of the machine: matrix multiplication, convolution, memory copy."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.profiling.measure import seconds, synchronize

GEMM_SIZES = (1024, 2048, 4096)  # sides of the square matrices
# Channels, side of the maps and kernel of the convolutions: those of the nets at large scales.
CONVOLUTIONS = ((512, 64, 3), (1024, 32, 3), (256, 96, 5))
COPY_BYTES = 1 << 28
GPU_FACTOR = 4  # on a GPU matrices' sides and copied bytes are larger by this
GPU_BATCH = 32  # images in a convolution there


def measured_peaks(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 3) -> dict[str, float]:
    """The best rates that eager PyTorch reaches on this device, the roofline of every other rate.

    {"gemm", "convolution": FLOP/s, the best of a few sizes, "copy": bytes/s, read and written}. Sizes are larger on a
    GPU, where launch times would count.
    """
    larger, images = (GPU_FACTOR, GPU_BATCH) if device.type == "cuda" else (1, 1)

    def timed(run: Callable[[], object]) -> float:
        def run_all() -> None:
            run()
            synchronize(device)

        return seconds(run_all, repeats)["median"]

    best = {"gemm": 0.0, "convolution": 0.0}
    with torch.no_grad():
        for side in (larger * side for side in GEMM_SIZES):
            a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            best["gemm"] = max(best["gemm"], 2 * side**3 / timed(partial(torch.matmul, a, b)))
        for channels, side, kernel in CONVOLUTIONS:
            maps = torch.randn(images, channels, side, side, device=device, dtype=dtype)
            weight = torch.randn(channels, channels, kernel, kernel, device=device, dtype=dtype)
            maps, weight = (t.to(memory_format=torch.channels_last) for t in (maps, weight))
            work = 2 * images * channels**2 * kernel**2 * (side - kernel + 1) ** 2
            rate = work / min(timed(run) for run in _convolutions(maps, weight))
            best["convolution"] = max(best["convolution"], rate)
    source = torch.ones(larger * COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {**best, "copy": 2 * source.nbytes / timed(lambda: target.copy_(source))}


def _convolutions(maps: Tensor, weight: Tensor) -> list[Callable[[], object]]:
    """Implementations of a plain convolution: torch's and, on a CPU with oneDNN, one with pre-packed weights."""
    runs: list[Callable[[], object]] = [lambda: F.conv2d(maps, weight)]
    if maps.device.type == "cpu" and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        with suppress(RuntimeError):  # oneDNN does not support the type here
            plain = weight.contiguous().to_mkldnn()
            geometry = [0, 0], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
            pack = torch._C._nn.mkldnn_reorder_conv2d_weight
            packed = pack(plain, *geometry, list(maps.shape))  # type: ignore[call-arg]
            runs.append(lambda: torch.ops.mkldnn._convolution_pointwise(maps, packed, None, *geometry, "none", [], ""))
    return runs
