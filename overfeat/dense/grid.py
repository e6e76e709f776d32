"""Grids: which window of the image each output position sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfeat.dense.scales import Scale, scale_sizes
from overfeat.models.architecture import Stride
from overfeat.models.overfeat import OverFeat


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


def grids(
    net: OverFeat,
    image: tuple[int, int],
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
) -> list[Grid]:
    """The grids of an evaluation: for every scale the image and, with `flip`, its mirror image.

    flip None: as the net was trained (net.flip).
    """
    architecture = net.architecture
    flips = (False, True) if (net.flip if flip is None else flip) else (False,)
    return [
        Grid(architecture.window, architecture.stride(stride), size, image, flipped)
        for size in scale_sizes(architecture, *image, scales)
        for flipped in flips
    ]
