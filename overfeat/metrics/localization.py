"""Localization error (ILSVRC)."""

from collections.abc import Sequence

from torch import Tensor

from overfeat.errors import InputError
from overfeat.ops.boxes import iou


def localization_errors(
    predictions: Sequence[tuple[Tensor, Tensor]], truths: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Localization error in percent, with one prediction and with five (ILSVRC's localization task).

    A prediction is right if an object of its class overlaps its box by an IoU of 0.5 or more, an image if one of its
    predictions is. ILSVRC's IoU counts pixels, both edges included; that is the IoU of the half-open boxes that this
    library has everywhere, where x2 is the edge behind the last pixel.

    Args:
        predictions: For each image labels int64 [n] and boxes [n, 4], best first.
        truths: The same of its objects.

    Returns:
        {"top1": percent, "top5": percent}.
    """
    if not truths:
        raise InputError("no images, so there is no error rate; give at least one")
    wrong = {1: 0, 5: 0}
    for (labels, boxes), (true_labels, true_boxes) in zip(predictions, truths, strict=True):
        right = (iou(boxes.double(), true_boxes.double()) >= 0.5) & (labels[:, None] == true_labels[None])
        for k in wrong:
            wrong[k] += not right[:k].any()
    return {f"top{k}": 100.0 * count / len(truths) for k, count in wrong.items()}
