"""A function of an image, mapped over the images of a data set; with progress, and a journal for interrupted runs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from tqdm import tqdm

from overfeat.data.annotated import Sample
from overfeat.data.images import MAX_PIXELS
from overfeat.data.read_ahead import read_ahead
from overfeat.errors import InputError, with_path
from overfeat.files import Journal


class ImageFile(Protocol):
    """An image on disk, such as `annotated.Sample` or `image_folder.LabeledImage`."""

    @property
    def path(self) -> Path: ...

    def read(self, max_pixels: int = MAX_PIXELS) -> Tensor: ...


Item = TypeVar("Item")
Image = TypeVar("Image", bound=ImageFile)


@dataclass(frozen=True)
class Mapped(Generic[Image]):
    """results: (index in the data set, image file, the function's result); unreadable: messages, one a file."""

    results: list[tuple[int, Image, Any]]
    unreadable: list[str]


def map_images(
    images: Sequence[Image], function: Callable[[Tensor], Any], *, max_images: int | None = None,
    max_pixels: int = MAX_PIXELS, journal: Journal | None = None, progress: bool = True,
) -> Mapped[Image]:  # fmt: skip
    """Read every image, one ahead, and apply the function to it. Raises InputError if no image can be used.

    Args:
        function: Of an image uint8 [3, H, W]; with a journal its results must be valid JSON.
        max_images: Use only so many of the images, evenly spaced.
        max_pixels: Larger images cannot be used.
        journal: Keeps the results, so that a run that was killed resumes.
    """
    unreadable: list[str] = []
    done: dict[str, Any] = {} if journal is None else journal.done
    chosen = {
        f"{index} {image.path.name}": (index, image) for index, image in subsample([*enumerate(images)], max_images)
    }
    pending = [key for key in chosen if key not in done]
    reading = read_ahead(pending, lambda key: chosen[key][1].read(max_pixels))
    shown = {"unit": "image", "file": sys.stderr, "disable": None if progress else True}
    for key, image in tqdm(reading, total=len(chosen), initial=len(chosen) - len(pending), **shown):
        try:
            result = function(image.result())
        except InputError as error:
            unreadable.append(with_path(chosen[key][1].path, error))
            continue
        if journal is not None:
            journal.add(key, result)
        done[key] = result
    mapped = Mapped([(*chosen[key], done[key]) for key in chosen if key in done], unreadable)
    if not mapped.results:
        first = (mapped.unreadable or ["no images"])[0]
        raise InputError(f"none of the {len(images)} images can be used; the first: {first}")
    return mapped


def map_annotated(samples: Sequence[Sample], function: Callable[[Tensor], Any], **options: Any) -> Mapped[Sample]:
    """`map_images` for an evaluation: raises InputError too if no image that can be used has an object."""
    chosen = subsample(samples, options.get("max_images"))
    if not any(len(sample.labels) for sample in chosen):
        raise InputError(f"no objects in the {len(chosen)} images, so there is nothing to evaluate; give others")
    mapped = map_images(samples, function, **options)
    if not any(len(sample.labels) for _, sample, _ in mapped.results):
        first = (mapped.unreadable or ["no objects"])[0]
        raise InputError(f"none of the {len(samples)} images with objects can be used; the first: {first}")
    return mapped


def subsample(items: Sequence[Item], count: int | None) -> Sequence[Item]:
    """`count` of the items, evenly spaced; all, if there are no more or the count is None."""
    if not count or count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]
