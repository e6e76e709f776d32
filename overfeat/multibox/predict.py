"""DeepMultiBox: class-agnostic boxes from one crop of an image, or ten; then the best of them are classified."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.data.resize import resize_crop
from overfeat.dense.detections import Detections
from overfeat.dense.inputs import one_image
from overfeat.dense.source import Source, references
from overfeat.errors import InputError, check_choice, check_count, check_fraction
from overfeat.models.multibox import MultiBox
from overfeat.models.net import Net, as_batch, eval_mode
from overfeat.models.wrappers import as_multibox, as_net
from overfeat.multibox.config import ProposalConfig
from overfeat.multibox.data import centre_square
from overfeat.ops.boxes import SQUARES, nms, sorted_edges, squares_around

CROPS = ("both", "centre")
CROP_FRACTION = 0.6  # side of the 3 x 3 crops, as a fraction of the image's longer side
SCORE_THRESHOLD = 0.01  # lowest score of a detection
SQUARE_BATCH = 128  # squares in one forward pass of the classifier


def square_crops(height: int, width: int, crops: str = "both") -> list[tuple[int, int, int, int]]:
    """The square crops x1, y1, x2, y2 of an image, one forward pass each (section 4.2.2).

    crops: "centre", the largest in the middle; or "both", and 3 x 3, evenly spaced, whose side is CROP_FRACTION of the
    image's longer side, at most its shorter one; each once. Raises ArgumentError for others.
    """
    check_choice("crops", crops, CROPS)
    squares = [centre_square(height, width)]
    if crops == "both":
        side = max(1, min(height, width, math.ceil(CROP_FRACTION * max(height, width))))
        rows, columns = ([round(k * (length - side) / 2) for k in range(3)] for length in (height, width))
        squares += [(x, y, x + side, y + side) for y in rows for x in columns]
    return list(dict.fromkeys(squares))


def propose(
    model: MultiBox, image: ImageLike, *, crops: str = "both",
    nms_iou_threshold: float = ProposalConfig.nms_iou_threshold, value_range: ValueRange | None = None,
) -> Detections:  # fmt: skip
    """Boxes that hold objects, highest confidence first (DeepMultiBox, section 4.2.2).

    Args:
        model: See `load_multibox`.
        image: A path, a PIL image, an array or a tensor, see `each_image`.
        crops: See `square_crops`; boxes are mapped back and clipped to the image.
        nms_iou_threshold: Largest IoU with a better box of its label that a box may have.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.

    Returns:
        Boxes with their confidences as scores. Labels are 0, or, for a model with K boxes per class, those of
        model.class_names.

    Raises:
        InputError: For other crops and thresholds and for a model that gives NaN.
        ValueError: For images of other shapes.
    """
    model = as_multibox(model)
    check_fraction("nms_iou_threshold", nms_iou_threshold)
    pixels = one_image(model.net, image, value_range)
    return _propose(model, pixels, crops, nms_iou_threshold).with_source(
        _source(model, None, image, pixels, value_range)
    )


@torch.no_grad()
def _propose(model: MultiBox, image: Tensor, crops: str, nms_iou_threshold: float) -> Detections:
    """`propose` of an image [3, H, W]."""
    squares = square_crops(image.shape[1], image.shape[2], crops)
    size = (model.image_size, model.image_size)
    batch = torch.stack([resize_crop(image, square, size) for square in squares]).to(model.device)
    with eval_mode(model):
        boxes, logits = model(batch)
    if not (boxes.isfinite().all() and logits.isfinite().all()):
        raise InputError("the net gives NaN or infinite boxes; the image or the weights are broken")
    frame = torch.tensor(squares, dtype=boxes.dtype, device=model.device)[:, None, None]
    boxes = sorted_edges(boxes) * (frame[..., 2:3] - frame[..., :1]) + frame[..., :2].repeat(1, 1, 1, 2)
    labels = torch.arange(model.num_groups, device=model.device)[None, :, None].expand(logits.shape).flatten()
    proposals = Detections.from_boxes(boxes.flatten(0, 2), labels, logits.sigmoid().flatten())
    proposals = proposals.clip((image.shape[1], image.shape[2]))
    return proposals[nms(proposals.boxes, proposals.scores, proposals.labels, iou_threshold=nms_iou_threshold)]


def classify_boxes(
    net: Net, image: ImageLike, boxes: Tensor, *, square: str = SQUARES[0], value_range: ValueRange | None = None
) -> Tensor:
    """Classify boxes of an image: the probabilities that the net gives to the square around each.

    For a net whose windows are not square it is the rectangle of their aspect ratio.

    Args:
        net: A classifier of a window. A background class takes part in the softmax, and is left out of the result.
        image, value_range: As in `propose`.
        boxes: [n, 4] in pixels of the image.
        square: See `ops.boxes.squares_around`.

    Returns:
        [n, net.num_foreground_classes].

    Raises:
        InputError: For another square and for NaN.
        ValueError: For other shapes.
    """
    net = as_net(net)
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be a tensor [n, 4], not {type(boxes).__name__}; torch.as_tensor makes one")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [n, 4], not {tuple(boxes.shape)}")
    if not boxes.isfinite().all():
        raise InputError("boxes hold NaN or infinite numbers")
    return _classify_boxes(net, one_image(net, image, value_range), boxes, square)


@torch.no_grad()
def _classify_boxes(net: Net, image: Tensor, boxes: Tensor, square: str) -> Tensor:
    """`classify_boxes` of an image [C, H, W]."""
    image, (height, width) = as_batch(image, net.in_channels)[0], net.geometry.window
    aspect = width / height
    # In these coordinates a window is a square.
    scaled = boxes / boxes.new_tensor([aspect, 1, aspect, 1])
    squares = squares_around(scaled, (image.shape[1], image.shape[2] / aspect), square)
    edges_of = (squares * squares.new_tensor([aspect, 1, aspect, 1])).tolist()
    chunks = [torch.empty(0, net.num_foreground_classes, dtype=torch.float32, device=net.device)]
    with eval_mode(net):
        for start in range(0, len(edges_of), SQUARE_BATCH):
            crops = [resize_crop(image, edges, (height, width)) for edges in edges_of[start : start + SQUARE_BATCH]]
            outputs = net.class_maps(torch.stack(crops).to(net.device)).flatten(1)
            scores = net.probabilities(outputs)
            chunks.append(scores[:, : net.num_foreground_classes])
    probabilities = torch.cat(chunks)
    if not probabilities.isfinite().all():
        raise InputError("the net gives NaN scores; the image or the weights are broken")
    return probabilities


def detect_multibox(
    model: MultiBox, net: Net | None, image: ImageLike, *, crops: str = "both",
    max_detections: int = ProposalConfig.max_detections, nms_iou_threshold: float = ProposalConfig.nms_iou_threshold,
    score_threshold: float = SCORE_THRESHOLD, square: str = SQUARES[0], value_range: ValueRange | None = None,
) -> Detections:  # fmt: skip
    """The objects in an image, best first: the highest-confidence boxes of `propose`, classified (section 4.2.2).

    A box is a detection of every class for which its score, its confidence times the class's probability, reaches the
    threshold. For one box per class, as the localization task asks, see `dense.detections.best_per_class`.

    Args:
        model, image, crops, nms_iou_threshold, value_range: As in `propose`.
        net: Classifies the boxes, see `classify_boxes`; None: the boxes of `propose` with their own labels.
        max_detections: Boxes that are classified.
        score_threshold: Lowest score of a detection.
        square: See `classify_boxes`.

    Returns:
        With a net, `confidence_sum` are the boxes' confidences and `max_score` the classes' probabilities.

    Raises:
        InputError: As `propose` and `classify_boxes`; for a model with K boxes per class together with a net.
    """
    check_count("max_detections", max_detections)
    check_fraction("score_threshold", score_threshold)
    model, net = as_multibox(model), None if net is None else as_net(net)
    if net is not None and model.class_names is not None:
        raise InputError("the model's boxes have classes already; leave the classifier out")
    check_fraction("nms_iou_threshold", nms_iou_threshold)
    pixels = one_image(model.net, image, value_range)
    proposals = _propose(model, pixels, crops, nms_iou_threshold)[:max_detections]
    source = _source(model, net, image, pixels, value_range)
    if net is None:
        return proposals[proposals.scores >= score_threshold].with_source(source)
    probabilities = _classify_boxes(net, pixels, proposals.boxes, square)
    return with_classes(proposals, probabilities, score_threshold=score_threshold).with_source(source)


def _source(
    model: MultiBox, net: Net | None, image: ImageLike, pixels: Tensor, value_range: ValueRange | None
) -> Source:
    return Source(label_names(model, net), (pixels.shape[1], pixels.shape[2]), references(image), value_range)


def with_classes(
    proposals: Detections, probabilities: Tensor, *, score_threshold: float = SCORE_THRESHOLD
) -> Detections:
    """Detections, best first, from n class-agnostic boxes and the classes' probabilities for each [n, classes]."""
    scores = proposals.scores[:, None].to(probabilities) * probabilities
    box, label = (scores >= score_threshold).nonzero(as_tuple=True)
    order = scores[box, label].argsort(descending=True, stable=True)
    box, label = box[order], label[order]
    return Detections(
        proposals.boxes[box], label, scores[box, label], torch.ones_like(label), proposals.scores[box],
        probabilities[box, label],
    )  # fmt: skip


def label_names(model: MultiBox, net: Net | None) -> Sequence[str]:
    """The names of the labels that `detect_multibox` gives."""
    if net is not None:
        return net.class_names[: net.num_foreground_classes]
    return model.class_names or ["object"]
