"""The output of one layer of a converted module, for tiles of images."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overfeat.densify.cost import Meter
from overfeat.densify.interpreter import Interpreter
from overfeat.densify.values import WindowGrid, windows_of
from overfeat.models.geometry import Stride
from overfeat.models.layers import NetLayer
from overfeat.models.net import InputSpan

if TYPE_CHECKING:
    from overfeat.densify.net import DensifiedNet


class ConvertedLayer(NetLayer):
    """The output of a node or a submodule of a converted module for every window.

    Args:
        net: The net.
        name: Of a submodule or a node; InputError for any other.
        stride: Of the windows.
    """

    def __init__(self, net: "DensifiedNet", name: str, stride: Stride):
        self.net, self.node, self.stride = net, net.node(name), net.geometry.stride(stride)
        self.nodes = net.program.nodes[: net.program.nodes.index(self.node) + 1]
        self.interpreter = Interpreter(net.program, net.borders, fuse=False)

    def num_outputs(self, axis: int, length: int) -> int:
        """See `NetLayer.num_outputs`."""
        return self.net.geometry.num_outputs(axis, length, self.stride)

    def positions(self, axis: int) -> tuple[float, int]:
        """See `NetLayer.positions`."""
        return self.net.geometry.window[axis] / 2, self.stride

    def input_span(self, axis: int, length: int, outputs: slice) -> InputSpan:
        """See `NetLayer.input_span`."""
        return self.net.input_span(axis, length, outputs, self.stride)

    def run(self, crop: Tensor, rows: InputSpan, columns: InputSpan) -> Tensor:
        """See `NetLayer.run`."""
        grid = WindowGrid(len(crop), (rows.outputs, columns.outputs), self.stride)
        values = self.net.start(self.interpreter, crop, grid, (rows.offset, columns.offset))
        values = self.interpreter.run(values, self.nodes, grid.num_windows, crop.device, keep=[self.node])
        windows: Tensor = windows_of(values[self.node])  # type: ignore[assignment]
        return windows.reshape(grid.images, *grid.counts, -1).permute(0, 3, 1, 2)

    def tile_bytes(self, rows: InputSpan, columns: InputSpan) -> int:
        """See `NetLayer.tile_bytes`: from a run on the meta device."""
        crop = torch.empty(1, self.net.in_channels, rows.stop - rows.start, columns.stop - columns.start, device="meta")
        with torch.no_grad(), Meter() as meter:
            self.run(crop, rows, columns)
        return meter.peak
