"""Where things are: output sizes, strides, exact-fit scales, and which window an output sees.

Conventions. Sizes are (height, width). Boxes are (x1, y1, x2, y2) in pixels, continuous and
half-open: the whole image is (0, 0, width, height). A `Step` is anything that slides a window: a
convolution or a pooling. This file knows no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SCALE_STEP = 1.4  # the paper's ratio from one scale to the next (section 4.2)


@dataclass(frozen=True)
class Step:
    """One sliding window along one axis: `pad` cells are added on both sides first."""

    kernel: int
    stride: int = 1
    pad: int = 0


def output_size(steps: Sequence[Step], size: int) -> int:
    """Number of outputs along an axis of `size` cells; 0 where a window no longer fits."""
    for step in steps:
        size = max(0, (size + 2 * step.pad - step.kernel) // step.stride + 1)
    return size


def input_size(steps: Sequence[Step], size: int = 1) -> int:
    """The smallest input that gives `size` outputs."""
    for step in reversed(steps):
        size = (size - 1) * step.stride + step.kernel - 2 * step.pad
    return size


def total_stride(steps: Sequence[Step]) -> int:
    """Input cells between neighbouring outputs."""
    stride = 1
    for step in steps:
        stride *= step.stride
    return stride


def slab(steps: Sequence[Step], size: int, start: int, stop: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """What outputs `start:stop` of an axis need: the input's (start, stop) and each step's padding.

    Running the steps on that slice with that padding, in place of their own on both sides, gives
    exactly the outputs `start:stop` of the whole axis: zeros are added only where the whole axis
    would add them.
    """
    sizes = [size]
    for step in steps:
        sizes.append(output_size([step], sizes[-1]))
    assert 0 <= start < stop <= sizes[-1], (start, stop, sizes)
    pads = []
    for step, length in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        low = start * step.stride - step.pad
        high = (stop - 1) * step.stride + step.kernel - step.pad
        pads.append((max(0, -low), max(0, high - length)))
        start, stop = max(0, low), min(length, high)
    return (start, stop), pads[::-1]


@dataclass(frozen=True)
class Fit:
    """The sizes that a net covers without remainder at fine stride.

    window: the net's training size in pixels. stride: pixels between fine outputs. pool: the size
    of the last pooling. A size fits when its fine outputs are a multiple of `pool`, so that the
    maps pooled at every offset have equal lengths, as at all scales of the paper's table 5.
    """

    window: int
    stride: int
    pool: int

    def nearest(self, size: float) -> int:
        """The fitting size nearest to `size`, at least one pooling beyond the window."""
        step = self.stride * self.pool
        first = self.window + self.stride * (self.pool - 1)
        return first + step * max(0, round((size - first) / step))

    def six_scales(self, height: int, width: int) -> list[tuple[int, int]]:
        """Six (height, width), the shorter side growing 1.4-fold from the smallest fit.

        The longer side keeps the image's proportions, to the nearest fit.
        """
        sizes = []
        for k in range(6):
            short = self.nearest(self.nearest(0) * SCALE_STEP**k)
            long = self.nearest(short * max(height, width) / min(height, width))
            sizes.append((short, long) if height <= width else (long, short))
        return sizes


@dataclass(frozen=True)
class Grid:
    """Which window of the image each place of an output map sees.

    window, stride: pixels of the scaled image. scaled, image: (height, width) of the image as
    the net saw it and as it was given. flipped: the net saw the mirror image.
    """

    window: int
    stride: int
    scaled: tuple[int, int]
    image: tuple[int, int]
    flipped: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the output map."""
        rows, columns = ((side - self.window) // self.stride + 1 for side in self.scaled)
        return rows, columns

    def boxes(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """float64 [rows, columns, 4]: the window of every place, or of these, in pixels of the image as given."""
        y, x = (np.arange(count)[part] * self.stride for count, part in zip(self.shape, (rows, columns), strict=True))
        if self.flipped:
            x = self.scaled[1] - self.window - x
        up = self.image[0] / self.scaled[0]
        across = self.image[1] / self.scaled[1]
        boxes = np.empty((len(y), len(x), 4))
        boxes[..., 0] = (x * across)[None]
        boxes[..., 1] = (y * up)[:, None]
        boxes[..., 2] = ((x + self.window) * across)[None]
        boxes[..., 3] = ((y + self.window) * up)[:, None]
        return boxes

    def place(self, x: float, y: float) -> tuple[int, int]:
        """The (row, column) whose window is centred nearest to pixel (x, y) of the image as given."""
        x = x * self.scaled[1] / self.image[1]
        y = y * self.scaled[0] / self.image[0]
        if self.flipped:
            x = self.scaled[1] - x
        rows, columns = self.shape
        row = round((y - self.window / 2) / self.stride)
        column = round((x - self.window / 2) / self.stride)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
