"""The images that public functions take, as batches of pixels for a net."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overfeat.data.arrays import KINDS, ImageLike, ValueRange, as_tensor, to_pixels
from overfeat.errors import InputError
from overfeat.models.net import Net, as_batch

Images = Union[ImageLike, Iterable[ImageLike]]  # noqa: UP007  (as a string names a class, | fails at run time)
GATHERED_BYTES = 1 << 28  # of images of a list that are in memory together


def one_image(net: Net, image: ImageLike, value_range: ValueRange | None = None) -> Tensor:
    """One image as [C, H, W] in 0..255 for this net; InputError for several, and as `each_image`."""
    batches = list(islice(each_image([net], image, value_range), 2))
    if len(batches) != 1 or len(batches[0]) != 1:
        count = "more" if len(batches) > 1 else len(batches[0]) if batches else 0
        raise InputError(f"one image at a time, not {count}; call it for each of them")
    return as_batch(batches[0], net.in_channels)[0]


def image_batch(net: Net, images: Images, value_range: ValueRange | None = None) -> Tensor:
    """Images of one size as [N, C, H, W] in 0..255 for this net; InputError for several sizes or none."""
    batches = list(each_image([net], images, value_range))
    sizes = list(dict.fromkeys(f"{batch.shape[2]}x{batch.shape[3]}" for batch in batches))
    if len(sizes) != 1:
        problem = f"they are of {', '.join(sizes[:3])}" if sizes else "there is none"
        raise InputError(f"images must be at least one, all of one size; {problem}; call it for each of them")
    batches = [as_batch(batch, net.in_channels) for batch in batches]
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def batches(
    nets: Sequence[Net], images: Images, value_range: ValueRange | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """The images of each shape as batches [N, C, H, W] in 0..255, with their numbers.

    Of a list those in GATHERED_BYTES are in memory together.
    """
    alike: dict[tuple, list[tuple[int, Tensor]]] = {}
    count = held = 0
    for image in each_image(nets, images, value_range):
        numbered = alike.setdefault((tuple(image.shape[1:]), image.dtype), [])
        numbered.append((count, image))
        count, held = count + len(image), held + image.nbytes
        if held > GATHERED_BYTES:
            yield from _gathered(alike)
            held = 0
    yield from _gathered(alike)


def _gathered(alike: dict[tuple, list[tuple[int, Tensor]]]) -> Iterator[tuple[list[int], Tensor]]:
    for numbered in alike.values():
        numbers = [first + i for first, image in numbered for i in range(len(image))]
        yield numbers, numbered[0][1] if len(numbered) == 1 else torch.cat([image for _, image in numbered])
    alike.clear()


def takes_any_range(net: Net) -> bool:
    """Whether images need not be in 0..255: a net that neither divides pixels nor subtracts a mean of such pixels."""
    return max(net.pixel_std) <= 1 and max(map(abs, net.mean_color)) <= 1


def each_image(nets: Sequence[Net], images: Images, value_range: ValueRange | None = None) -> Iterator[Tensor]:
    """Images one after the other, or a tensor of several at once, as [N, C, H, W] in 0..255.

    Args:
        nets: That evaluate the images. Where all take any range (`takes_any_range`), images without a value range may
            have any.
        images: A path, a PIL image, a NumPy array [H, W, 3] or [H, W], a tensor [C, H, W] or [N, C, H, W], or an
            iterable of these.
        value_range: See `to_pixels`.

    Raises:
        InputError: As `as_tensor` and `to_pixels`, and for other shapes.
        TypeError: For what is neither an image nor images.
    """
    any_range = all(map(takes_any_range, nets))
    if isinstance(images, (str, Image.Image, np.ndarray, Tensor)) or hasattr(images, "__fspath__"):
        named: Iterable[tuple[str, Any]] = [("the image", images)]
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray, memoryview, Mapping)):
        named = ((f"image {i} of the list", image) for i, image in enumerate(images))
    else:
        raise TypeError(f"the image must be {KINDS}, or a list of them, not {type(images).__name__}")
    for name, image in named:
        yield as_batch(to_pixels(as_tensor(image, name), value_range, name, any_range), None)
