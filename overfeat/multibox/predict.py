"""DeepMultiBox: boxes of anything from one crop of an image, or ten; then what is in the best of them (section 4)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.data.resize import resize_crop
from overfeat.dense.detections import Detections, clipped
from overfeat.errors import InputError
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, as_batch, eval_mode
from overfeat.multibox.data import centre_square
from overfeat.ops.boxes import SQUARES, nms, sorted_edges, squares_around

CROPS = ("both", "centre")
PART = 0.6  # of the image's size, the side of the 3 x 3 crops
OVERLAP = 0.5  # IoU; the paper's, 0.4 for localization
TOP = 10  # boxes that are classified
LEAST = 0.01  # a box's score for a class, at least
AT_ONCE = 128  # squares in one pass of the classifier


def crops_of(height: int, width: int, crops: str = "both") -> list[tuple[int, int, int, int]]:
    """The squares x1, y1, x2, y2 of an image that are looked at, one evaluation of the net each (section 4.2.2).

    "centre": the largest in the middle; "both": and 3 x 3, evenly placed, whose side is PART of the image's longer
    side, at most its shorter one; each once. Raises InputError for other crops.
    """
    if crops not in CROPS:
        raise InputError(f"the crops are one of {', '.join(CROPS)}, not {crops!r}")
    found = [centre_square(height, width)]
    if crops == "both":
        side = max(1, min(height, width, math.ceil(PART * max(height, width))))
        rows, columns = ([round(k * (length - side) / 2) for k in range(3)] for length in (height, width))
        found += [(x, y, x + side, y + side) for y in rows for x in columns]
    return list(dict.fromkeys(found))


@torch.no_grad()
def propose(model: MultiBox, image: Tensor, crops: str = "both", threshold: float = OVERLAP) -> Detections:
    """Boxes that hold objects, the surest first, with their confidences as scores (section 4.2.2).

    image: [3, H, W] or [1, 3, H, W], float or uint8, RGB in 0..255. crops: see `crops_of`. Boxes are mapped back, cut
    to the image, and of those that overlap by more than `threshold` (IoU) the surest stays. labels are 0, or, for a
    model with K boxes per class, those of model.class_names, each suppressed on its own. Raises InputError for other
    crops and thresholds and for a model that gives NaN, ValueError for images of other shapes.
    """
    image = _one(image)
    size = tuple(image.shape[1:])
    squares = crops_of(*size, crops)
    device = model.net.device
    parts = torch.stack([resize_crop(image, square, model.side) for square in squares]).to(device)
    with eval_mode(model):
        boxes, logits = model(parts)
    if not (boxes.isfinite().all() and logits.isfinite().all()):
        raise InputError("the net gives NaN or infinite boxes; the image or the weights are broken")
    frame = torch.tensor(squares, dtype=boxes.dtype, device=device)[:, None, None]
    boxes = sorted_edges(boxes) * (frame[..., 2:3] - frame[..., :1]) + frame[..., :2].repeat(1, 1, 1, 2)
    boxes, scores = clipped(boxes.flatten(0, 2), size), logits.sigmoid().flatten()
    labels = torch.arange(model.groups, device=device)[None, :, None].expand(logits.shape).flatten()
    held = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[held], scores[held], labels[held]
    found = Detections(boxes, labels, scores, torch.ones_like(labels), scores, scores)
    return found[nms(boxes, scores, labels, iou_threshold=threshold)]


@torch.no_grad()
def classify_boxes(net: OverFeat, image: Tensor, boxes: Tensor, square: str = SQUARES[0]) -> Tensor:
    """What is in each box [n, 4] of an image: [n, net.num_foreground_classes], the softmax of the net on the square around it.

    image as in `propose`; boxes in its pixels; square: see boxes.squares_around. The background takes part in the
    softmax, and is left out. Raises InputError for another square and for NaN, ValueError for other shapes.
    """
    image, side = _one(image), net.architecture.window
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [n, 4], not {tuple(boxes.shape)}")
    if not boxes.isfinite().all():
        raise InputError("boxes hold NaN or infinite numbers")
    squares = squares_around(boxes, tuple(image.shape[1:]), square).tolist()
    device = net.device
    found = [torch.empty(0, net.num_foreground_classes, device=device)]
    with eval_mode(net):
        for start in range(0, len(squares), AT_ONCE):
            parts = torch.stack([resize_crop(image, square, side) for square in squares[start : start + AT_ONCE]])
            scores = net(parts.to(device)).flatten(1).float().softmax(dim=1)
            found.append(scores[:, : net.num_foreground_classes])
    probabilities = torch.cat(found)
    if not probabilities.isfinite().all():
        raise InputError("the net gives NaN scores; the image or the weights are broken")
    return probabilities


def detect_multibox(
    model: MultiBox,
    net: OverFeat | None,
    image: Tensor,
    crops: str = "both",
    top: int = TOP,
    threshold: float = OVERLAP,
    square: str = SQUARES[0],
    least: float = LEAST,
) -> Detections:
    """The objects in an image, best first: the `top` surest boxes of `propose`, classified (section 4.2.2).

    net: tells what is in a box, see `classify_boxes`; None: the `top` boxes whose confidence is `least` or more. A box
    is found for every class for which its confidence times the class's probability is `least` or more; that is
    its score, `sums` has the confidence and `best` the probability. For one box a class, as the localization task asks,
    see localize.guesses. Raises InputError as those do, for top and least out of range, and for a model with K boxes
    per class together with a net.
    """
    if top < 1 or not 0 <= least <= 1:
        raise InputError(f"top is 1 or more, least between 0 and 1; not {top} and {least}")
    if net is not None and model.class_names is not None:
        raise InputError("the boxes are of classes already; leave the classifier out")
    found = propose(model, image, crops, threshold)[:top]
    if net is None:
        return found[found.scores >= least]
    return with_classes(found, classify_boxes(net, image, found.boxes, square), least)


def with_classes(found: Detections, probabilities: Tensor, least: float = LEAST) -> Detections:
    """Boxes of classes, best first: from n boxes and what `classify_boxes` says of them [n, classes]."""
    scores = found.scores[:, None].to(probabilities) * probabilities
    box, label = (scores >= least).nonzero(as_tuple=True)
    order = scores[box, label].argsort(descending=True, stable=True)
    box, label = box[order], label[order]
    counts = torch.ones_like(label)
    return Detections(found.boxes[box], label, scores[box, label], counts, found.scores[box], probabilities[box, label])


def names_of(model: MultiBox, net: OverFeat | None) -> Sequence[str]:
    """The names of the labels that `detect_multibox` gives."""
    if net is not None:
        return net.class_names[: net.num_foreground_classes]
    return model.class_names or ["object"]


def _one(image: Tensor) -> Tensor:
    """[3, H, W]; ValueError for several images."""
    image = as_batch(image)
    if len(image) != 1:
        raise ValueError(f"one image at a time; these are {len(image)}")
    return image[0]
