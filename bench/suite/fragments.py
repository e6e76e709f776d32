"""Baselines that share work between windows: max-pooling fragments, and the module as a fully convolutional net."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.suite.patch_nets import PatchClassifier


def fragments(net: PatchClassifier, image: Tensor, window: int, stride: int) -> Tensor:
    """Outputs of all windows by max-pooling fragments (Giusti et al. 2013; Bailer et al. 2017): [1, outputs, H, W].

    A layer whose stride would skip windows runs once per offset, on a batch of shifted maps, and the outputs are
    interleaved. The net must be a sequence without padding.
    """
    counts = [(side - window) // stride + 1 for side in image.shape[2:]]
    return _fragments(list(net.features), net, image, window, stride, counts)


def _fragments(
    layers: list[nn.Module], net: PatchClassifier, maps: Tensor, cells: int, stride: int, counts: list[int]
) -> Tensor:
    """Outputs of counts[0] x counts[1] windows of `cells` cells a side, `stride` cells apart."""
    if not layers:
        return _head(net, maps, cells, stride)[:, :, : counts[0], : counts[1]]
    layer, rest = layers[0], layers[1:]
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return _fragments(rest, net, layer(maps), cells, stride, counts)
    kernel, step = (_side(value) for value in (layer.kernel_size, layer.stride))
    cells = (cells - kernel) // step + 1
    common = math.gcd(step, stride)
    splits = step // common
    if splits == 1:
        return _fragments(rest, net, layer(maps), cells, stride // common, counts)
    fewer = [-(-count // splits) for count in counts]
    extents = [(count - 1) * splits * stride + (cells - 1) * step + kernel for count in fewer]
    missing = [
        max(0, (splits - 1) * stride + extent - side) for extent, side in zip(extents, maps.shape[2:], strict=True)
    ]
    maps = F.pad(maps, (0, missing[1], 0, missing[0]))
    shifted = torch.cat([
        maps[:, :, y * stride : y * stride + extents[0], x * stride : x * stride + extents[1]]
        for y in range(splits) for x in range(splits)
    ])  # fmt: skip
    outputs = _fragments(rest, net, layer(shifted), cells, stride // common, fewer)
    outputs = outputs.unflatten(0, (splits, splits, len(maps))).permute(2, 3, 4, 0, 5, 1)
    return outputs.flatten(4, 5).flatten(2, 3)[:, :, : counts[0], : counts[1]]


def fully_convolutional(net: PatchClassifier, image: Tensor, cells: int, stride: int) -> Tensor:
    """The whole image through the features, and the layers after them as convolutions: [1, outputs, H, W].

    Padding sees the neighbours of a window.

    Args:
        cells: of a window's feature maps, along an axis.
        stride: between windows in cells of the feature maps.
    """
    return _head(net, net.features(image), cells, stride)


def _head(net: PatchClassifier, maps: Tensor, cells: int, stride: int) -> Tensor:
    """The layers after the feature maps, at windows of `cells` cells a side, `stride` cells apart."""
    if net.average:
        maps, cells, stride = F.avg_pool2d(maps, cells, stride), 1, 1
    for layer in net.classifier:
        maps = _convolved(layer, maps, cells, stride) if isinstance(layer, nn.Linear) else layer(maps)
        cells = stride = 1
    return torch.cat([_convolved(head, maps, 1, 1) for head in net.heads], dim=1) if net.heads else maps


def _convolved(layer: nn.Linear, maps: Tensor, cells: int, stride: int) -> Tensor:
    """A fully connected layer over cells x cells of the maps, as a convolution."""
    return F.conv2d(maps, layer.weight.unflatten(1, (-1, cells, cells)), layer.bias, stride)


def _side(value: int | tuple[int, int]) -> int:
    return value if isinstance(value, int) else value[0]
