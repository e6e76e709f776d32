"""The output of one layer of a built-in net, for whole images and for tiles of them."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from overfeat.errors import InputError, in_one_line, is_whole
from overfeat.models.fc_layers import fc_flat
from overfeat.models.memory import feature_bytes
from overfeat.models.net import InputSpan
from overfeat.models.receptive_field import SlidingWindow, first_centre, input_span, output_size, total_stride
from overfeat.regions import region

if TYPE_CHECKING:
    from overfeat.models.overfeat import OverFeat


class NetLayer(ABC):
    """One layer of a net: its output map, at one stride, from tiles of the images.

    Attributes:
        pad: Cells of zeros that are added on each side of the map that the other methods are about.
    """

    pad: int = 0

    @abstractmethod
    def num_outputs(self, axis: int, length: int) -> int:
        """Cells of the map along an axis (0: rows, 1: columns) of `length` pixels."""

    @abstractmethod
    def positions(self, axis: int) -> tuple[float, int]:
        """The centre of what the first cell sees, and from one cell to the next, in pixels along an axis."""

    @abstractmethod
    def input_span(self, axis: int, length: int, outputs: slice) -> InputSpan:
        """The pixels of an axis of `length` pixels that these cells of the map depend on."""

    @abstractmethod
    def run(self, crop: Tensor, rows: InputSpan, columns: InputSpan) -> Tensor:
        """These cells [N, channels, h, w], from these spans of the images [N, C, H, W] in 0..255."""

    @abstractmethod
    def tile_bytes(self, rows: InputSpan, columns: InputSpan) -> int:
        """Bytes that `run` needs at most for one image."""


class BuiltInLayer(NetLayer):
    """A layer of an `OverFeat` net at coarse stride.

    Args:
        net: The net.
        number: Index into `architecture.layers`; InputError for one that the net does not have.
    """

    def __init__(self, net: "OverFeat", number: int):
        architecture, layers = net.architecture, net.architecture.layers
        if not is_whole(number) or not 0 <= number < len(layers):
            features = f"its features are layer {architecture.feature_layer}"
            raise InputError(
                f"the {architecture.name} net has layers 0..{len(layers) - 1}, not {in_one_line(number)}; {features}"
            )
        if layers[number].kind == "pad":
            self.pad, number = architecture.convs[layers[number].index].pad, number - 1
        self.net, self.layer, self.layers = net, layers[number], layers[: number + 1]
        self.is_in_head = any(layer.kind == "full" for layer in self.layers)
        self.steps: list[SlidingWindow] = []
        for layer in self.layers if architecture.backbone is None else ():
            if layer.kind in ("conv", "pool"):
                conv = architecture.convs[layer.index]
                own = SlidingWindow(conv.kernel, conv.stride, conv.pad)
                self.steps.append(own if layer.kind == "conv" else SlidingWindow(conv.pool, conv.pool))
        self.own_pads = tuple((step.pad, step.pad) for step in self.steps)

    @property
    def _backbone_pool(self) -> int:
        """Of a layer of a backbone: cells of its maps along a cell of the layer's."""
        return self.net.architecture.pool if self.layer.kind == "pool" else 1

    def num_outputs(self, axis: int, length: int) -> int:
        """See `NetLayer.num_outputs`."""
        if self.is_in_head:
            return self.net.geometry.num_outputs(axis, length, "coarse")
        backbone = self.net.architecture.backbone
        if backbone is None or self.layer.kind == "normalise":
            return output_size(self.steps, length)
        return output_size([backbone.step], length) // self._backbone_pool

    def positions(self, axis: int) -> tuple[float, int]:
        """See `NetLayer.positions`."""
        if self.is_in_head:
            geometry = self.net.geometry
            return geometry.window[axis] / 2, geometry.stride("coarse")
        backbone, steps = self.net.architecture.backbone, self.steps
        if backbone is not None and self.layer.kind != "normalise":
            steps = [backbone.step, SlidingWindow(self._backbone_pool, self._backbone_pool)]
        return first_centre(steps), total_stride(steps)

    def input_span(self, axis: int, length: int, outputs: slice) -> InputSpan:
        """See `NetLayer.input_span`."""
        if self.is_in_head:
            return self.net.input_span(axis, length, outputs, "coarse")
        count, backbone = outputs.stop - outputs.start, self.net.architecture.backbone
        if backbone is not None and self.layer.kind != "normalise":
            pool = self._backbone_pool
            (start, stop), cells = backbone.span(length, outputs.start * pool, outputs.stop * pool)
            return InputSpan(start, stop, count, cells=cells)
        if count == self.num_outputs(axis, length):
            return InputSpan(0, length, count, self.own_pads)
        span, pads = input_span(self.steps, length, outputs.start, outputs.stop)
        return InputSpan(*span, count, tuple(pads))

    def run(self, crop: Tensor, rows: InputSpan, columns: InputSpan) -> Tensor:
        """See `NetLayer.run`."""
        net, layer, pool = self.net, self.layer, self.net.architecture.pool
        if layer.kind == "normalise":
            with region("normalise"):
                return net.normalise(crop)
        if not self.is_in_head and net.backbone is None:
            own = rows.pads == columns.pads == self.own_pads
            return net.run_layers(crop, self.layers, None if own else (rows.pads, columns.pads))
        maps = net.tile_features(crop, rows, columns, "coarse")
        if not self.is_in_head:
            return F.max_pool2d(maps, pool) if layer.kind == "pool" else maps
        fc_layers, relu = net.fc_layers[: layer.index + 1], layer.kind == "threshold"
        flat, (shape,) = fc_flat(fc_layers, [maps], pool, pool, last_relu=relu)
        return flat.view(*shape, -1).permute(0, 3, 1, 2)

    def tile_bytes(self, rows: InputSpan, columns: InputSpan) -> int:
        """See `NetLayer.tile_bytes`."""
        if self.is_in_head:
            return max(self.net.tile_bytes(1, rows, columns, "coarse"))
        return feature_bytes(self.net.architecture, (rows.stop - rows.start, columns.stop - columns.start))
