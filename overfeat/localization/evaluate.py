"""Localization error over annotated images."""

import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_images
from overfeat.dense.detections import Detections
from overfeat.errors import InputError
from overfeat.metrics.localization import localization_errors


def evaluate_localization(
    predict: Callable[[Tensor], Detections],
    data: Annotated,
    *,
    ignore_list: Collection[int] = (),
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> dict:
    """Localization error (ILSVRC) over the annotated images that have boxes.

    Args:
        predict: The predictions for an image uint8 [3, H, W], best first, such as those of `localize`.
        data: Images and boxes.
        ignore_list: Numbers of images that are not counted, as in ILSVRC's list: the number in a file's name, or else
            its position in the data, from 1.
        max_images, max_pixels, progress: See `map_images`.

    Returns:
        {"images": count, "errors": {"top1": percent, "top5": percent}, "unreadable": messages}.
    """
    samples = _counted(data, ignore_list)

    def predicted(image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and boxes."""
        detections = predict(image)
        return detections.labels.cpu(), detections.boxes.cpu()

    mapped = map_images(samples, predicted, max_images=max_images, max_pixels=max_pixels, progress=progress)
    truths = [(torch.from_numpy(sample.labels), torch.from_numpy(sample.boxes)) for _, sample, _ in mapped.results]
    errors = localization_errors([result for _, _, result in mapped.results], truths)
    return {"images": len(truths), "errors": errors, "unreadable": mapped.unreadable}


def _counted(data: Annotated, ignore_list: Collection[int]) -> list[Sample]:
    """The images that have boxes and are not ignored."""
    samples = []
    for position, sample in enumerate(data.samples, 1):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", sample.path.stem)
        if len(sample.labels) and (int(number[1]) if number else position) not in ignore_list:
            samples.append(sample)
    if not samples:
        raise InputError(f"none of the {len(data)} images has boxes and is not ignored; give others")
    return samples
