"""What rules need beside values, and arguments of ops."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from overfeat.densify.trees import map_leaves
from overfeat.densify.values import Index
from overfeat.densify.weights import Weights

Pair = tuple[int, int]


@dataclass
class Sym:
    """A number that depends on the number of windows."""

    of: Callable[[int], Any]


@dataclass
class Context:
    """What the rules need beside values.

    Attributes:
        borders: "exact", "neighbours" or "refuse".
        weights: Of the module.
        indices: Of views, by node: they depend on the module alone.
        relu: Convolutions and linear layers that also run the ReLU that follows them.
    """

    borders: str
    weights: Weights
    indices: dict[Node, list[Index | None]] = field(default_factory=dict)
    relu: Collection[Node] = frozenset()


def resolve(tree: Any, count: int) -> Any:
    """Arguments in which the number of windows is `count`."""
    return map_leaves(lambda v: v.of(count) if isinstance(v, Sym) else v, tree)


def pair(value: int | Sequence[int]) -> Pair:
    """An argument for both axes."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def filled(arguments: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    """Arguments of an op, with the defaults of those that are left out."""
    return (*arguments, *defaults[len(arguments) :])
