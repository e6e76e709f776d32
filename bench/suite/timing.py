"""The time of a call on a GPU alone, and the arithmetic of float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

FLUSH_BYTES = 1 << 28  # overwritten before a call, so that nothing is left in the L2 cache
CYCLES = 2_000_000_000  # of the GPU's clock in a second, at most
MAX_DELAY = 0.02  # seconds that the GPU waits while the host queues a call


class ColdTimer:
    """Times calls on a GPU from a cold L2 cache.

    The GPU waits before the call for as long as the host needs to queue it, so that the host's time does not count.
    """

    def __init__(self, device: torch.device):
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self.flush = torch.empty(max(4 * cache, FLUSH_BYTES), dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object], once: float) -> float:
        """Seconds of a call that takes `once` with the host's time."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(int(CYCLES * min(once, MAX_DELAY)))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3


@contextmanager
def arithmetic(dtype: torch.dtype | str) -> Iterator[None]:
    """Inside the block, with "tf32", GEMMs and convolutions of float32 use 10-bit mantissas."""
    if dtype != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def dtype_name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Of tensors: "tf32" is arithmetic on float32."""
    return dtype if isinstance(dtype, torch.dtype) else torch.float32 if dtype == "tf32" else getattr(torch, dtype)
