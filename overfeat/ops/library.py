"""Operators of torch.library.

As `torch.library.custom_op` makes them, but a call does not import torch's compiler, of 100 MiB and a second, where
nothing else has.
"""

import sys
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any

import torch

# Cached tables would lie in the graph's memory pool, so torch.compile's CUDA graphs must leave the ops out.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)


class Operator:
    """An operator `torch.ops.NAMESPACE.NAME`: a function of tensors that changes none of them.

    Args:
        name: NAMESPACE::NAME.
        function: Its annotations make the schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self._function = name, function
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), tags=TAGS)

        @wraps(function)
        def run(*arguments: Any) -> Any:
            return (self._disabled if "torch._dynamo" in sys.modules else function)(*arguments)

        torch.library.impl(name, "CompositeExplicitAutograd")(run)
        self._backward: Callable[..., Any] = self._no_gradient
        self._setup: Callable[..., None] = lambda context, inputs, output: None
        torch.library.register_autograd(
            name, lambda context, *gradients: self._backward(context, *gradients),
            setup_context=lambda ctx, inputs, output: self._setup(ctx, inputs, output),
        )  # fmt: skip

    @cached_property
    def _disabled(self) -> Callable[..., Any]:
        """The function, of whose frames torch.compile keeps off."""
        return torch.compiler.disable(self._function)

    def _no_gradient(self, context: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{self.name} has no gradient; detach its inputs")

    def register_fake(self, function: Callable[..., Any]) -> None:
        """The shapes, dtypes and strides of the results, for tensors without values."""
        torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """See `torch.library.register_autograd`."""
        self._backward, self._setup = backward, setup_context


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator that makes an `Operator` of a function."""
    return lambda function: Operator(name, function)
