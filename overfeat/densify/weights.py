"""The weights of a converted module, shared with it, and forms of them that are made once."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn


class Weights(nn.Module):
    """Parameters and buffers under their names in the module; they are the module's own tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def add(self, name: str, tensor: Any) -> str:
        """Register a tensor, and return its name."""
        owner: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)
        return name

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` copies: derived forms are made again."""
        return self.__dict__ | {"_derived": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all tensors in place, so that the module's go with them, its buffers too."""
        before = [(m, name, buffer) for m in self.modules() for name, buffer in m._buffers.items()]
        super()._apply(fn, recurse)
        for m, name, buffer in before:
            moved = m._buffers[name]
            if buffer is not None and moved is not None:
                buffer.data, m._buffers[name] = moved, buffer
        return self

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the first floating-point parameter or buffer; None without one."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), None)

    def value(self, name: str) -> Tensor:
        """The tensor of this name as it is now."""
        owner: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner._parameters[leaf] if leaf in owner._parameters else owner._buffers[leaf]  # type: ignore[return-value]

    def derived(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` makes of these tensors, made again where one of them has changed or moved.

        The result is one object for as long as they stay, which pre-packing needs.
        """
        if torch.compiler.is_compiling():  # traced tensors have no addresses
            return make()
        state = tuple(_state(t) for t in sources)
        known = self._derived.get(key)
        if known is None or known[0] != state:
            with torch.no_grad():
                known = state, make()
            self._derived[key] = known
        return known[1]


def _state(tensor: Tensor) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    pointer = 0 if tensor.device.type == "meta" else tensor.data_ptr()
    return id(tensor), version, pointer, tensor.dtype, tensor.device
