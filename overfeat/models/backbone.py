"""The feature layers of another network, as a module: it runs a `FeatureGraph` on images of any size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import ops
from overfeat.models.feature_graph import FeatureGraph, Op, Pair
from overfeat.models.receptive_field import output_size
from overfeat.regions import region


class FeatureLayers(nn.Module):
    """The maps of images by a graph; padding adds zeros at the border of the images alone.

    Args:
        graph: The operations.
        weights: Copied; None: drawn with He's scaling.
    """

    def __init__(self, graph: FeatureGraph, weights: Sequence[Tensor] | None = None):
        super().__init__()
        self.graph = graph
        self.weights = nn.ParameterList(torch.empty(shape) for shape in graph.weights)
        if weights is None:
            self.init_weights()
        else:
            self.load_state_dict({f"weights.{i}": weight for i, weight in enumerate(weights)})
        self._relu_of = _following_relus(graph)

    @property
    def channels(self) -> int:
        """Number of channels of the maps."""
        return self.graph.channels

    def init_weights(self) -> None:
        """Initialise all weights of convolutions with He's scaling, and biases to 0."""
        for weight in self.weights:
            if weight.is_meta:  # see `initialise`
                continue
            if weight.dim() == 4:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
            else:
                nn.init.zeros_(weight)

    def forward(self, images: Tensor, rows: Pair | None = None, columns: Pair | None = None) -> Tensor:
        """The maps [N, channels, h, w] of normalised images [N, C, H, W].

        rows, columns: (start, stop) of the cells to return, see `FeatureGraph.span`; None: all.
        """
        maps: list[Tensor | None] = [images]
        convolutions = 0
        for number, (op, unused) in enumerate(zip(self.graph.ops, self.graph.last_uses, strict=True), 1):
            convolutions += op.name == "conv2d"
            name = f"conv {convolutions}" if op.name == "conv2d" else f"{op.name} {number}"
            inputs = [m for m in (maps[i] for i in op.inputs) if m is not None]
            if number in self._relu_of.values():
                maps += inputs
            else:
                with region(name):
                    maps.append(self._run(op, inputs, number in self._relu_of))
            for i in unused:
                maps[i] = None
        result = maps[-1]
        assert result is not None
        # A pooling that rounds its size up gives one more, whose window is not the image's.
        spans = (
            span or (0, output_size([self.graph.step], side))
            for span, side in zip((rows, columns), images.shape[2:], strict=True)
        )
        (top, bottom), (left, right) = spans
        return result[:, :, top:bottom, left:right]

    def _run(self, op: Op, inputs: list[Tensor], relu: bool) -> Tensor:
        weights = [self.weights[i] for i in op.weights]
        if op.name == "conv2d":
            return _convolution(inputs[0], weights[0], weights[1] if len(weights) > 1 else None, op.args, relu)
        operands = [inputs] if op.name == "cat" else inputs
        return getattr(torch.ops.aten, op.name)(*operands, *weights, *op.args)


def _following_relus(graph: FeatureGraph) -> dict[int, int]:
    """The operations that are one with the next, by number: convolutions that a ReLU alone sees, and that ReLU."""
    users: dict[int, list[int]] = {}
    for number, op in enumerate(graph.ops, 1):
        for i in op.inputs:
            users.setdefault(i, []).append(number)
    convolutions = [number for number, op in enumerate(graph.ops, 1) if op.name == "conv2d"]
    seen = {number: users[number][0] for number in convolutions if len(users.get(number, ())) == 1}
    return {number: user for number, user in seen.items() if graph.ops[user - 1].name == "relu"}


def _convolution(maps: Tensor, weight: Tensor, bias: Tensor | None, args: tuple, relu: bool) -> Tensor:
    """One with the arguments of an `Op`, and its ReLU; by a backend where that has it."""
    stride, pad, dilation, groups = args
    square = all(len(set(pair)) == 1 for pair in (weight.shape[2:], stride, pad, dilation))
    if square and groups == 1:
        return ops.convolution(maps, weight, bias, stride[0], pad[0], relu, dilation[0])
    maps = F.conv2d(maps, weight, bias, stride, pad, dilation, groups)
    return maps.relu_() if relu else maps
