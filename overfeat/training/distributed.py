"""Processes and devices of a training run: torchrun's process group, sums and errors across processes."""

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from overfeat.errors import ArgumentError, InputError


@contextmanager
def distributed_session(device: str) -> Iterator[torch.device]:
    """Join torchrun's process group (gloo on CPUs, nccl on GPUs) for the length of the block, if torchrun started this.

    Yields the device of this process, see `choose_device`.
    """
    selected = choose_device(device)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if selected.type == "cuda":
        torch.cuda.set_device(selected)
    if world == 1 or dist.is_initialized():
        yield selected
        return
    # DDP imports this module, whose default arguments capture the current process group. Imported before there is a
    # group, it cannot keep gloo's threads alive into the interpreter's exit, where they sometimes abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if selected.type == "cuda" else "gloo")
    try:
        yield selected
    finally:
        gc.collect()  # DDP refers to itself and to the group
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) outside `distributed_session` or without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def choose_device(name: str) -> torch.device:
    """The device of this process; "auto" is a GPU if there is one. Raises ArgumentError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError("device", f"must be auto, cpu, cuda, cuda:1, ..., not {name!r}: no such device") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ArgumentError("device", f"must be a CPU or CUDA device, not {name!r}")
    if not torch.cuda.is_available():
        raise ArgumentError("device", f"cannot be {name}: torch detects no CUDA device; use cpu")
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise InputError(f"{device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in its dicts and lists on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def all_gather(value: Any) -> list:
    """The value of every process, in order of rank; all processes must call it."""
    values: list = [value]
    if dist.is_initialized():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(sums: dict[str, Tensor | float]) -> dict[str, float]:
    """Sums over all processes, key by key; a process may lack keys."""
    result: dict[str, float] = {}
    for of_process in all_gather({key: float(value) for key, value in sums.items()}):
        add(result, of_process)
    return result


def add(sums: dict, more: dict) -> None:
    """Add to running sums, in float64 and without waiting for a GPU."""
    for key, value in more.items():
        value = value.detach().double() if isinstance(value, Tensor) else value
        sums[key] = sums.get(key, 0.0) + value


def rank_zero_only(action: Callable[[], None]) -> None:
    """Run it on rank 0; where it raises InputError there, every process raises it."""
    message = None
    if rank_and_world_size()[0] == 0:
        try:
            action()
        except InputError as error:
            message = str(error)
    message = all_gather(message)[0]
    if message is not None:
        raise InputError(message)
