"""`overfeat` on fast backends: fused Triton kernels on GPUs, pre-packed weights on CPUs.

Importing it registers the backends; it has the same public names as `overfeat`. `status()` reports what runs where,
and why; `capture` makes a classification one CUDA graph. Importing probes no device: the backend is selected at each
call.
"""

from dataclasses import dataclass

import torch

import overfeat
from overfeat import *  # noqa: F403
from overfeat.classification.graphs import CapturedClassifier, capture
from overfeat.ops.backends import numba_modules, prepacked, triton
from overfeat.ops.registry import active_override, backends_of, register_backend, select_backend

__all__ = ["CapturedClassifier", "Status", "capture", "status"]
__all__ += overfeat.__all__  # in this form for type checkers

register_backend(prepacked.BACKEND)
register_backend(triton.BACKEND)
register_backend(triton.FILTERING)

FAST_OPS = tuple(sorted({*prepacked.BACKEND.functions, *triton.BACKEND.functions}))


@dataclass(frozen=True)
class Status:
    """The backend that runs one op for one dtype on one device, and why no faster one does."""

    op: str
    device: str
    dtype: torch.dtype
    backend: str
    reason: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.device:32} {self.op:30} {dtype:9} {self.backend:9} {self.reason}".rstrip()


class Report(tuple[Status, ...]):
    """Rows of `status()`; printed as a table, with `note` below it where something makes all of them slower."""

    note = ""

    def __str__(self) -> str:
        head = f"{'device':32} {'op':30} {'dtype':9} {'backend':9} reason"
        return "\n".join([head, *map(str, self), *filter(None, [self.note])])

    __repr__ = __str__


def status() -> Report:
    """For every op and dtype, the backend that runs it on each device of this machine, and why."""
    rows = []
    for device in (torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))):
        name = device.type if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
        for op in FAST_OPS:
            for dtype in triton.BOX_DTYPES if op == "merge_boxes" else (*triton.DTYPES, torch.float64):
                rows.append(Status(op, name, dtype, *_explain(op, device, dtype)))
    report = Report(rows)
    if problem := numba_modules.numba_problem():
        report.note = f'{problem}: eager PyTorch does its work on CPUs, slower; pip install "overfeat[boxes]"'
    return report


def _explain(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The name of the backend, and the reason."""
    try:
        selected = select_backend(op, device, dtype)
    except ValueError as error:
        return "none", str(error)
    override = active_override()
    if override is not None:
        reason = f"overfeat.backend({override!r}) is in force"
        return selected.name, reason if selected.name == override else f"{reason}, which does not have it"
    refusals = [backend.supports(op, device, dtype, None) for backend in backends_of(op)]
    return selected.name, selected.note or "; ".join(r for r in refusals if r)
