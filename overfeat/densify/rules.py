"""How ops act on shared values: a rule for every op that keeps windows together.

A rule gets the context, the node and its arguments, of which the first is Maps or a View; it returns None where it
does not apply, and the op then runs on a batch of windows, so that the result is exact for every op.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Context
from overfeat.densify.convolutions import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    constant_pad,
    conv2d,
    max_pool2d,
    max_pool2d_with_indices,
)
from overfeat.densify.elementwise import BINARY, ELEMENTWISE, batch_norm, cat, elementwise, joined, of_channels, softmax
from overfeat.densify.fully_connected import linear
from overfeat.densify.reductions import maximum_of_cells, mean
from overfeat.densify.trees import map_leaves
from overfeat.densify.values import Shared, View, windows_of
from overfeat.densify.views import LAYOUT, layout, slice_cells

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "_native_batch_norm_legit_no_training": batch_norm, "prelu": of_channels, "_prelu_kernel": of_channels,
    "softmax": softmax, "_softmax": softmax, "log_softmax": softmax, "_log_softmax": softmax, "cat": cat,
    **dict.fromkeys(LAYOUT, layout), "slice": slice_cells,
    "conv2d": conv2d, "max_pool2d": max_pool2d, "max_pool2d_with_indices": max_pool2d_with_indices,
    "avg_pool2d": avg_pool2d, "adaptive_avg_pool2d": adaptive_avg_pool2d, "_adaptive_avg_pool2d": adaptive_avg_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d, "pad": constant_pad, "constant_pad_nd": constant_pad, "mean": mean,
    "amax": maximum_of_cells, "linear": linear,
}  # fmt: skip
TAKES_VIEWS = frozenset((*LAYOUT, *ELEMENTWISE, "linear", "slice"))


def apply_rule(context: Context, node: Node, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The op by its rule; None where it must run on a batch of windows."""
    if name in BINARY and sum(isinstance(a, Tensor) or isinstance(a, Shared) for a in args) > 1:
        return joined(context, node, *args, **kwargs)
    rule = RULES.get(name) or (elementwise if name in BINARY else None)
    if rule is None:
        return None
    if isinstance(args[0], View) and name not in TAKES_VIEWS:
        maps = args[0].as_maps()
        if maps is None:
            return None
        args = (maps, *args[1:])
    return rule(context, node, *args, **kwargs)


def windows_only(tree: Any) -> Any:
    """Arguments with batches of windows in place of shared values."""
    return map_leaves(windows_of, tree)
