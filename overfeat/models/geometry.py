"""Where the windows of a net lie: all that scales, grids and tiles need to know of it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from overfeat.errors import ArgumentError

Size = tuple[int, int]  # (height, width)
Stride = Literal["coarse", "fine"] | int  # pixels between outputs, or a name for them


@dataclass(frozen=True)
class Geometry:
    """Window, strides and scales of a net.

    Attributes:
        name: Of the net, in messages.
        window: (height, width) of a window in pixels, which gives one output.
        fine_stride: Pixels between outputs when the last pooling is applied at every offset.
        pool: Fine outputs from one coarse output to the next, along an axis.
        short_side: What an image's shorter side is resized to for a single crop.
        scales: The six scales, landscape (height, width); None: derived from the window, see `dense.scales`.
        any_stride: Whether every whole number of pixels is a stride, as of converted nets.
    """

    name: str
    window: Size
    fine_stride: int
    pool: int
    short_side: int
    scales: tuple[Size, ...] | None = None
    any_stride: bool = False

    def stride(self, stride: Stride) -> int:
        """Pixels between outputs. Raises ArgumentError for a stride that the net does not have."""
        named = {"fine": self.fine_stride, "coarse": self.fine_stride * self.pool}
        if isinstance(stride, str) and stride in named:
            return named[stride]
        if type(stride) is int and (stride in named.values() or (self.any_stride and stride > 0)):
            return stride
        strides = "'fine', 'coarse'" + (" or pixels from 1 up" if self.any_stride else f" or {set(named.values())}")
        raise ArgumentError("stride", f"must be {strides} for the {self.name} net, not {stride!r}")
