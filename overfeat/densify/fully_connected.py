"""The rule of a fully connected layer: over all elements of a window it is a convolution."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import Context, Pair
from overfeat.densify.sliding import slide, slidings
from overfeat.densify.values import Index, Maps, View
from overfeat.densify.weights import Weights


def linear(context: Context, node: Node, x: Maps | View, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A layer over all elements of a window: a convolution of the window's size where all its cells are shared."""
    if not isinstance(x, View) or x.index.elements.dim() != 1 or not x.maps.all_shared:
        return None
    kernel = kernel_of(context.weights, node, weight, x.index)
    if kernel is None:
        return None
    maps, size = x.maps, (kernel.shape[2], kernel.shape[3])
    relu = node in context.relu

    def run(t: Tensor, steps: Pair, taps: Pair) -> Tensor:
        result = F.conv2d(t, kernel, bias, steps, 0, taps)
        return result.relu_() if relu else result

    sliding = slidings(size, (1, 1), (0, 0), (1, 1))
    result = slide(node, maps, sliding, run, borders=context.borders, cells=(1, 1))
    return (result.windows() if isinstance(result, Maps) else result).flatten(1)


def kernel_of(weights: Weights, node: Node, weight: Tensor, index: Index) -> Tensor | None:
    """A linear layer over a view of maps as a convolution's kernel [O, C, h, w]; None where elements occur twice."""
    size, identity = math.prod(index.shape), index.identity  # known before a trace
    if not index.unique:
        return None

    def make() -> Tensor:
        kernel = weight
        if not identity:
            kernel = weight.new_zeros(len(weight), size)
            kernel[:, index.elements.to(weight.device)] = weight
        return kernel.view(len(weight), *index.shape).contiguous(memory_format=torch.channels_last)

    return weights.derived((node, "kernel", weight.device.type), [weight], make)
