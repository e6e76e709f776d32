"""Images as people's programs hold them, as tensors: paths, PIL images and NumPy arrays."""

import math
import os
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overfeat.data.images import read_image
from overfeat.data.pixels import rgb
from overfeat.errors import ArgumentError, InputError, reason_of

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
ValueRange = Sequence[float]  # (lowest, highest)
PIXELS = (0.0, 255.0)
MAX_SCALED = 4  # highest value of images that were normalised by mean and deviation
KINDS = "a path, a PIL image, a NumPy array [H, W, 3] or [H, W], or a tensor [C, H, W]"


def as_tensor(image: ImageLike, name: str = "the image") -> Tensor:
    """An image as a tensor [C, H, W]: a file or PIL image as `read_image` reads it; tensors stay as they are.

    Args:
        image: A path, a PIL image, a NumPy array [H, W, C] or [H, W], or a tensor.
        name: Of the image, in messages.

    Raises:
        InputError: For files and PIL images that cannot be read, and for arrays of other shapes.
        TypeError: For anything else.
    """
    if isinstance(image, Tensor):
        return image.detach()
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return torch.from_numpy(rgb(image))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds, and a closed file another
            raise InputError(f"{name} cannot be read by Pillow: {reason_of(error)}") from error
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise TypeError(f"{name} must be {KINDS}, not {type(image).__name__}")


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold numbers, and is an array of {array.dtype}")
    if array.ndim not in (2, 3) or 0 in array.shape:
        remedy = "; a list of its images is a batch" if array.ndim == 4 else ""
        raise InputError(f"{name} must be [H, W, 3] or [H, W]; this array has shape {array.shape}{remedy}")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] > 4:
        remedy = "array.transpose(1, 2, 0) has the channels last, torch.from_numpy(array) keeps them first"
        raise InputError(f"{name} must be [H, W, 3] or [H, W]; this array has shape {array.shape}: {remedy}")
    # A copy of what torch does not take: another byte order, negative steps, what must not be written to.
    pixels = torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ("C", "W")))
    return pixels[None] if array.ndim == 2 else pixels.permute(2, 0, 1)


def to_pixels(images: Tensor, value_range: ValueRange | None, name: str, any_range: bool = False) -> Tensor:
    """Images [..., H, W] with values in 0..255: uint8 and floating-point ones that are so already stay as they are.

    Args:
        value_range: (lowest, highest) value that an image may have, black and white; None: (0, 255).
        name: Of the images, in messages.
        any_range: Whether images without a value range may have any.

    Raises:
        InputError: For NaN and infinite values; for values far beyond the range; without a value range, for integers
            other than uint8, and for images without a value above MAX_SCALED that are not black.
        TypeError: For complex and quantized tensors, and those that are sparse or have no values.
    """
    low, high = PIXELS if value_range is None else check_value_range(value_range)
    if images.is_complex() or images.is_quantized:
        raise TypeError(f"{name} must hold real numbers, and is a tensor of {_named(images.dtype)}")
    if images.layout != torch.strided or images.is_nested or images.is_meta:
        kind = "on the meta device" if images.is_meta else "nested" if images.is_nested else _named(images.layout)
        raise TypeError(f"{name} must be a dense tensor with values, and is {kind}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        if value_range is None:
            remedy = "`value_range` says what black and white are, such as (0, 65535)"
            raise InputError(f"{name} must be uint8 or floating point, not {_named(images.dtype)}; {remedy}")
        images = images.float()
    if images.is_floating_point() and images.numel() and images.dim() > 2 and not torch.compiler.is_compiling():
        _check_values(images, (low, high), name, value_range is not None, any_range)
    if (low, high) == PIXELS:
        return images
    images = images if images.dtype == torch.float64 else images.float()
    return (images - low) * (255 / (high - low))


def check_value_range(value_range: object) -> tuple[float, float]:
    """The two numbers; ArgumentError for anything else."""
    pair = value_range if isinstance(value_range, tuple | list) else ()
    if all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in pair) and len(pair) == 2:
        low, high = map(float, pair)
        if low < high:
            return low, high
    requirement = "must be the values of black and white, such as (0, 255) or (0, 1)"
    raise ArgumentError("value_range", f"{requirement}, not {value_range!r}")


def _check_values(images: Tensor, limits: tuple[float, float], name: str, is_given: bool, any_range: bool) -> None:
    batch = images[None] if images.dim() == 3 else images
    extremes = torch.stack([torch.stack(image.aminmax()) for image in batch]).tolist()
    if not all(math.isfinite(value) for pair in extremes for value in pair):
        broken = (~images.isfinite()).nonzero()
        *number, _, y, x = broken[0].tolist()
        of_batch = f"of image {number[0]} " if number and len(images) > 1 else ""
        position = f"the first {of_batch}at row {y}, column {x}"
        raise InputError(f"{name}: {len(broken):,} NaN or infinite values, {position}; replace them first")
    if any_range and not is_given:
        return
    low, high = limits
    for i, (lowest, highest) in enumerate(extremes):
        actual = f"{name}: values from {lowest:.4g} to {highest:.4g}" + f" in image {i} of the batch" * (len(batch) > 1)
        if not is_given and highest <= MAX_SCALED and (lowest, highest) != (0, 0):
            remedy = "value_range=(0, 1) or (-1, 1) says what black and white are, (0, 255) that it is nearly black"
            raise InputError(f"{actual}, not pixels in 0..255; {remedy}; undo a normalisation by mean and deviation")
        if lowest < low - (high - low) or highest > high + (high - low):
            report = f"{actual}, far beyond {low:g}..{high:g}; "
            raise ArgumentError("value_range", "says which values are black and white, such as (0, 65535)", report)


def _named(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
