"""`Net`: what dense evaluation needs of a network. Built-in (`OverFeat`) and converted nets are nets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overfeat.models.geometry import Geometry, Size, Stride

Shape = tuple[int, int, int]  # (N, rows, columns) of a map of outputs


@dataclass(frozen=True)
class InputSpan:
    """The pixels start:stop of one axis that some consecutive outputs depend on.

    Attributes:
        outputs: How many outputs.
        pads: For built-in nets: the (before, after) padding of every feature step.
        offset: For nets without `pads`: pixels of the span before the first output's window, its real neighbours.
    """

    start: int
    stop: int
    outputs: int
    pads: tuple[tuple[int, int], ...] = ()
    offset: int = 0


class Net(nn.Module):
    """A network that gives the same outputs for every window of an image.

    Attributes:
        class_names: One for each output.
        in_channels: Of the images: 3 (RGB), 1 (grey; RGB images are converted) or any other number.
        flip: Whether mirror images are part of evaluation by default.
        background: Whether the last class is the background (section 5).
        scale_factors: The scales that the net was trained for, as factors of an image's own size; None: the six scales.
        default_stride: The stride of an evaluation that names none.
        geometry: Window, strides and scales.
    """

    class_names: list[str]
    in_channels: int = 3
    flip: bool = False
    background: bool = False
    scale_factors: tuple[float, ...] | None = None
    default_stride: Stride = "fine"
    geometry: Geometry

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes, with the background."""
        return len(self.class_names)

    @property
    def num_foreground_classes(self) -> int:
        """Number of classes that have boxes: all but the background."""
        return self.num_classes - 1 if self.background else self.num_classes

    # Tiles: `dense.evaluate` crops `input_span` of both axes out of the images at one scale, mirrors the crop where the
    # mirror image is evaluated, gets its features, and the scores of several tiles in one call of the head.

    def input_span(self, axis: int, length: int, outputs: slice, stride: Stride) -> InputSpan:
        """The pixels of an axis (0: rows, 1: columns) of `length` pixels that these outputs depend on."""
        raise NotImplementedError

    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> Any:
        """What the head needs of a tile.

        Args:
            crop: [n, C, h, w] in 0..255, these spans of the images.
        """
        raise NotImplementedError

    def forward_head_flat(
        self, features: Sequence[Any], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """Flat outputs [positions, classes] of the tiles with these features, and (n, rows, columns) of each tile."""
        raise NotImplementedError

    def probabilities(self, flat: Tensor) -> Tensor:
        """Scores in 0..1 from flat outputs [positions, classes], float32: softmax, unless the net says otherwise."""
        return flat.float().softmax(dim=1)

    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """Bytes that a tile needs at most: for its features, and for its head with features and outputs."""
        raise NotImplementedError

    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """MACs for one image of (height, width) by region of `regions`, and the number of its windows."""
        raise NotImplementedError
