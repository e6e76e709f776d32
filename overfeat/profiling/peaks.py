"""Measured peaks of the machine: matrix multiplication, convolution, memory copy."""

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.profiling.measure import seconds, synchronize

PRODUCTS = (1024, 2048, 4096)  # sides of the square matrices that are multiplied for a ceiling
# Channels, side of the maps and kernel of the convolutions: those of the nets at large scales.
CONVOLUTIONS = ((512, 64, 3), (1024, 32, 3), (256, 96, 5))
COPIED = 1 << 28  # bytes
LARGER = 4  # times, on a GPU: the sides of the products, and the bytes
BATCH = 32  # images in a convolution there


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
