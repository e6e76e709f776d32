"""GEMMs of torch's library: float32 sums, as in our own kernels, and chunks that bound the memory of their operands."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_BUFFER = 256 << 20  # bytes of an operand that is made for a GEMM and read once
_REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
_lock = threading.Lock()


@contextmanager
def float32_sums() -> Iterator[None]:
    """Sum 16-bit GEMMs in float32 inside the block, which one thread enters at a time.

    By default torch lets cuBLAS add the partial sums of a split GEMM in 16 bits, rounded, and infinite where the sum is
    not. GEMMs of float32 keep the precision of torch's own setting.
    """
    settings = torch.backends.cuda.matmul
    with _lock:
        # Recent versions of torch have a second setting, which assigning one value would reset.
        before = {name: (getattr(settings, name), getattr(settings, f"{name}_split_k", None)) for name in _REDUCED}
        try:
            for name, (_, split_k) in before.items():
                setattr(settings, name, False if split_k is None else (False, split_k))
            yield
        finally:
            for name, (allowed, split_k) in before.items():
                setattr(settings, name, allowed if split_k is None else (allowed, split_k))


def chunks(total: int, limit: int, multiple: int) -> list[tuple[int, int]]:
    """Start and stop of equal chunks of a range, of at most `limit` each and at least 1.

    Chunks but the last are multiples of `multiple` if the limit is one or more of it.
    """
    limit = max(1, limit // multiple * multiple if limit >= multiple else limit)
    equal = -(-total // max(1, -(-total // limit)))
    size = max(1, min(limit, -(-equal // multiple) * multiple))
    return [(start, min(start + size, total)) for start in range(0, total, size)]
