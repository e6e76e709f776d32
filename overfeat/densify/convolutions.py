"""Rules of ops that slide over maps: convolutions, poolings, padding."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from overfeat import ops
from overfeat.densify.context import Context, Pair, filled, pair
from overfeat.densify.reductions import mean, reduce_cells
from overfeat.densify.sliding import Sliding, output_cells, slide, slidings
from overfeat.densify.values import Maps
from overfeat.ops.layout import channels_last
from overfeat.ops.max_pool import max_pool


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
    return (max_pool2d(context, node, x, *args),)


def avg_pool2d(context: Context, node: Node, x: Maps, kernel: Any, *rest: Any) -> Any:
    """Average pooling, one axis after the other, each as a convolution of every channel."""
    stride, padding, _, count_include_pad, divisor_override = filled(rest, (), 0, False, True, None)
    kernel, padding = pair(kernel), pair(padding)
    stride = pair(stride or kernel)
    if kernel == tuple(axis.cells for axis in x.axes) and not any(padding) and not divisor_override:
        return mean(context, node, x, [2, 3], True)
    sliding = slidings(kernel, stride, padding, (1, 1))
    size = math.prod(kernel)
    factor = size / divisor_override if divisor_override else 1.0

    def run(t: Tensor, s: Pair, d: Pair) -> Tensor:
        channels = t.shape[1]
        down = t.new_full((channels, 1, kernel[0], 1), factor / kernel[0])
        across = t.new_full((channels, 1, 1, kernel[1]), 1 / kernel[1])
        t = F.conv2d(t, down, None, (s[0], 1), 0, (d[0], 1), channels)
        return F.conv2d(t, across, None, (1, s[1]), 0, (1, d[1]), channels)

    if context.borders == "neighbours" and not (count_include_pad or divisor_override):
        counts = slide(node, x.map(lambda t: torch.ones_like(t[:, :1])), sliding, run, borders=context.borders)
        return _divided(slide(node, x, sliding, run, borders=context.borders), counts)
    scale = None
    if not divisor_override:
        scale = [_scale(node, i, s, x.axes[i].cells, count_include_pad) for i, s in enumerate(sliding)]
    return slide(node, x, sliding, run, borders=context.borders, scale=scale)


def _scale(node: Node, i: int, sliding: Sliding, cells: int, count_include_pad: bool) -> list[float]:
    """What an average over a whole kernel is to be multiplied by, for each output cell along axis i."""
    kernel, pad = sliding.kernel, sliding.pad
    firsts = [sliding.stride * j - pad for j in range(output_cells(node)[i])]
    if count_include_pad:
        return [kernel / (min(first + kernel, cells + pad) - first) for first in firsts]
    return [kernel / (min(first + kernel, cells) - max(first, 0)) for first in firsts]


def _divided(maps: Maps | Tensor, counts: Maps | Tensor) -> Maps:
    """Averages, by the fractions of their kernels that lie in the image."""
    assert isinstance(maps, Maps) and isinstance(counts, Maps)
    return Maps(maps.axes, {kinds: part / counts.parts[kinds] for kinds, part in maps.parts.items()}, maps.grid)


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
