"""Scales: the sizes at which an image is evaluated (sections 3.3 and 4.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfeat.data.limits import MAX_RESIZED_PIXELS
from overfeat.dense.config import Scale, Scales, SixScales, check_scales
from overfeat.errors import ArgumentError, InputError
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.geometry import Geometry, Size

MAX_ASPECT_RATIO = 50  # images with a larger ratio of their sides are not enlarged to the six scales
SCALE_STEP = 1.4  # the paper's ratio from one scale to the next (section 4.2)
BEST_OBJECT_SIZE = 0.65  # longer side of the objects that a window fits best, as a fraction of the window's
MAX_SCALE_FACTOR = 64
MIN_SIDE = 4  # pixels of an image's longer side, below which a scale factor is a mistake
PERCENTILES = (5, 95)  # of the objects' sizes, between which scale factors are chosen


@dataclass(frozen=True)
class ScaleFitter:
    """The sizes that a net covers without remainder at fine stride, along one axis.

    A size fits when its fine outputs are a multiple of `pool`, so that the maps pooled at every offset have equal
    lengths, as at all scales of the paper's table 5. Window and stride, between fine outputs, are in pixels.
    """

    window: int
    stride: int
    pool: int

    def nearest(self, size: float) -> int:
        """The fitting size nearest to `size`, at least one pooling beyond the window."""
        step = self.stride * self.pool
        first = self.window + self.stride * (self.pool - 1)
        return first + step * max(0, round((size - first) / step))


def six_scales(geometry: Geometry, height: int, width: int) -> list[Size]:
    """The six (height, width) at which an image of this size is evaluated (sections 3.3, 4.2; table 5).

    They are the net's own; without any, table 5's ratios to its window, to the longer side of a window that is not
    square, each side an exact fit of its stride. Portrait images have them transposed.
    """
    if geometry.scales:
        return [size if height <= width else size[::-1] for size in geometry.scales]
    table, window = ARCHITECTURES["accurate"].scales, ARCHITECTURES["accurate"].window
    assert table is not None
    down, across = (ScaleFitter(side, geometry.fine_stride, geometry.pool) for side in geometry.window)
    longer, sizes = max(geometry.window), []
    for short, long in table:
        rows, columns = (short, long) if height <= width else (long, short)
        sizes.append((down.nearest(longer * rows / window), across.nearest(longer * columns / window)))
    return sizes


def scale_sizes(
    geometry: Geometry, height: int, width: int, scales: Scales = "six", margin: Size = (0, 0),
    max_pixels: int = MAX_RESIZED_PIXELS,
) -> list[Size]:  # fmt: skip
    """The (height, width) of each scale for an image of height x width; for scales see `DenseConfig`, None: six.

    margin: Of `Grid`.

    Raises:
        InputError: For a size of more than `max_pixels` or that with its margin is below the net's window, or an image
            too narrow for the six scales.
    """
    scales = check_scales(scales) or SixScales()
    if isinstance(scales, SixScales):
        short, long = sorted((height, width))
        if short * MAX_ASPECT_RATIO < long and short < min(geometry.window):
            problem = f"{height}x{width} px is too narrow to be enlarged to the {geometry.name} net's scales"
            raise InputError(f"{problem}; crop it, or choose scales by (height, width)")
        six = six_scales(geometry, height, width)
        return [six[number - 1] for number in scales.numbers]
    return [_scale_size(geometry, height, width, scale, margin, max_pixels) for scale in scales]


def _scale_size(geometry: Geometry, height: int, width: int, scale: Scale, margin: Size, max_pixels: int) -> Size:
    """`scale_sizes` of a factor or a size."""
    rows, columns = scale if isinstance(scale, tuple) else (height * scale, width * scale)
    if rows * columns > max_pixels:
        problem = f"an image of {height}x{width} would become {float(rows):.6g}x{float(columns):.6g} px; crop it, or "
        raise ArgumentError("scales", "must be smaller", problem)
    if isinstance(scale, tuple):
        short, long = sorted(scale)
        size = (short, long) if height <= width else (long, short)
    else:
        if max(height, width) * scale < MIN_SIDE <= max(height, width):
            problem = f"at {scale:g} times its size the image has less than {MIN_SIDE} pixels a side; "
            raise ArgumentError("scales", "must be larger", problem)
        size = (height, width) if scale == 1 else round_to_stride(geometry, (scale * height, scale * width))
    if not geometry.fits(add_margin(size, margin)):
        window = f"the {geometry.name} net's window of {geometry.window[0]}x{geometry.window[1]}"
        raise InputError(f"at {size[0]}x{size[1]} the image is smaller than {window}; choose a larger scale")
    return size


def round_to_stride(geometry: Geometry, size: tuple[float, float]) -> Size:
    """The (height, width) nearest to the one given of which fine stride leaves no pixels over; at least a pixel."""
    stride = geometry.fine_stride
    height, width = (
        window + stride * max(round((side - window) / stride), -((window - 1) // stride))
        for side, window in zip(size, geometry.window, strict=True)
    )
    return height, width


def add_margin(size: Size, margin: Size) -> Size:
    """The (height, width) of an image with a margin of (rows, columns) on each side."""
    return size[0] + 2 * margin[0], size[1] + 2 * margin[1]


def clamp_scales(
    geometry: Geometry, height: int, width: int, scale_factors: Sequence[float], margin: Size = (0, 0)
) -> list[float]:
    """The scale factors, raised where an image of this size would become smaller than the window, or tiny; each once.

    margin: Of `Grid`; an image may be smaller by it.
    """
    smallest = max((geometry.window[0] - 2 * margin[0]) / height, (geometry.window[1] - 2 * margin[1]) / width)
    smallest = max(smallest, min(1.0, MIN_SIDE / max(height, width)))
    return sorted({max(float(factor), smallest) for factor in scale_factors})


def choose_scales(
    sides: Sequence[float] | np.ndarray, window: int, labels: Sequence[int] | np.ndarray | None = None,
    *, step: float = SCALE_STEP,
) -> tuple[float, ...]:  # fmt: skip
    """The scale factors at which a net with this window sees objects of these sizes, in ascending order.

    They are at most `step` apart, from the one that makes the largest objects fit the window to the one that makes the
    smallest fit it: the 95th percentile of the class with the largest objects, the 5th of that with the smallest. What
    is a little larger or smaller still fits, and the largest factor, which costs most, is not that of a few outliers.

    Args:
        sides: Longer sides of the objects, in pixels of their images; InputError for none, or too small ones.
        window: In pixels.
        labels: Of the objects; None: they are of one class.
        step: Largest ratio of neighbouring factors.
    """
    sides = np.asarray(sides, dtype=np.float64)
    if not len(sides):
        raise InputError("no boxes to choose scale factors from")
    labels = np.zeros(len(sides)) if labels is None else np.asarray(labels)
    ranges = np.array([np.percentile(sides[labels == label], PERCENTILES) for label in np.unique(labels)])
    small, large = ranges[:, 0].min(), ranges[:, 1].max()
    # Between the largest and smallest factors every object is within `step` of the best fit.
    low, high = BEST_OBJECT_SIZE * window / large, BEST_OBJECT_SIZE * window / small
    if high > MAX_SCALE_FACTOR:
        boxes = f"boxes of {small:g} px; boxes are in pixels of their images"
        raise ArgumentError("scale_factors", f"must be given, up to {MAX_SCALE_FACTOR}, for {boxes}")
    count = 1 + max(0, math.ceil(math.log(high / low) / math.log(step) - 1e-9))
    spread = (high / low) ** (1 / (count - 1)) if count > 1 else 1.0
    return tuple(round(float(low * spread**k), 4) for k in range(count))
