"""The windows that a picture of an object is learned from: shifted, scaled and mirrored."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from overfeat.data.resize import pad_color, resize
from overfeat.errors import ArgumentError, in_one_line
from overfeat.models.geometry import Size

SCALES = (1.0, 0.9, 1.1)  # sides of a window, in those of the object's
SHIFT = 1 / 16  # of the window, to each side
VIEWS = (*((scale, 0.0, 0.0) for scale in SCALES), (1.0, SHIFT, 0.0), (1.0, -SHIFT, 0.0), (1.0, 0.0, SHIFT),
         (1.0, 0.0, -SHIFT))  # fmt: skip


def views(image: Tensor, box: Sequence[float] | None, window: Size, color: Sequence[float], flip: bool) -> Tensor:
    """Windows [n, C, *window] around an object, float.

    A window has the object's longer side, in a window's proportions, and lies within the image where it fits.

    Args:
        image: [C, H, W].
        box: Of the object, see `check_box`; None: the largest window in the middle of the image.
        color: Beyond the image.
        flip: Whether to add the mirror images.
    """
    (height, width), (rows, columns) = image.shape[1:], window
    if box is None:
        center, factor = (height / 2, width / 2), min(height / rows, width / columns)
    else:
        x1, y1, x2, y2 = check_box(box, (height, width))
        center, factor = ((y1 + y2) / 2, (x1 + x2) / 2), max((y2 - y1) / rows, (x2 - x1) / columns)
    windows = []
    for scale, down, across in VIEWS:
        spans = [
            _span(middle, side * factor * scale, shift * side * factor, length)
            for middle, side, shift, length in zip(center, window, (down, across), (height, width), strict=True)
        ]
        windows.append(resize(_crop(image, spans, color)[None].float(), window)[0])
    stacked = torch.stack(windows)
    return torch.cat([stacked, stacked.flip(-1)]) if flip else stacked


def check_box(box: object, image: Size) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) in pixels, clipped to an image of (height, width); ArgumentError for any other value."""
    values = box.tolist() if hasattr(box, "tolist") else box
    numbers = values if isinstance(values, (tuple, list)) and len(values) == 4 else ()
    if not numbers or not all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
        raise ArgumentError("box", f"must be four numbers (x1, y1, x2, y2) in pixels, not {in_one_line(box)}")
    x1, x2 = (min(max(0.0, float(x)), float(image[1])) for x in numbers[::2])
    y1, y2 = (min(max(0.0, float(y)), float(image[0])) for y in numbers[1::2])
    if x2 - x1 < 1 or y2 - y1 < 1:
        within = f"of the image of {image[0]}x{image[1]}"
        raise ArgumentError("box", f"must be (x1, y1, x2, y2) {within} and hold a pixel, not {in_one_line(box)}")
    return x1, y1, x2, y2


def _span(middle: float, size: float, shift: float, length: int) -> tuple[int, int]:
    """(start, stop) of a window along an axis, moved into the image of this length where it fits."""
    pixels = max(1, round(size))
    start = round(middle + shift - pixels / 2)
    if pixels <= length:
        start = min(max(0, start), length - pixels)
    return start, start + pixels


def _crop(image: Tensor, spans: Sequence[tuple[int, int]], color: Sequence[float]) -> Tensor:
    """Part of an image, (start, stop) of rows and columns, with the colour beyond its border."""
    ((top, bottom), (left, right)), (height, width) = spans, image.shape[1:]
    inside = image[:, max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    beyond = (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))
    return pad_color(inside, beyond, color)
