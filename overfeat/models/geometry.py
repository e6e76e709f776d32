"""Where the windows of a net lie: all that scales, grids and tiles need to know of it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from overfeat.errors import ArgumentError, is_whole

Size = tuple[int, int]  # (height, width)
StrideName = Literal["coarse", "fine"]
Stride = StrideName | int  # pixels between outputs, or a name for them


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

    def fits(self, size: Size) -> bool:
        """Whether an image of (height, width) has a window."""
        return size[0] >= self.window[0] and size[1] >= self.window[1]

    def margin(self, reach: float) -> Size:
        """Pixels (rows, columns) that windows reach beyond each side of an image: whole fine strides.

        reach: The fraction of a window that they are at most, but for rounding to pixels.
        """
        stride = self.fine_stride
        height, width = (round(reach * side) // stride * stride for side in self.window)
        return height, width

    def num_outputs(self, axis: int, length: int, stride: Stride) -> int:
        """Number of windows along an axis (0: rows, 1: columns) of `length` pixels."""
        return max(0, (length - self.window[axis]) // self.stride(stride) + 1)

    def stride(self, stride: Stride) -> int:
        """Pixels between outputs. Raises ArgumentError for a stride that the net does not have."""
        named = {"fine": self.fine_stride, "coarse": self.fine_stride * self.pool}
        if isinstance(stride, str) and stride in named:
            return named[stride]
        if is_whole(stride) and (stride in named.values() or (self.any_stride and 0 < stride < 1 << 31)):
            return int(stride)
        pixels = ["pixels from 1 up"] if self.any_stride else [str(value) for value in sorted(set(named.values()))]
        *others, last = ["'fine'", "'coarse'", *pixels]
        allowed = f"must be {', '.join(others)} or {last} for the {self.name} net"
        raise ArgumentError("stride", f"{allowed}, not {stride!r}")
