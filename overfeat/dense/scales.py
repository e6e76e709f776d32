"""Scales: the sizes at which an image is evaluated (sections 3.3 and 4.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfeat.errors import InputError
from overfeat.models.architecture import Architecture

SCALE_STEP = 1.4  # the paper's ratio from one scale to the next (section 4.2)


@dataclass(frozen=True)
class ScaleFitter:
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


# A scale: a number 1..6 of the net's six scales, a factor of the image's own size, a (height, width),
# or "native", the image's own size.
Scale = int | float | tuple[int, int] | str
ELONGATED = 50  # sides of more than this ratio are not enlarged to the six scales


def six_scales(architecture: Architecture, height: int, width: int) -> list[tuple[int, int]]:
    """The six (height, width) at which an image of this size is evaluated (sections 3.3, 4.2)."""
    if architecture.scales is None:
        return ScaleFitter(architecture.window, architecture.fine_stride, architecture.pool).six_scales(height, width)
    return [size if height <= width else size[::-1] for size in architecture.scales]


def scale_sizes(
    architecture: Architecture, height: int, width: int, scales: Sequence[Scale] | None = None
) -> list[tuple[int, int]]:
    """The (height, width) of each scale for an image of height x width.

    scales: numbers 1..6 of the architecture's six scales (ints), factors of the image's own size
    (floats; to the nearest size of which fine stride leaves nothing over), (height, width), or
    "native" (the size the image has); None: all six. A given size is turned so that its longer side lies
    along the image's. Raises InputError for a size below the net's window.
    """
    numbered = scales is None or any(isinstance(scale, int) for scale in scales)
    if numbered and min(height, width) * ELONGATED < max(height, width) and min(height, width) < architecture.window:
        raise InputError(
            f"{width}x{height} px is too narrow to be enlarged to the {architecture.name} net's scales; crop it, or "
            "give scales as HEIGHTxWIDTH"
        )
    six = six_scales(architecture, height, width)
    sizes = []
    for scale in scales if scales is not None else range(1, 7):
        if scale == "native":
            size = (height, width)
        elif isinstance(scale, int) and 1 <= scale <= 6:
            size = six[scale - 1]
        elif isinstance(scale, float) and 0 < scale < math.inf:
            size = tuple(round_to_stride(architecture, scale * side) for side in (height, width))
        elif isinstance(scale, (tuple, list)) and len(scale) == 2:
            size = tuple(sorted(scale, reverse=height > width))
        else:
            raise InputError(f"scale {scale!r} is none of 1..6, a factor such as 0.5, (height, width) and 'native'")
        if min(size) < architecture.window:
            raise InputError(
                f"at {size[0]}x{size[1]} the image is smaller than the {architecture.name} net's window of "
                f"{architecture.window}x{architecture.window}; choose a larger scale"
            )
        sizes.append(size)
    if not sizes:
        raise InputError("no scales given; choose from 1..6, (height, width) and 'native'")
    return sizes


def round_to_stride(architecture: Architecture, side: float) -> int:
    """The side nearest to the one given of which fine stride leaves no pixels over."""
    return architecture.window + architecture.fine_stride * round(
        (side - architecture.window) / architecture.fine_stride
    )


FIT = 0.65  # of the window's side, the size of object that a window is best for
STEP = 1.4  # from one size to the next, the paper's
MAX_ZOOM = 64


def choose_scales(sides: Sequence[float] | np.ndarray, window: int, step: float = STEP) -> tuple[float, ...]:
    """The sizes at which a net with this window sees objects with these longer sides, from small to large.

    They are factors of the image's own size, `step` apart, from the one that makes the largest objects fit
    to the one that makes the smallest fit; the largest and smallest percent of the objects may be left
    out. Raises InputError where there is no object.
    """
    sides = np.asarray(sides, dtype=np.float64)
    if not len(sides):
        raise InputError("no boxes to choose the sizes of images from")
    small, large = np.percentile(sides, [1, 99])
    # Between the largest and smallest factors every object is within `step` of the best fit.
    low, high = FIT * window / large, FIT * window / small
    if high > MAX_ZOOM:
        raise InputError(f"boxes of {small:g} px; they are to be in pixels of the images, and no smaller than these "
                         f"are with --scales up to {MAX_ZOOM}")  # fmt: skip
    count = 1 + max(0, math.ceil(math.log(high / low) / math.log(step) - 1e-9))
    spread = (high / low) ** (1 / (count - 1)) if count > 1 else 1.0
    return tuple(round(float(low * spread**k), 4) for k in range(count))
