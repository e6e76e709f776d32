"""A converted module on whole images as plain PyTorch layers, for torch.export and torch.onnx.export."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from overfeat.densify.context import Pair
from overfeat.densify.export import is_number, label
from overfeat.densify.fully_connected import kernel_of
from overfeat.densify.interpreter import Interpreter
from overfeat.densify.net import DensifiedNet
from overfeat.densify.rules import apply_rule
from overfeat.densify.sliding import slide, slidings
from overfeat.densify.trees import leaves, map_leaves
from overfeat.densify.values import Maps, Shared, View, WindowGrid, to_plain
from overfeat.densify.views import COPIES
from overfeat.errors import ArgumentError, InputError
from overfeat.models.geometry import Size, Stride

MEANS = ("mean", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d")


class PlainDensified(nn.Module):
    """A converted module: images [N, C, H, W] in 0..255, at least the window -> its outputs [N, numbers, h, w] each.

    Equal to `net(images, stride)`. All windows share all maps, and fully connected layers are convolutions.

    Args:
        net: Its weights are shared, not copied. Raises ArgumentError for one with exact borders whose module pads, and
            InputError for operations that windows do not share.
        stride: As in `DensifiedNet.forward`.
        margin: (rows, columns) of the net's mean colour that are added on each side of the images.
    """

    def __init__(self, net: DensifiedNet, stride: Stride = "coarse", margin: Size = (0, 0)):
        super().__init__()
        self.padding = (margin[1], margin[1], margin[0], margin[0])
        self.weights, self.program = net.weights, net.program
        self.normalise, self.stride = net.normalise, net.geometry.stride(stride)
        if any(side for sides in net.halo for side in sides) and net.borders != "neighbours":
            remedy = 'and its module pads; export net.with_borders("neighbours"), whose scores differ'
            raise ArgumentError("borders", f"must be neighbours: they are {net.borders}, {remedy}")
        self._interpreter = Interpreter(net.program, "neighbours", fuse=False)
        with torch.no_grad():  # fills in what depends on the module alone
            self(torch.zeros(2, net.in_channels, *net.geometry.window, device=net.device))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Where all windows share all maps, nothing depends on their number.
        grid = WindowGrid(1, (1, 1), self.stride)
        images = self.normalise(images)
        if any(self.padding):
            images = F.pad(images, self.padding)  # with zeros, which are the mean
        values = self._interpreter.start(images, grid)
        for node in self.program.nodes:
            if node not in self._interpreter.constants:
                values[node] = self._value(node, values, images)
        sides = zip(images.shape[2:], self.program.window, strict=True)
        counts = [(side - window) // self.stride + 1 for side, window in sides]
        return tuple(_one_cell(values[node], counts) for node in self.program.outputs)

    def _value(self, node: Node, values: dict, images: Tensor) -> object:
        """A node's value: shared by all windows, or a number."""
        interpreter, name = self._interpreter, self._interpreter.names[node]

        def value(argument: object) -> object:
            if not isinstance(argument, Node):
                return argument
            return values[argument] if argument in values else interpreter.constant(argument, images.device)

        args, kwargs = map_leaves(value, node.args), map_leaves(value, dict(node.kwargs))
        first = args[0] if args else None
        if is_number(node) or (not any(isinstance(a, Shared) for a in args) and name != "cat"):
            return interpreter._node(node, values, 1, images.device)[0]
        if name in COPIES:
            return first
        result = None
        if name in MEANS and isinstance(first, Maps) and max(node.meta["val"].shape[2:], default=1) == 1:
            result = _mean(node, first)
        elif name == "linear" and isinstance(first, Shared):
            result = self._linear(node, first, *args[1:])
        if result is None:
            result = apply_rule(interpreter.context, node, name, args, kwargs)
        if not any(isinstance(v, Shared) for v in leaves(result)):
            raise InputError(f"{label(node)} mixes all cells of a window, which a fully convolutional net cannot")
        return result

    def _linear(self, node: Node, x: Maps | View, weight: Tensor, bias: Tensor | None = None) -> Maps | None:
        """A fully connected layer as a convolution: maps with one cell for each window."""
        maps, kernel = x, weight[..., None, None]
        if isinstance(x, View):
            ordered = kernel_of(self.weights, node, weight, x.index) if x.index.elements.dim() == 1 else None
            if ordered is None:
                return None
            maps, kernel = x.maps, ordered
        assert isinstance(maps, Maps)

        def run(t: Tensor, steps: Pair, taps: Pair) -> Tensor:
            return F.conv2d(t, kernel, bias, steps, 0, taps)

        sliding = slidings((kernel.shape[2], kernel.shape[3]), (1, 1), (0, 0), (1, 1))
        result = slide(node, maps, sliding, run, borders="neighbours", cells=(1, 1))
        return result if isinstance(result, Maps) else None


def _mean(node: Node, x: Maps) -> Maps:
    """A mean over all cells of a window: maps with one cell."""
    sides: Size = (x.axes[0].cells, x.axes[1].cells)

    def run(t: Tensor, steps: Pair, taps: Pair) -> Tensor:
        if taps == (1, 1):
            return F.avg_pool2d(t, sides, steps)
        kernel = t.new_full((t.shape[1], 1, *sides), 1 / (sides[0] * sides[1]))
        return F.conv2d(t, kernel, None, steps, 0, taps, t.shape[1])

    result = slide(node, x, slidings(sides, (1, 1), (0, 0), (1, 1)), run, borders="neighbours", cells=(1, 1))
    assert isinstance(result, Maps)
    return result


def _one_cell(value: object, counts: list[int]) -> Tensor:
    """An output of every window as a map [N, numbers, h, w]; counts: of the windows; maps may have more cells."""
    maps, order = (value.maps, value.index.elements.flatten()) if isinstance(value, View) else (value, None)
    if not isinstance(maps, Maps) or max(maps.shape[1:]) > 1:
        raise InputError("the module gives outputs that are no numbers of a window, which cannot be exported")
    result = to_plain(maps.parts["shared", "shared"])
    if order is not None and not value.index.identity:  # type: ignore[attr-defined]
        result = result[:, order.to(result.device)]
    for dim, axis, count in zip((2, 3), maps.axes, counts, strict=True):
        # Not a slice: whether that leaves anything out would become part of the exported program.
        result = result.index_select(dim, torch.arange(count, device=result.device) + axis.offset)
    return result
