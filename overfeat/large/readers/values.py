"""Stored samples as RGB bytes: what the numbers of a file mean."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from overfeat.data.arrays import ValueRange, check_value_range
from overfeat.errors import ArgumentError, InputError

Samples = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["grey", "rgb", "palette", "CMYK", "YCbCr"]
Alpha = Literal["straight", "premultiplied"]
COUNTS = {"grey": 1, "rgb": 3, "palette": 1, "CMYK": 4, "YCbCr": 3}  # samples of a pixel


@dataclass(frozen=True)
class Conversion:
    """From samples [h, w, n], those of a pixel and then its alpha, to RGB: uint8 [3, h, w].

    Attributes:
        kind: What the samples are.
        low, high: The values of black and white.
        alpha: Whether the last sample is the opacity, and how the colours are stored: they are composited over white.
        palette: uint8 [n, 3].
        upper_bits: 16-bit colours become their upper 8 bits, as `read_image` reads them, instead of rounded.
    """

    kind: Kind = "rgb"
    low: float = 0
    high: float = 255
    alpha: Alpha | None = None
    palette: Samples | None = None
    upper_bits: bool = False

    def __call__(self, samples: Samples) -> Samples:
        if self.palette is not None:
            colours = self.palette[np.minimum(samples[..., 0], len(self.palette) - 1)]
            return np.ascontiguousarray(np.moveaxis(colours, 2, 0))
        colours = self._to_bytes(samples[..., : COUNTS[self.kind]])
        if self.kind in ("CMYK", "YCbCr"):
            colours = np.asarray(Image.fromarray(np.ascontiguousarray(colours), self.kind).convert("RGB"))
        if self.alpha is not None:
            colours = _over_white(colours, _opacity(samples[..., -1:]), self.alpha)
        planes = np.moveaxis(colours, 2, 0)
        return np.array(np.broadcast_to(planes, (3, *planes.shape[1:])), order="C")

    def _to_bytes(self, samples: Samples) -> Samples:
        """Samples as uint8: black is 0, white 255; values beyond them become these. NaN is black."""
        low, high = self.low, self.high
        if samples.dtype == np.uint8 and (low, high) == (0, 255):
            return samples
        samples = samples.view(np.uint8) if samples.dtype.kind == "b" else samples
        if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
            levels = np.arange(1 << 8 * samples.dtype.itemsize)
            return (levels >> 8 if self.upper_bits else _scaled(levels, low, high)).astype(np.uint8)[samples]
        return _scaled(samples, low, high).astype(np.uint8)


def _scaled(values: Samples, low: float, high: float) -> Samples:
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(np.floor(np.clip(scaled, 0, 255) + 0.5), nan=0)


def _opacity(alpha: Samples) -> Samples:
    """Alpha as uint8, whatever the range of the colours: all of the type of integers, 0 to 1 of other numbers."""
    if alpha.dtype.kind == "u":
        return (alpha >> 8 * (alpha.dtype.itemsize - 1)).astype(np.uint8)
    return _scaled(alpha, 0, 1).astype(np.uint8)


def _over_white(colours: Samples, alpha: Samples, kind: Alpha) -> Samples:
    """Pixels over white; premultiplied colours are multiplied by alpha already."""
    if kind == "premultiplied":
        return np.minimum(colours.astype(np.int16) + 255 - alpha, 255).astype(np.uint8)
    colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
    image = Image.fromarray(np.ascontiguousarray(np.concatenate([colours, alpha], 2)))
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def conversion(
    dtype: np.dtype, kind: Kind, name: str, value_range: ValueRange | None = None, *, bits: int | None = None,
    white_is_zero: bool = False, alpha: Alpha | None = None, palette: Samples | None = None,
) -> Conversion:  # fmt: skip
    """The conversion of samples of this type. Black and white are the value range, else 0 and the largest of `bits`.

    Raises:
        ArgumentError: for numbers without a fixed range.
        InputError: for other types than numbers.
    """
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise InputError(f"{name}: holds {dtype}, no numbers that are pixels; convert it to 8 or 16 bits")
    if value_range is not None:
        low, high = check_value_range(value_range)
    elif dtype.kind == "b":
        low, high = 0.0, 1.0
    elif dtype.kind == "u" and dtype.itemsize <= 2:
        low, high = 0.0, float((1 << (bits or 8 * dtype.itemsize)) - 1)
    else:
        problem = f"{name}: {dtype} numbers have no fixed range of brightness; "
        raise ArgumentError("value_range", "says what black and white are, such as (0, 4095)", problem)
    upper_bits = (
        (dtype.kind, dtype.itemsize) == ("u", 2)
        and kind == "rgb"
        and (low, high) == (0, 65535)
        and alpha != "premultiplied"
    )
    low, high = (high, low) if white_is_zero else (low, high)
    return Conversion(kind, low, high, alpha, palette, upper_bits)


def range_note(dtype: np.dtype, convert: Conversion, samples: Samples) -> list[str]:
    """A note on values whose range was not given: how they are scaled, and whether the image becomes dark."""
    if dtype.kind != "u" or dtype.itemsize == 1:
        return []
    white, largest = max(convert.low, convert.high), int(samples.max(initial=0))
    dark = f", and are {largest:,} at most in its middle" if largest < white / 4 else ""
    return [f"values of 0 to {white:,.0f} become 0 to 255{dark}; value_range changes this"]
