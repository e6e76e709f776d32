"""Built-in nets as plain PyTorch layers, for torch.export and torch.onnx.export.

The operators of `overfeat.ops` are written out: pooling at every offset and the first fully connected layer are a max
pooling of stride 1 and a dilated convolution.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.models.backbone import FeatureLayers
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.geometry import Size, Stride
from overfeat.models.overfeat import OverFeat
from overfeat.models.receptive_field import SlidingWindow


class PlainFeatures(nn.Module):
    """The feature layers: images [N, C, H, W] in 0..255 -> the last, unpooled maps [N, C', h, w].

    Args:
        net: Its weights are shared, not copied.
        margin: (rows, columns) of the net's mean colour that are added on each side of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: OverFeat, margin: Size = (0, 0)):
        super().__init__()
        self.convs, self.specs, self.backbone = net.conv_layers, net.architecture.convs, net.backbone
        self.padding, self.dtype = (margin[1], margin[1], margin[0], margin[0]), net.dtype
        for name in ("mean", "std"):
            values = torch.tensor(getattr(net.architecture, name), dtype=torch.float32, device=net.device)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = ((images.to(torch.float32) - self.mean) / self.std).to(self.dtype)
        if any(self.padding):
            maps = F.pad(maps, self.padding)  # with zeros, which are the mean
        if self.backbone is not None:
            return _run_graph(self.backbone, maps)
        last = len(self.specs) - 1
        for number, (conv, spec) in enumerate(zip(self.convs, self.specs, strict=True)):
            maps = F.conv2d(maps, conv.weight, conv.bias, spec.stride, spec.pad).relu()
            if spec.pool > 1 and number < last:
                maps = F.max_pool2d(maps, spec.pool)
        return maps


def _run_graph(layers: FeatureLayers, images: Tensor) -> Tensor:
    """The maps of a backbone on whole, normalised images."""
    maps = [images]
    for op in layers.graph.ops:
        operands, weights = [maps[i] for i in op.inputs], [layers.weights[i] for i in op.weights]
        if op.name == "conv2d":
            maps.append(F.conv2d(operands[0], weights[0], weights[1] if len(weights) > 1 else None, *op.args))
        else:
            inputs = [operands] if op.name == "cat" else operands
            maps.append(getattr(torch.ops.aten, op.name)(*inputs, *weights, *op.args))
    result = maps[-1]
    if not any(op.name.endswith("_pool2d") and layers.graph.sliding(op)[-1] for op in layers.graph.ops):
        return result
    # A pooling that rounds its size up gives one more, whose window is not the image's.
    for dim, side in ((2, images.shape[2]), (3, images.shape[3])):
        result = _first_cells(result, dim, _output_size(layers.graph.step, side))
    return result


def _output_size(step: SlidingWindow, side: int) -> int:
    """`receptive_field.output_size` of one step and a side that has an output."""
    return (side + 2 * step.pad - step.kernel) // step.stride + 1


def _first_cells(maps: Tensor, dim: int, count: int) -> Tensor:
    # Not a slice: whether that leaves anything out would become part of the exported program.
    return maps.index_select(dim, torch.arange(count, device=maps.device))


class PlainHead(nn.Module):
    """The fully connected layers: the last maps [N, C, h, w] -> logits [N, classes, h', w'].

    Args:
        net: As in `PlainFeatures`.
        stride: "fine" or "coarse".
    """

    def __init__(self, net: OverFeat, stride: Stride = "fine"):
        super().__init__()
        self.layers, self.context = net.fc_layers, net.context
        self.pool, self.step = net.architecture.pool, net.architecture.maps_stride(stride)

    def forward(self, maps: Tensor, context: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of all windows.

        Args:
            maps: Unpooled.
            context, positions: Of a net with context, as in `ContextFeatures`; None: nothing seen.
        """
        hidden = self.first(self.layers[0], maps)
        if self.context is not None and context is not None and positions is not None:
            seen = self.first(self.context, context).permute(0, 2, 3, 1).flatten(0, 2)
            n, channels, height, width = hidden.shape
            seen = seen.index_select(0, positions).view(n, height, width, channels)
            hidden = hidden + seen.permute(0, 3, 1, 2)
        return self.remaining(hidden)

    def first(self, layer: nn.Conv2d, maps: Tensor) -> Tensor:
        """A first fully connected layer over the maps, after their last pooling."""
        return _pooled_conv(layer, maps, self.pool, self.step)

    def remaining(self, hidden: Tensor) -> Tensor:
        """The layers after it."""
        for layer in self.layers[1:]:
            hidden = F.conv2d(hidden.relu(), layer.weight, layer.bias)
        return hidden


class PlainContext(nn.Module):
    """What the positions of a net with context see of their surroundings: what that adds to the first layer's outputs.

    As `dense.context` has it, for images at their own size: the context of each is the image at half its size.

    Args:
        net: As in `PlainFeatures`; `features`, `head`: of it.
        stride: "fine" or "coarse".
    """

    def __init__(self, net: OverFeat, features: PlainFeatures, head: PlainHead, stride: Stride = "fine"):
        super().__init__()
        assert net.context is not None
        self.layer, self.features, self.head = net.context, features, head
        self.stride, self.fine = net.geometry.stride(stride), net.geometry.fine_stride
        self.window, self.margin = net.architecture.window, net.margin[0]
        self.smallest = self.window - 2 * self.margin  # of half a size with a window
        sides = range(max(1, self.smallest), 4 * (self.window + self.fine))
        self.taps = 1 + math.ceil(2 * max(1.0, *(side / self.half_size(side) for side in sides)))

    def forward(self, images: Tensor, counts: Sequence[int]) -> Tensor:
        """Images [N, C, H, W] in 0..255 -> [N, hidden, rows, columns]; counts: the rows and columns of the outputs."""
        halves = [self.half_size(side) for side in images.shape[2:]]
        small = images.to(torch.float32)
        for dim, half in zip((2, 3), halves, strict=True):
            small = resize_dim(small, dim, half, self.taps)
        seen = self.head.first(self.layer, self.features(small))
        for dim, count, half in zip((2, 3), counts, halves, strict=True):
            seen = seen.index_select(dim, self._nearest(images.shape[dim], half, count, seen.shape[dim], seen.device))
        return seen * self._visible(images).to(seen.dtype)

    def half_size(self, side: int) -> int:
        """`round_to_stride` of half a side, and not less than a window needs."""
        minimum = self.window - self.fine * ((self.window - 1) // self.fine)
        return torch.sym_max(self._rounded_half(side), max(minimum, self.smallest))

    def _rounded_half(self, side: int) -> int:
        """In whole numbers, which exporters know: half a side in fine strides from the window, rounded half to even."""
        stride = self.fine
        steps = 2 * (self.window // (2 * stride) + 1)  # whole, so that no negative number is divided
        double = side - 2 * self.window + 2 * steps * stride
        rounded = (double + 3 * stride - 1) // (4 * stride) + (double + stride) // (4 * stride)
        return self.window + stride * (rounded - steps)

    def _nearest(self, side: int, half: int, count: int, cells: int, at: torch.device) -> Tensor:
        """For each output of an axis that of half the size whose window has nearly the same centre: int64 [count]."""
        first = self.window / 2 - self.margin
        centres = (_range(count, at) * self.stride + first) * (_number(half, at) / _number(side, at))
        nearest = ((centres - first) / self.stride).round()
        return torch.minimum(nearest.clamp(min=0), _number(cells, at) - 1).to(torch.int64)

    def _visible(self, images: Tensor) -> Tensor:
        """1, or 0 for images so small that half of them has no window."""
        height, width = (_number(self._rounded_half(side), images.device) >= self.smallest for side in images.shape[2:])
        return height & width


def resize_dim(images: Tensor, dim: int, size: int, taps: int) -> Tensor:
    """One dimension resized as by `data.resize`, bilinear and antialiased, without an operator of its own for that.

    taps: The most pixels that one depends on.
    """
    side, at = images.shape[dim], images.device
    scale = _number(side, at) / _number(size, at)
    centres, support = (_range(size, at) + 0.5) * scale, scale.clamp(min=1)
    seen = (centres - support + 0.5).floor() + _range(taps, at)[:, None]
    pixels = torch.minimum(seen.clamp(min=0), _number(side, at) - 1)
    weights = (1 - (seen + 0.5 - centres).abs() / support).clamp(min=0) * (seen == pixels)
    terms = images.index_select(dim, pixels.to(torch.int64).flatten()).unflatten(dim, (taps, size))
    shape = [1] * dim + [taps, -1] + [1] * (images.dim() - 1 - dim)
    return (terms * (weights / weights.sum(dim=0)).view(shape)).sum(dim=dim)


def _pooled_conv(layer: nn.Conv2d, maps: Tensor, pool: int, step: int) -> Tensor:
    """A layer over maps after a max pooling of stride `step`; dilated where that is less than the pooling's size."""
    pooled = F.max_pool2d(maps, pool, step) if pool > 1 else maps
    return F.conv2d(pooled, layer.weight, layer.bias, dilation=pool // step)


def _range(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device=device)


def _number(value: int, device: torch.device) -> Tensor:
    """A size, which may be a symbol of an exporter's, as a tensor."""
    return torch.scalar_tensor(value, dtype=torch.float32, device=device)


class PlainBoxes(nn.Module):
    """A box regressor's layers: the last, unpooled maps [N, C, h, w] -> codes [N, 4 * k, h', w'].

    Args:
        regressor: Its weights are shared, not copied.
        stride: "fine" or "coarse".
    """

    def __init__(self, regressor: BoxRegressor, stride: Stride = "fine"):
        super().__init__()
        self.layers, self.pooled = regressor.fc_layers, regressor.box_features == "pooled"
        self.pool, self.step = regressor.architecture.pool, regressor.architecture.maps_stride(stride)

    def forward(self, maps: Tensor) -> Tensor:
        first = self.layers[0]
        maps = maps.to(first.weight.dtype)
        if self.pooled:
            hidden = _pooled_conv(first, maps, self.pool, self.step)
        else:
            hidden = F.conv2d(maps, first.weight, first.bias, stride=self.step)
        for layer in self.layers[1:]:
            hidden = F.conv2d(hidden.relu(), layer.weight, layer.bias)
        return hidden


class PlainNet(nn.Module):
    """A built-in net: images [N, C, H, W] in 0..255, at least the window less its margins -> logits [N, classes, h, w].

    As dense evaluation gives them at the images' own size, with the net's context and reach; of float images, which are
    not rounded when they are resized.

    Args:
        net: As in `PlainFeatures`.
        stride: "fine" or "coarse".
        regressor: If given, the result is (logits, codes), see `PlainBoxes`.
    """

    def __init__(self, net: OverFeat, stride: Stride = "fine", regressor: BoxRegressor | None = None):
        super().__init__()
        self.features, self.head = PlainFeatures(net, net.margin), PlainHead(net, stride)
        self.context = None if net.context is None else PlainContext(net, self.features, self.head, stride)
        self.boxes = None if regressor is None else PlainBoxes(regressor, stride)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.features(images)
        hidden = self.head.first(self.head.layers[0], maps)
        if self.context is not None:
            hidden = hidden + self.context(images, hidden.shape[2:])
        logits = self.head.remaining(hidden)
        return logits if self.boxes is None else (logits, self.boxes(maps))
