"""Localization error (ILSVRC)."""

from collections.abc import Sequence

from torch import Tensor

from overfeat.errors import InputError
from overfeat.ops.boxes import iou


def localization_errors(
    guesses: Sequence[tuple[Tensor, Tensor]], truths: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Localization error in percent, with one guess and with five (ILSVRC's localization task).

    guesses, truths: for each image labels int64 [n] and boxes [n, 4], the guesses best first. A guess
    is right if an object of its class overlaps its box by an IoU of 0.5 or more, an image if one of
    its guesses is. ILSVRC's IoU counts pixels, both edges included; that is the IoU of the half-open
    boxes that this library has everywhere, where x2 is the edge behind the last pixel.
    """
    if not truths:
        raise InputError("no images to take an error rate of")
    wrong = {1: 0, 5: 0}
    for (labels, boxes), (true_labels, true_boxes) in zip(guesses, truths, strict=True):
        right = (iou(boxes.double(), true_boxes.double()) >= 0.5) & (labels[:, None] == true_labels[None])
        for k in wrong:
            wrong[k] += not right[:k].any()
    return {f"top{k}": 100.0 * count / len(truths) for k, count in wrong.items()}
