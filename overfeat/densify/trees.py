"""Arguments of ops: values, and lists, tuples and dicts of them. On these many times faster than torch's pytree."""

from collections.abc import Callable, Iterator
from typing import Any


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with every value replaced by what the function gives."""
    if isinstance(tree, tuple):
        return tuple([map_leaves(function, item) for item in tree])
    if isinstance(tree, list):
        return [map_leaves(function, item) for item in tree]
    if isinstance(tree, dict):
        return {key: map_leaves(function, item) for key, item in tree.items()}
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """Every value."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    else:
        yield tree
