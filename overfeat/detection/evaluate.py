"""Average precision over annotated images."""

from collections.abc import Collection

import torch

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.walk import each_image
from overfeat.dense.detections import Detections
from overfeat.detection.predict import detect
from overfeat.files import Journal
from overfeat.metrics.average_precision import Boxes, ground_truth
from overfeat.metrics.report import average_precisions
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat


def evaluate_detection(
    net: OverFeat,
    regressor: BoxRegressor,
    data: Annotated,
    ignore_list: Collection[tuple[int, str]] = (),
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
    **options: object,
) -> dict:
    """Average precision over annotated images by every protocol; options: those of `detect`.

    ignore_list: (number of an image from 1, class) pairs that ILSVRC's protocol alone does not count. limit: only so
    many images, evenly spaced. journal: keeps what was found in each image, so that a killed run goes on. Gives
    {"images", "objects": counts, "map": {protocol: in 0..1}, "ap": {class: {"objects": count, protocol: in 0..1}},
    for those that have objects, "coco": figures by name or None, "curves": {class: {"scores", "recall", "precision",
    "right"}}, VOC's, "unreadable": [messages]}. The protocols are average_precision.PROTOCOLS and "coco", the mean
    over IoUs of 0.5 to 0.95. Raises InputError where no image can be used.
    """
    results, unreadable = each_image(
        data, lambda image: listed_detections(detect(net, regressor, image, **options)), max_pixels, limit, journal
    )
    found, truths, listed = [], [], set()
    for place, sample, (boxes, labels, scores) in results:
        listed |= {(len(found), name) for number, name in ignore_list if number == place + 1}
        found.append(Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores)))
        truths.append(ground_truth(sample))
    return {
        "images": len(found),
        **average_precisions(found, truths, data.class_names, listed),
        "unreadable": unreadable,
    }


def listed_detections(found: Detections) -> list:
    return [values.tolist() for values in (found.boxes, found.labels, found.scores)]
