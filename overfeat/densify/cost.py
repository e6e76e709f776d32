"""MACs and memory of a run, from the same interpreter on the meta device."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from overfeat.densify.interpreter import Interpreter, Observer
from overfeat.densify.values import Shared, View, WindowGrid
from overfeat.models.geometry import Size

META = torch.device("meta")


class Meter(TorchDispatchMode):
    """Counts the MACs of all ops inside the block, and the bytes of the tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # imports Triton

        self._flops = flop_registry
        self.macs = self.alive = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self._flops:
            self.macs += self._flops[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self._storages.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size


@dataclass
class Cost:
    """The cost of a run.

    Attributes:
        macs: By node.
        ends: The nodes from which on each window is computed on its own, and why.
        axes: Of every node whose value windows share.
    """

    macs: dict[Node, int] = field(default_factory=dict)
    ends: dict[Node, str] = field(default_factory=dict)
    axes: dict[Node, Any] = field(default_factory=dict)


def measure(interpreter: Interpreter, grid: WindowGrid, size: Size) -> Cost:
    """The cost of a program on images of (height, width) with these windows."""
    cost, meter, before = Cost(), Meter(), 0
    program = interpreter.program

    def started(node: Node) -> None:
        nonlocal before
        before = meter.macs

    def ended(node: Node, value: Any, reason: str | None) -> None:
        cost.macs[node] = meter.macs - before
        if reason is not None:
            cost.ends[node] = reason
        if isinstance(value, Shared):
            cost.axes[node] = value.maps.axes if isinstance(value, View) else value.axes

    with torch.no_grad(), meter:
        dtype = program.weights.dtype or program.dtype
        images = torch.empty(grid.images, program.channels, *size, device=META, dtype=dtype)
        values = interpreter.start(images, grid)
        interpreter.run(values, program.nodes, grid.num_windows, META, observer=Observer(started, ended))
    return cost
