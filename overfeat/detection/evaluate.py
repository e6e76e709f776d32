"""Average precision over annotated images."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_annotated
from overfeat.dense.detections import Detections
from overfeat.files import Journal
from overfeat.metrics.average_precision import Boxes, ground_truth
from overfeat.metrics.report import average_precisions


def evaluate_detection(
    predict: Callable[[Tensor], Detections],
    data: Annotated,
    *,
    ignore_list: Collection[tuple[int, str]] = (),
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    journal: Journal | None = None,
    progress: bool = True,
) -> dict:
    """Average precision over annotated images by every protocol.

    Args:
        predict: The detections in an image uint8 [3, H, W], such as those of `detect`.
        data: Images and boxes.
        ignore_list: (number of an image from 1, class) pairs that ILSVRC's protocol, and it alone, does not count.
        max_images, max_pixels, journal, progress: See `map_images`.

    Returns:
        What `average_precisions` returns, with "images": their number, and "unreadable": messages.

    Raises:
        InputError: No image with an object can be used.
    """

    def predicted(image: Tensor) -> list:
        """Boxes, labels and scores as lists."""
        detections = predict(image)
        return [values.tolist() for values in (detections.boxes, detections.labels, detections.scores)]

    mapped = map_annotated(
        data.samples, predicted, max_images=max_images, max_pixels=max_pixels, journal=journal, progress=progress
    )
    detections, truths, ignored = [], [], set()
    for position, (index, sample, (boxes, labels, scores)) in enumerate(mapped.results):
        ignored |= {(position, name) for number, name in ignore_list if number == index + 1}
        detections.append(Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores)))
        truths.append(ground_truth(sample))
    precisions = average_precisions(detections, truths, data.class_names, ignored)
    return {"images": len(truths), **precisions, "unreadable": mapped.unreadable}
