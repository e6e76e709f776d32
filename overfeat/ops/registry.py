"""The registry of backends: which implementation of an op runs a call.

A backend is a named set of implementations. "torch" (eager PyTorch) supports every input, "reference" (the steps
of the papers) runs only inside `backend("reference")`, and backends registered later take precedence for the
inputs that they support.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Why a backend does not run an op on inputs of a device, dtype and, for class scores, width; None if it does.
Supports = Callable[[str, torch.device, torch.dtype, int | None], str | None]


@dataclass(frozen=True)
class Backend:
    """A named set of implementations."""

    name: str  # for `backend(name)`
    functions: Mapping[str, Callable[..., Any]]  # by op; their arguments have been checked
    supports: Supports = lambda *_: None  # asked about ops in `functions` only
    note: str = ""  # shown by `overfeat.fast.status()` beside what it runs


_backends: dict[str, Backend] = {}
_override: ContextVar[str | None] = ContextVar("overfeat_backend", default=None)


def register_backend(backend: Backend) -> None:
    """Add a backend; it takes precedence over those registered before for the inputs that it supports."""
    _backends[backend.name] = backend


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Run every op of this thread on one backend inside the block, for comparisons.

    The gradients of an op run on the backend that was in force at its forward pass. Code under torch.compile looks
    at the block around the call; a block inside of it is not supported.

    Args:
        name: "reference" (the steps of the papers, slow), "torch", or the name of a registered backend. None
            leaves the choice to the library, inside another block.

    Raises:
        ValueError: for an unknown name. Inside the block, an op that the backend has raises it for inputs that
            the backend does not support; an op that it does not have runs on another backend.
    """
    if name is not None and name not in _backends:
        raise ValueError(f"no backend {name!r}; there are {', '.join(_backends)}")
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def active_override() -> str | None:
    """The backend of the innermost `backend` block, or None; None while torch.compile traces."""
    return None if torch.compiler.is_compiling() else _override.get()


def backends_of(op: str) -> list[Backend]:
    """The backends that have an op, by precedence."""
    return [b for b in reversed(_backends.values()) if op in b.functions]


def select_backend(op: str, device: torch.device, dtype: torch.dtype, num_classes: int | None = None) -> Backend:
    """The backend that runs an op on such inputs; ValueError if a `backend` block names one that does not."""
    override = active_override()
    if override is not None and op in _backends[override].functions:
        reason = _backends[override].supports(op, device, dtype, num_classes)
        if reason is not None:
            raise ValueError(f"backend {override!r} does not run {op} on {dtype} on {device.type}: {reason}")
        return _backends[override]
    return next(b for b in backends_of(op) if b.supports(op, device, dtype, num_classes) is None)


def implementation(op: str, tensor: Tensor, num_classes: int | None = None) -> Callable:
    """The function that runs an op on inputs of this tensor's device and dtype."""
    return select_backend(op, tensor.device, tensor.dtype, num_classes).functions[op]
