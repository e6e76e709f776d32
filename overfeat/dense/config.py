"""How an image is evaluated densely: scales, mirror image, stride, memory. Imports no torch."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Union, get_args

from overfeat.errors import ArgumentError, check_flag, is_whole
from overfeat.models.geometry import Stride, StrideName
from overfeat.options import mebibytes, option

STRIDES: tuple[StrideName, ...] = get_args(StrideName)
MEMORY_LIMIT = 1 << 30  # bytes
MAX_STRIDE = 1 << 30  # pixels


@dataclass(frozen=True, init=False)
class SixScales:
    """Some of a net's six scales (sections 3.3 and 4.2, table 5), by their numbers from 1 to 6.

    `SixScales(1, 2, 4, 6)` are the paper's "4 scales"; `SixScales()` are all six.
    """

    numbers: tuple[int, ...]

    def __init__(self, *numbers: int):
        if not all(is_whole(number) and 1 <= number <= 6 for number in numbers):
            raise ArgumentError("scales", f"must be numbers of the six scales, 1 to 6; not {list(numbers)}")
        object.__setattr__(self, "numbers", tuple(map(int, numbers)) or (1, 2, 3, 4, 5, 6))

    def __len__(self) -> int:
        return len(self.numbers)

    def __str__(self) -> str:
        return "six" if len(self) == 6 else f"six:{','.join(map(str, self.numbers))}"


Scale = float | tuple[int, int]  # a factor of the image's own size, or (height, width)
Scales = Union[Literal["six"], SixScales, Sequence[Scale], None]  # noqa: UP007 (Literal | class fails at run time)


def check_scales(scales: Scales) -> SixScales | tuple[Scale, ...] | None:
    """The scales in one form: `SixScales`, or a tuple of factors and sizes; None stays None.

    Numbers and arrays of NumPy and torch are as Python's. ArgumentError for anything else, whole numbers too: a factor
    is a float.
    """
    scales = scales.tolist() if hasattr(scales, "tolist") else scales  # type: ignore[union-attr]
    if scales is None or isinstance(scales, SixScales):
        return scales
    if isinstance(scales, str):
        if scales != "six":
            raise ArgumentError("scales", f"must be 'six', factors or sizes, not {scales!r}")
        return SixScales()
    if not isinstance(scales, Sequence) or not scales:
        raise ArgumentError("scales", f"must be 'six' or at least one factor or size, not {scales!r}")
    return tuple(_check_scale(scale) for scale in scales)


def _check_scale(scale: object) -> Scale:
    scale = scale.tolist() if hasattr(scale, "tolist") else scale  # an array's, or a number of NumPy
    if isinstance(scale, float) and 0 < scale < math.inf:
        return float(scale)
    if isinstance(scale, (tuple, list)) and len(scale) == 2 and all(is_whole(side) and side > 0 for side in scale):
        return int(scale[0]), int(scale[1])
    hint = f"; the six scales are 'six' or SixScales({scale})" if is_whole(scale) and 1 <= scale <= 6 else ""
    raise ArgumentError("scales", f"must be factors such as 0.5 or sizes (height, width), not {scale!r}{hint}")


def parse_scales(text: str) -> Scales:
    """Parse "six", "six:1,2,4,6", or factors and sizes such as "0.5,245x317"."""
    name, colon, numbers = text.strip().lower().partition(":")
    if name == "six":
        if colon and not re.fullmatch(r"[1-6](,[1-6])*", numbers):
            raise argparse.ArgumentTypeError(f"{text!r}: the six scales have the numbers 1 to 6, as in six:1,2,4,6")
        return SixScales(*map(int, numbers.split(",") if colon else ()))
    return tuple(_parse_scale(part.strip().lower()) for part in text.split(","))


def _parse_scale(text: str) -> Scale:
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        height, width = text.split("x")
        return int(height), int(width)
    if re.fullmatch(r"\d*\.\d*[1-9]\d*|[1-9]\d*\.0*", text):
        return float(text)
    hint = f"; a factor is written {text}.0" if re.fullmatch(r"[1-9]\d*", text) else ""
    hint += f", the net's own scale six:{text}" if re.fullmatch("[1-6]", text) else ""
    raise argparse.ArgumentTypeError(f"{text!r} is neither six, a factor such as 0.5, nor HEIGHTxWIDTH{hint}")


def format_scales(scales: Scales) -> str | None:
    """The text that `parse_scales` reads."""
    scales = check_scales(scales)
    if scales is None:
        return None
    if isinstance(scales, SixScales):
        return str(scales)
    return ",".join(str(scale) if isinstance(scale, float) else f"{scale[0]}x{scale[1]}" for scale in scales)


def parse_stride(text: str) -> Stride:
    """Parse "fine", "coarse" or a number of pixels."""
    name = text.strip().lower()
    for known in STRIDES:
        if name == known:
            return known
    if not re.fullmatch(r"[1-9]\d*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is neither fine, coarse, nor a number of pixels from 1 up")
    return int(name)


@dataclass(frozen=True)
class DenseConfig:
    """Everything that steers a dense evaluation.

    Attributes:
        scales: `"six"`, or `SixScales(1, 2, 4, 6)` for some of the six scales; or a sequence of factors of the
            image's own size (floats, rounded to an exact fit of the net's stride; 1.0 is the image as it is,
            not resized) and sizes (height, width), turned so that the longer side lies along the image's. None:
            the net's own, `net.scale_factors` (a detector's, and 1.0 of a converted module), else the six scales.
        flip: Whether the mirror image is evaluated as well; None: as the net was trained, `net.flip`.
        stride: "fine" applies the last pooling at every offset (section 3.3), "coarse" at the first alone; or pixels
            between outputs: any number for a converted net. None: the net's own, `net.default_stride`.
        memory_limit: Bytes for intermediate maps; what needs more is evaluated in tiles, to the same result up to
            rounding.
    """

    scales: Scales = option(
        None, "'six', the net's six scales; some of them, such as six:1,2,4,6; factors of the image's own size, such "
        "as 0.5,1.0; sizes HEIGHTxWIDTH, such as 245x317, turned as the image is (default: six; a detector's own; of "
        "your own module 1.0)",
        parse=parse_scales, metavar="LIST",
    )  # fmt: skip
    flip: bool | None = option(None, "also evaluate the mirror image (default: as the net was trained)")
    stride: Stride | None = option(
        None, "between outputs: fine pools at every offset, coarse at the first alone; or pixels (default: the net's "
        "own; fine for built-in nets)", parse=parse_stride, metavar="fine|coarse|N",
    )  # fmt: skip
    memory_limit: int = option(
        MEMORY_LIMIT, f"memory for maps; larger images are evaluated in tiles (default: {MEMORY_LIMIT >> 20})",
        parse=mebibytes, metavar="MIB",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        if self.flip is not None:
            check_flag("flip", self.flip)
        if is_whole(self.stride) and 0 < self.stride <= MAX_STRIDE:
            object.__setattr__(self, "stride", int(self.stride))
        elif not (self.stride is None or (isinstance(self.stride, str) and self.stride in STRIDES)):
            raise ArgumentError("stride", f"must be 'fine', 'coarse' or pixels from 1 up, not {self.stride!r}")
        if not isinstance(self.memory_limit, Real) or not 0 < self.memory_limit < math.inf:
            raise ArgumentError("memory_limit", f"must be a number of bytes above 0, not {self.memory_limit!r}")
