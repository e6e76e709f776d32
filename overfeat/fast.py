"""Import it, and the library's ops run on what is fastest here: Triton kernels on GPUs, prepared weights on CPUs.

It holds the same names as `overfeat`. `status()` tells what runs where, and why. Nothing is probed
at import: which backend takes a call is decided as it runs.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor

import overfeat
from overfeat import *  # noqa: F403
from overfeat import ops
from overfeat.ops.backends import prepacked

__all__ = [*overfeat.__all__, "Status", "status"]

CAPABILITY = (8, 0)  # of an NVIDIA GPU, at least: below it Triton's matrix products are not what is measured here
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPES_OF_BOXES = (torch.float32, torch.float64)
MOST_CLASSES = 32768  # a row of scores is held in registers


@dataclass(frozen=True)
class Status:
    """What runs one op for one dtype on one device, and why not a faster backend."""

    op: str
    device: str
    dtype: torch.dtype
    backend: str
    why: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.device:32} {self.op:30} {dtype:9} {self.backend:9} {self.why}".rstrip()


class Report(tuple[Status, ...]):
    """Rows of `status()`; printed as a table."""

    def __str__(self) -> str:
        head = f"{'device':32} {'op':30} {'dtype':9} {'backend':9} why"
        return "\n".join([head, *map(str, self)])

    __repr__ = __str__


def status() -> Report:
    """For every op and dtype, what runs it on each device here, and why."""
    rows = []
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        name = device.type if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
        for op in sorted({*TRITON, *PACKED}):
            for dtype in DTYPES_OF_BOXES if op == "merge_boxes" else (*DTYPES, torch.float64):
                rows.append(Status(op, name, dtype, *_runs(op, device, dtype)))
    return Report(rows)


def _runs(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The backend, and why."""
    in_force = f"overfeat.backend({ops.forced()!r}) is in force"
    if ops.forced() == "reference":
        return "reference", in_force
    try:
        # What a backend looks at; no tensor, so that no GPU has to be set up for asking.
        chosen = ops.chosen(op, SimpleNamespace(device=device, dtype=dtype, shape=(1, 1, 4, 4)), 2)
    except ValueError:
        return "none", f"{in_force}, which does not take this"
    if ops.forced() is not None:
        return chosen, in_force if chosen == ops.forced() else f"{in_force}, which does not have it"
    if chosen == "triton":
        return chosen, "interpreted on the CPU (TRITON_INTERPRET=1)" if device.type == "cpu" else "kernels"
    if chosen == "packed":
        return chosen, "weights prepared at their second call"
    reasons = [_why_not_triton(op, device, dtype)]
    if device.type == "cpu" and op in PACKED:
        reasons.append(prepacked.unsupported_reason(dtype))
    return chosen, "; ".join(reason for reason in reasons if reason)


# Triton


def _why_not_triton(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an op's kernels do not run there; None where they do."""
    if not _has_triton():
        return "Triton is not installed"
    if dtype not in (DTYPES_OF_BOXES if op == "merge_boxes" else DTYPES):
        return f"the kernels do not take {str(dtype).removeprefix('torch.')}"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton needs a GPU"
        return "Triton's interpreter gets bfloat16 products wrong" if dtype == torch.bfloat16 else None
    if device.type != "cuda":
        return f"the kernels do not run on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < CAPABILITY:
        return "capability {}.{} is below {}.{}".format(*capability, *CAPABILITY)
    return None


@lru_cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_takes(op: str, maps: Tensor, size: int) -> bool:
    if op == "best_scores" and maps.shape[1] > MOST_CLASSES:
        return False
    return _why_not_triton(op, maps.device, maps.dtype) is None


def _kernel(file: str, name: str) -> Callable:
    """A function of a file in overfeat.kernels, imported as it is first called, run on its tensors' device."""

    def run(first: Tensor | Sequence[Tensor], *rest: object) -> object:
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
            return getattr(importlib.import_module(f"overfeat.kernels.{file}"), name)(first, *rest)

    return run


TRITON = {
    "offset_max_pool": _kernel("offset_pool", "forward"),
    "offset_max_pool_backward": _kernel("offset_pool", "backward"),
    "skip_classifier_flat": _kernel("skip_classifier", "forward"),
    "skip_classifier_flat_backward": _kernel("skip_classifier", "backward"),
    "best_scores": _kernel("best_scores", "forward"),
    "merge_boxes": _kernel("box_merge", "merge"),
}

# PackedWeight weights on the CPU

PACKED = {
    "skip_classifier_flat": prepacked.skip_classifier_flat,
    "convolution": prepacked.convolution,
    "linear": prepacked.linear,
}


def _packed_takes(op: str, maps: Tensor, size: int) -> bool:
    return maps.device.type == "cpu" and prepacked.unsupported_reason(maps.dtype) is None


ops.register_backend("packed", PACKED, _packed_takes)
ops.register_backend("triton", TRITON, _triton_takes)
