"""Which window of an image each output sees."""

from dataclasses import dataclass

import numpy as np

from overfeat.data.limits import MAX_RESIZED_PIXELS
from overfeat.dense.config import DenseConfig
from overfeat.dense.scales import Size, add_margin, clamp_scales, scale_sizes
from overfeat.models.net import Net


@dataclass(frozen=True)
class Grid:
    """Which window of the image each position of an output map sees."""

    window: Size  # (height, width) of the windows, in pixels of the scaled image
    stride: int  # pixels of the scaled image between neighbouring windows
    scaled: Size  # (height, width) of the scaled image
    image: Size  # (height, width) of the image as given
    flipped: bool = False  # whether the net sees the mirror image
    margin: Size = (0, 0)  # (rows, columns) of the mean colour on each side of the scaled image: `Net.margin`

    @property
    def padded(self) -> Size:
        """(height, width) of the scaled image with its margin, which the net sees."""
        return add_margin(self.scaled, self.margin)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the output map."""
        sides = zip(self.padded, self.window, strict=True)
        rows, columns = ((side - window) // self.stride + 1 for side, window in sides)
        return rows, columns

    @property
    def num_positions(self) -> int:
        """The number of windows."""
        return self.shape[0] * self.shape[1]

    def boxes(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """The windows of output positions [rows, columns], in pixels of the image as given: float64 [h, w, 4]."""
        y, x = (
            np.arange(count)[span] * self.stride - margin
            for count, span, margin in zip(self.shape, (rows, columns), self.margin, strict=True)
        )
        if self.flipped:
            x = self.scaled[1] - self.window[1] - x
        up, across = (given / scaled for given, scaled in zip(self.image, self.scaled, strict=True))
        boxes = np.empty((len(y), len(x), 4))
        boxes[..., 0] = (x * across)[None]
        boxes[..., 1] = (y * up)[:, None]
        boxes[..., 2] = ((x + self.window[1]) * across)[None]
        boxes[..., 3] = ((y + self.window[0]) * up)[:, None]
        return boxes

    def position(self, x: float, y: float) -> tuple[int, int]:
        """The (row, column) whose window is centred nearest to pixel (x, y) of the image as given."""
        x, y = x * self.scaled[1] / self.image[1], y * self.scaled[0] / self.image[0]
        if self.flipped:
            x = self.scaled[1] - x
        rows, columns = self.shape
        row = round((y + self.margin[0] - self.window[0] / 2) / self.stride)
        column = round((x + self.margin[1] - self.window[1] / 2) / self.stride)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def grids(net: Net, image: Size, config: DenseConfig | None = None, max_pixels: int = MAX_RESIZED_PIXELS) -> list[Grid]:
    """The grids of an evaluation: for every scale that of the image and, with `flip`, of its mirror image.

    The net gives what the config leaves open; all grids have one stride. image: (height, width). Raises InputError for
    sizes below its window or above `max_pixels`, and strides that it does not have.
    """
    config, geometry, margin = config or DenseConfig(), net.geometry, net.margin
    scales = config.scales
    if scales is None and net.scale_factors is not None:
        scales = clamp_scales(geometry, *image, net.scale_factors, margin)
    flips = (False, True) if (net.flip if config.flip is None else config.flip) else (False,)
    stride = geometry.stride(net.default_stride if config.stride is None else config.stride)
    return [
        Grid(geometry.window, stride, size, image, flipped, margin)
        for size in scale_sizes(geometry, *image, scales, margin, max_pixels)
        for flipped in flips
    ]
