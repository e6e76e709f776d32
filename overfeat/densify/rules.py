"""How ops act on shared values: a rule for every op that keeps windows together.

A rule gets the context, the node and its arguments, of which the first is Maps or a View; it returns None where it
does not apply, and the op then runs on windows one by one, so that the result is exact for every op.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from overfeat import ops
from overfeat.densify.reductions import reduce_cells
from overfeat.densify.sliding import Pair, Sliding, slide
from overfeat.densify.trees import leaves, map_leaves
from overfeat.densify.values import Index, Maps, Shared, View, as_maps, windows_of
from overfeat.densify.weights import Weights
from overfeat.ops.layout import channels_last
from overfeat.ops.max_pool import max_pool

ELEMENTWISE = frozenset((
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "tanh", "silu", "gelu", "elu",
    "celu", "selu", "leaky_relu", "softplus", "mish", "hardshrink", "softshrink", "threshold", "softsign", "clamp",
    "clamp_min", "clamp_max", "neg", "abs", "exp", "expm1", "log", "log1p", "log2", "square", "pow", "sqrt", "rsqrt",
    "reciprocal", "sign", "sin", "cos", "erf", "floor", "ceil", "round", "dropout", "feature_dropout", "alpha_dropout",
    "feature_alpha_dropout", "native_dropout", "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to",
    "_to_copy", "rsub", "nan_to_num", "gt", "lt", "ge", "le", "eq", "ne", "logical_not", "bitwise_not", "trunc",
))  # fmt: skip
BINARY = frozenset((
    "add", "sub", "mul", "div", "maximum", "minimum", "rsub", "pow", "atan2", "fmod", "remainder", "where", "addcmul",
    "gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or",
))  # fmt: skip
LAYOUT = frozenset((
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "_unsafe_view", "chunk",
    "split", "split_with_sizes", "tensor_split", "unbind", "slice", "select", "narrow", "t", "mT", "numpy_T", "movedim",
    "swapaxes", "alias", "channel_shuffle", "pixel_unshuffle", "pixel_shuffle", "flip", "roll", "index_select", "index",
))  # fmt: skip
COPIES = ("contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "lift_fresh_copy")


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


Rule = Callable[..., Any]


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


def slidings(kernel: Pair, stride: Pair, pad: Pair, dilation: Pair) -> tuple[Sliding, Sliding]:
    """For both axes."""
    down, across = (Sliding(*values) for values in zip(kernel, stride, pad, dilation, strict=True))
    return down, across


# Elementwise ops


def elementwise(context: Context, node: Node, x: Maps | View, *args: Any, **kwargs: Any) -> Any:
    """Ops of each number alone."""
    if any(isinstance(a, (Tensor, Sym, *Shared)) for a in (*args, *kwargs.values())):
        return None
    kwargs.pop("device", None)  # the images are where the weights are
    target: Callable = node.target  # type: ignore[assignment]
    if isinstance(x, View):
        maps = elementwise(context, node, x.maps, *args, **kwargs)
        return None if maps is None else View(maps, x.index)
    return x.map(lambda t: target(t, *args, **kwargs))


def batch_norm(
    context: Context,
    node: Node,
    x: Maps,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    *rest: Any,
) -> Any:
    """Batch normalization in evaluation; returns a tuple, as the op of the graph does."""
    if not isinstance(x, Maps):
        return None
    epsilon = rest[-1]
    return (x.map(lambda t: F.batch_norm(t, mean, var, weight, bias, False, 0.0, epsilon)),)


def of_channels(context: Context, node: Node, x: Maps, *args: Any, **kwargs: Any) -> Any:
    """PReLU: a parameter for each channel."""
    if not isinstance(x, Maps) or any(isinstance(a, Shared) for a in args):
        return None
    target: Callable = node.target  # type: ignore[assignment]
    return x.map(lambda t: target(t, *args, **kwargs))


def softmax(context: Context, node: Node, x: Maps, dim: int, *args: Any, **kwargs: Any) -> Any:
    """Over the channels."""
    if not isinstance(x, Maps) or dim % 4 != 1:
        return None
    target: Callable = node.target  # type: ignore[assignment]
    return x.map(lambda t: target(t, dim, *args, **kwargs))


def joined(context: Context, node: Node, *values: Any, **kwargs: Any) -> Any:
    """Ops of several maps, cell by cell, such as a residual sum."""
    target: Callable = node.target  # type: ignore[assignment]
    items = as_maps(values)
    maps = [v for v in items if isinstance(v, Maps)]
    if (len(maps) == 1 and len(items) == 1) or not maps or any(isinstance(v, View) for v in items):
        return None
    if not all(_same_for_all_cells(v) for v in items if isinstance(v, Tensor)):
        return None

    def function(taken: list[Tensor]) -> Tensor:
        mine = iter(taken)
        return target(*(next(mine) if isinstance(v, Maps) else v for v in items), **kwargs)

    return _combined(maps, function)


def _same_for_all_cells(tensor: Tensor) -> bool:
    """Whether a constant has a number for each channel at most."""
    if tensor.dim() == 0:
        return True
    batch = tensor.dim() < 4 or tensor.shape[0] == 1
    return 3 <= tensor.dim() <= 4 and batch and tuple(tensor.shape[-2:]) == (1, 1)


def cat(context: Context, node: Node, values: Sequence[Any], dim: int = 0) -> Any:
    """Concatenation of channels."""
    items = as_maps(values)
    if dim % 4 != 1 or not all(isinstance(v, Maps) for v in items):
        return None
    return _combined(items, lambda taken: torch.cat(taken, dim=3))  # type: ignore[arg-type]


def _combined(maps: Sequence[Maps], function: Callable[[list[Tensor]], Tensor]) -> Maps | Tensor | None:
    """A function of maps whose cells are the same windows' cells; the widest border of them is each window's own."""
    axes = []
    for down_or_across in zip(*(m.axes for m in maps), strict=True):
        first = down_or_across[0]
        if len({(axis.cells, axis.unit, axis.tap) for axis in down_or_across}) > 1:
            return None
        low, high = (max(getattr(axis, name) for axis in down_or_across) for name in ("low", "high"))
        before, after = (max(getattr(axis, name) for axis in down_or_across) for name in ("before", "after"))
        if low + high >= first.cells:
            low, high = first.cells, 0
        offset = min(axis.offset for axis in down_or_across)
        axes.append(replace(first, low=low, high=high, offset=offset, before=before, after=after))
    parts = {}
    for kind_down, down in axes[0].kinds():
        for kind_across, across in axes[1].kinds():
            taken = [m.take(down, across) for m in maps]
            for i, cells in enumerate((down, across)):
                if cells is None:
                    taken = _aligned(taken, 4 + i, [m.axes[i].offset - axes[i].offset for m in maps])
            parts[kind_down, kind_across] = function(taken)
    result = Maps((axes[0], axes[1]), parts, maps[0].grid)
    return result.windows() if axes[0].own and axes[1].own else result


def _aligned(parts: list[Tensor], dim: int, offsets: list[int]) -> list[Tensor]:
    """Shared parts from the same cell on, as long as the shortest."""
    length = min(part.shape[dim] - offset for part, offset in zip(parts, offsets, strict=True))
    return [part.narrow(dim, offset, length) for part, offset in zip(parts, offsets, strict=True)]


# Layout


def layout(context: Context, node: Node, x: Maps | View, *args: Any, **kwargs: Any) -> Any:
    """view, permute, slice, ...: only where the numbers are changes."""
    if any(isinstance(a, (Tensor, *Shared)) for a in leaves((args, kwargs))):
        return None
    if isinstance(x, Maps):
        numbers = torch.arange(math.prod(x.shape)).view(x.shape)
        x = View(x, Index(numbers, x.shape))
    if node not in context.indices:
        context.indices[node] = _indices(node, x.index, args, kwargs)
    views = [View(x.maps, index) if index is not None else None for index in context.indices[node]]
    if any(view is None for view in views):
        return None
    return views if isinstance(node.meta["val"], (tuple, list)) else views[0]


def _indices(node: Node, index: Index, args: Any, kwargs: Any) -> list[Index | None]:
    """The op on the numbers of two windows; None where it mixes the windows."""
    size = math.prod(index.shape)
    numbers = torch.stack([index.numbers, index.numbers + size])
    target: Callable = node.target  # type: ignore[assignment]
    results = target(numbers, *resolve(args, 2), **resolve(kwargs, 2))
    indices: list[Index | None] = []
    for of_windows in results if isinstance(results, (tuple, list)) else [results]:
        apart = of_windows.dim() > 0 and len(of_windows) == 2 and torch.equal(of_windows[1], of_windows[0] + size)
        indices.append(Index(of_windows[0].contiguous(), index.shape) if apart else None)
    return indices


def slice_cells(context: Context, node: Node, x: Maps | View, dim: int = 0, *args: Any) -> Any:
    """A slice: of windows there is only the whole, of maps the cells stay shared, of others see `layout`."""
    rank = node.meta["val"].dim()
    if dim % rank == 0:
        return (
            x
            if not args or (args[0] in (None, 0) and (len(args) == 1 or args[1] is None or args[1] > 1 << 60))
            else None
        )
    shared = (x.as_maps() or x) if isinstance(x, View) else x
    if not isinstance(shared, Maps) or dim % rank < 2:
        return layout(context, node, x, dim, *args)
    start, stop, step = filled(args, None, None, 1)
    starts, steps = [0, 0], [1, 1]
    i = dim % 4 - 2
    starts[i], steps[i] = range(shared.axes[i].cells)[start:stop:step].start, step
    sliding = slidings((1, 1), pair(steps), (-starts[0], -starts[1]), (1, 1))
    return slide(node, shared, sliding, lambda t, s, _: t[..., :: s[0], :: s[1]], borders=context.borders)


# Ops that slide


def conv2d(context: Context, node: Node, x: Maps, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Any:
    """A convolution, with its ReLU."""
    stride, padding, dilation, groups = filled(rest, 1, 0, 1, 1)
    kernel, stride, dilation = (weight.shape[2], weight.shape[3]), pair(stride), pair(dilation)
    if padding == "same":
        pads = [e * (k - 1) for k, e in zip(kernel, dilation, strict=True)]
        low = (pads[0] // 2, pads[1] // 2)
    else:
        low = (0, 0) if padding == "valid" else pair(padding)
    relu = node in context.relu

    def run(t: Tensor, steps: Pair, taps: Pair) -> Tensor:
        t = channels_last(t)
        if groups == 1 and steps[0] == steps[1] and taps[0] == taps[1]:
            return ops.convolution(t, weight, bias, steps[0], 0, relu=relu, dilation=taps[0])
        result = F.conv2d(t, weight, bias, steps, 0, taps, groups)
        return result.relu_() if relu else result

    return slide(node, x, slidings(kernel, stride, low, dilation), run, borders=context.borders)


def max_pool2d(
    context: Context, node: Node, x: Maps, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """Max pooling of any stride; cells beyond the border never win."""
    kernel = pair(kernel)
    sliding = slidings(kernel, pair(stride or kernel), pair(padding), pair(dilation))
    return slide(node, x, sliding, lambda t, s, d: max_pool(t, kernel, s, d), borders=context.borders, fill=-math.inf)


def max_pool2d_with_indices(context: Context, node: Node, x: Maps, *args: Any) -> Any:
    """Its values; None if the indices are used."""
    if any(user.args[1] != 0 for user in node.users):
        return None
    inner = next(user for user in node.users)
    return (max_pool2d(context, inner, x, *args),)


def avg_pool2d(context: Context, node: Node, x: Maps, kernel: Any, *rest: Any) -> Any:
    """Average pooling, one axis after the other, each as a convolution of every channel."""
    stride, padding, _, count_include_pad, divisor_override = filled(rest, (), 0, False, True, None)
    kernel, padding = pair(kernel), pair(padding)
    stride = pair(stride or kernel)
    if kernel == tuple(axis.cells for axis in x.axes) and not any(padding) and not divisor_override:
        return mean(context, node, x, [2, 3], True)
    scale = []
    for i, axis in enumerate(x.axes):
        k, p = kernel[i], padding[i]
        firsts = [stride[i] * j - p for j in range(node.meta["val"].shape[2 + i])]
        end = axis.cells + (p if count_include_pad else 0)
        counted = [min(f + k, end) - (f if count_include_pad else max(f, 0)) for f in firsts]
        scale.append([1.0] * len(firsts) if divisor_override else [k / count for count in counted])
    sliding = slidings(kernel, stride, padding, (1, 1))
    size = math.prod(kernel)
    factor = size / divisor_override if divisor_override else 1.0

    def run(t: Tensor, s: Pair, d: Pair) -> Tensor:
        channels = t.shape[1]
        down = t.new_full((channels, 1, kernel[0], 1), factor / kernel[0])
        across = t.new_full((channels, 1, 1, kernel[1]), 1 / kernel[1])
        t = F.conv2d(t, down, None, (s[0], 1), 0, (d[0], 1), channels)
        return F.conv2d(t, across, None, (1, s[1]), 0, (1, d[1]), channels)

    return slide(node, x, sliding, run, borders=context.borders, scale=scale)


def adaptive_avg_pool2d(context: Context, node: Node, x: Maps, size: Any) -> Any:
    """To one cell, or to bins of one size."""
    cells, bins = [axis.cells for axis in x.axes], pair(size)
    if bins == (1, 1):
        return mean(context, node, x, [2, 3], True)
    if tuple(cells) == bins:
        return x
    if any(c % b for c, b in zip(cells, bins, strict=True)):
        return None
    return avg_pool2d(context, node, x, [c // b for c, b in zip(cells, bins, strict=True)])


def adaptive_max_pool2d(context: Context, node: Node, x: Maps, size: Any) -> Any:
    """To one cell."""
    if pair(size) != (1, 1) or any(user.args[1] != 0 for user in node.users):
        return None
    return (reduce_cells(x, torch.maximum)[..., None, None],)


def constant_pad(
    context: Context, node: Node, x: Maps, pads: Sequence[int], mode: Any = "constant", value: float | None = None
) -> Any:
    """Padding by a constant, or cropping by a negative one."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode != "constant" or len(pads) not in (2, 4):
        return None
    left, _, top, _ = (*pads, 0, 0)[:4]
    sliding = slidings((1, 1), (1, 1), (top, left), (1, 1))
    return slide(node, x, sliding, lambda t, s, _: t[..., :: s[0], :: s[1]], borders=context.borders, fill=value or 0.0)


def mean(context: Context, node: Node, x: Maps, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """Over all cells: windows one by one."""
    if dim is None or sorted(d % 4 for d in dim) != [2, 3] or dtype is not None:
        return None
    result = reduce_cells(x, torch.add) / (x.axes[0].cells * x.axes[1].cells)
    return result[..., None, None] if keepdim else result


def maximum_of_cells(context: Context, node: Node, x: Maps, dim: Any = (), keepdim: bool = False) -> Any:
    """Over all cells: windows one by one."""
    if sorted(d % 4 for d in dim) != [2, 3]:
        return None
    result = reduce_cells(x, torch.maximum)
    return result[..., None, None] if keepdim else result


# Fully connected layers


def linear(context: Context, node: Node, x: Maps | View, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A layer over all numbers of a window: a convolution of the window's size where all its cells are shared."""
    if not isinstance(x, View) or x.index.numbers.dim() != 1 or not x.maps.all_shared:
        return None
    kernel = kernel_of(context.weights, node, weight, x.index)
    if kernel is None:
        return None
    maps, size = x.maps, (kernel.shape[2], kernel.shape[3])
    windows = _OneCell(node, int(node.meta["val"].shape[1]))
    relu = node in context.relu

    def run(t: Tensor, steps: Pair, taps: Pair) -> Tensor:
        result = F.conv2d(t, kernel, bias, steps, 0, taps)
        return result.relu_() if relu else result

    result = slide(windows, maps, slidings(size, (1, 1), (0, 0), (1, 1)), run, borders=context.borders)  # type: ignore[arg-type]
    return (result.windows() if isinstance(result, Maps) else result).flatten(1)


class _OneCell:
    """Stands for a node whose output is a map of one cell."""

    def __init__(self, node: Node, channels: int):
        self.target, self.meta = node.target, {**node.meta, "val": torch.empty(1, channels, 1, 1, device="meta")}


def kernel_of(weights: Weights, node: Node, weight: Tensor, index: Index) -> Tensor | None:
    """A linear layer over a view of maps as a convolution's kernel [O, C, h, w]; None where numbers occur twice."""
    size = math.prod(index.shape)
    if not index.unique:
        return None

    def make() -> Tensor:
        kernel = weight
        if not index.identity:
            kernel = weight.new_zeros(len(weight), size)
            kernel[:, index.numbers.to(weight.device)] = weight
        return kernel.view(len(weight), *index.shape).contiguous(memory_format=torch.channels_last)

    return weights.derived((node, "kernel", weight.device.type), [weight], make)


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
    """The op by its rule; None where it must run on windows one by one."""
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
    """Arguments with windows one by one in place of shared values."""
    return map_leaves(windows_of, tree)
