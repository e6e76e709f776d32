"""Which image a result is of, and the names of its classes: for the picture that a notebook shows."""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from overfeat.data.arrays import MAX_SCALED, ImageLike, ValueRange, as_tensor, to_pixels
from overfeat.errors import ArgumentError, InputError
from overfeat.models.geometry import Size
from overfeat.models.net import Net

Result = TypeVar("Result", bound="Sourced")


@dataclass(frozen=True)
class Source:
    """The images that a result is of, and its class names.

    Paths are kept. An image in memory is known as long as the caller keeps it: results hold no pixels.

    Attributes:
        names: Of the labels, without the background.
        size: (height, width) of the images.
        images: A path or a weak reference for each; one for a tensor of several.
        value_range: Of the images.
    """

    names: Sequence[str]
    size: Size
    images: Sequence[str | os.PathLike | weakref.ref] = ()
    value_range: ValueRange | None = None

    @classmethod
    def of(cls, net: Net, images: object, size: Size, value_range: ValueRange | None = None) -> "Source":
        """The source of what a net makes of images, as `each_image` takes them."""
        names = net.class_names[: net.num_foreground_classes] if net.background else net.class_names
        return cls(names, size, references(images), value_range)

    def pixels(self, number: int = 0) -> Tensor | None:
        """An image as uint8 [3, H, W], by its number; None where it is not known, or not as it was."""
        alone = len(self.images) == 1
        if not self.images:
            return None
        reference = self.images[0 if alone else number]
        image = reference() if isinstance(reference, weakref.ref) else reference
        try:
            return None if image is None else to_rgb(image, self.size, self.value_range, number if alone else 0)
        except (InputError, TypeError, RuntimeError):  # another file by now, or pixels that were changed
            return None


class Sourced:
    """A result that may know its source, apart from its fields. Neither pickling nor copying keeps the source."""

    __slots__ = ("_source",)
    _source: Source | None

    @property
    def source(self) -> Source | None:
        """What the result is of."""
        return getattr(self, "_source", None)

    def with_source(self: Result, source: Source | None) -> Result:
        """The result itself, which knows its source from now on."""
        object.__setattr__(self, "_source", source)
        return self

    def class_name(self, label: int) -> str:
        """The name of a class by its number; of a result without source "class" and the number."""
        names = self.source.names if self.source else ()
        return names[label] if label < len(names) else f"class {label}"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)


def references(images: object) -> list[str | os.PathLike | weakref.ref]:
    """Paths as they are and weak references to other images; none where the numbers of images are not clear."""
    several = images if isinstance(images, list | tuple) else [images]
    if len(several) > 1 and any(isinstance(image, Tensor) and image.dim() > 3 for image in several):
        return []
    try:
        return [image if isinstance(image, str | os.PathLike) else weakref.ref(image) for image in several]
    except TypeError:  # what has no weak references
        return []


def to_rgb(image: ImageLike, size: Size | None, value_range: ValueRange | None = None, number: int = 0) -> Tensor:
    """An image, or one of a tensor of several by its number, as uint8 [3, H, W], to be looked at.

    One channel and others than three are shown in grey. Without a value range, pixels that are not in 0..255 are
    stretched to it.

    Raises ArgumentError for an image of another (height, width) than `size`, and as `as_tensor` and `to_pixels`.
    """
    pixels = as_tensor(image)
    if pixels.dim() == 4 and len(pixels):
        pixels = pixels[min(number, len(pixels) - 1)]
    expected = tuple(size or pixels.shape[1:])
    if pixels.dim() != 3 or tuple(pixels.shape[1:]) != expected:
        shapes = expected, pixels.shape[1:] if pixels.dim() == 3 else pixels.shape
        own, other = ("x".join(map(str, shape)) for shape in shapes)
        raise ArgumentError("image", f"must be the image that was evaluated, {own} pixels, not {other}")
    if pixels.dtype != torch.uint8:
        pixels = to_pixels(pixels, value_range, "the image", any_range=True).float()
        low, high = pixels.aminmax()
        if value_range is None and high <= MAX_SCALED:
            pixels = (pixels - low) * (255 / (high - low).clamp(min=1e-6))
        pixels = pixels.clamp(0, 255).round().byte()
    pixels = pixels if len(pixels) == 3 else pixels.float().mean(dim=0, keepdim=True).round().byte().expand(3, -1, -1)
    return pixels.cpu()
