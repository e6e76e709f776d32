"""Boxes: IoU, match scores, NMS and box coders. Boxes are (x1, y1, x2, y2) in pixels, continuous and half-open."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.errors import InputError, check_choice, check_fraction

MATCH_METRICS = ("normalised", "sum", "centres")
MAX_LOG_RATIO = 7.0  # of a side to its window's, before the exponential
EPSILON = 1e-9
SQUARES = ("maximum", "minimum")
COMPILED_NMS = 500  # boxes; more of them are worth the import of numba
MAX_COORDINATE = 1e9  # pixels; squares of larger ones would come near the limits of float32
# Box coders, each with the code of a box of half the window's sides in its centre.
BOX_CODERS = {
    "xyxy": torch.tensor([0.25, 0.25, 0.75, 0.75], dtype=torch.float32),
    "cxcywh": torch.tensor([0.5, 0.5, -math.log(2), -math.log(2)], dtype=torch.float32),
}


def check_boxes(boxes: Tensor, scores: Tensor, groups: Tensor) -> None:
    """Raises ValueError unless they are boxes [T, 4], scores [T] and int64 groups [T] on one device.

    TypeError for what is not a tensor.
    """
    for name, value in (("boxes", boxes), ("scores", scores), ("groups", groups)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}: use torch.as_tensor")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or groups.shape != scores.shape:
        shapes = f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(groups.shape)}"
        raise ValueError(f"boxes must be [T, 4], scores and groups [T]; these have shapes {shapes}")
    if boxes.dtype not in (torch.float32, torch.float64) or scores.dtype != boxes.dtype or groups.dtype != torch.int64:
        dtypes = f"they are {boxes.dtype}, {scores.dtype} and {groups.dtype}: use .float() and .long()"
        raise ValueError(f"boxes and scores must be float32 or both float64, groups int64; {dtypes}")
    if not boxes.device == scores.device == groups.device:
        raise ValueError(f"boxes, scores, groups are on {boxes.device}, {scores.device}, {groups.device}; move them")


def check_values(boxes: Tensor, scores: Tensor) -> None:
    """Raises InputError for invalid boxes and scores, with the first of them."""
    coordinates = f"coordinates that are NaN, infinite or beyond {MAX_COORDINATE:.0e} px"
    problems = {
        coordinates: ~(boxes.abs() <= MAX_COORDINATE).all(dim=1),
        "x2 < x1 or y2 < y1": (boxes[:, 2:] < boxes[:, :2]).any(dim=1),
        "a score that is NaN, infinite or negative": ~((scores >= 0) & (scores < torch.inf)),
    }
    for problem, invalid in problems.items():
        if invalid.any():
            first = int(invalid.nonzero()[0])
            raise InputError(
                f"{int(invalid.sum())} of {len(boxes)} boxes have {problem}; the first is number {first}, "
                f"{boxes[first].tolist()} with score {float(scores[first])}"
            )


def scoring(scores: Tensor, labels: Tensor, min_score: float | Sequence[float]) -> Tensor:
    """The boxes that score `min_score`, one number or one for each class, or more: bool [T].

    The threshold has the precision of the scores [T]; labels: int64 [T].
    """
    if isinstance(min_score, Sequence):
        return scores >= scores.new_tensor(min_score)[labels]
    return scores >= min_score


def areas(boxes: Tensor) -> Tensor:
    """Areas of boxes [..., 4] in square pixels: [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection of every box of a [n, 4] with every box of b [m, 4]: [n, m]."""
    a, b = a[:, None], b[None]
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (Jaccard index) of every box of a [n, 4] with every box of b [m, 4]: [n, m].

    For two boxes without area it is 1 if they are equal, else 0. Boxes of float16 and bfloat16 are computed in float32,
    boxes of integers in float64, and so is the result; of different dtypes the wider one is used.

    Raises:
        TypeError: for what is not a tensor of real numbers.
        ValueError: for other shapes.
    """
    a, b = _computable(a, b)
    shared, union = _shared_and_union(a, b)
    return torch.where(union > 0, shared / union, _equal(a, b).to(shared.dtype))


def _computable(*boxes: Tensor) -> list[Tensor]:
    """Boxes [n, 4] in the dtype in which areas are precise: float64 if one of them is that or of integers, or float32.

    Raises TypeError for what is not a tensor of real numbers, ValueError for other shapes.
    """
    for value in boxes:
        if not isinstance(value, Tensor):
            raise TypeError(f"boxes must be tensors [n, 4], not {type(value).__name__}: use torch.as_tensor")
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"boxes must be tensors of numbers, not {value.dtype}")
        if value.dim() != 2 or value.shape[1] != 4:
            raise ValueError(f"boxes must be [n, 4], not {list(value.shape)}")
    wide = any(value.dtype == torch.float64 or not value.is_floating_point() for value in boxes)
    return [value.to(torch.float64 if wide else torch.float32) for value in boxes]


def _shared_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and the union of every pair: [n, m] each."""
    shared = intersections(a, b)
    return shared, (areas(a)[:, None] + areas(b)[None]) - shared


def match_score(a: Tensor, b: Tensor, *, match_metric: str = "normalised", min_iou: float = 0.5) -> Tensor:
    """Match score of every box of a with every box of b (section 4.3): the smaller, the better they match.

    Args:
        a, b: [n, 4] and [m, 4], both float32 or both float64.
        match_metric: "normalised", the distance of the centres over the mean of the two diagonals, plus 1 - IoU, 0 for
            equal boxes. "sum", the paper's words read literally: the distance of the centres in pixels plus the area of
            the intersection, large for equal boxes and small for distant ones. "centres", the distance over the mean
            diagonal, infinite for pairs whose IoU is below `min_iou`, as the first author's earlier library merges.

    Returns:
        [n, m].

    Raises:
        TypeError: for what is not a tensor of real numbers.
        ValueError: for other shapes, dtypes and metrics.
    """
    check_choice("match_metric", match_metric, MATCH_METRICS)
    _computable(a, b)
    if not all(x.dtype in (torch.float32, torch.float64) for x in (a, b)):
        raise ValueError(f"boxes must be float32 or float64, not {a.dtype} and {b.dtype}")
    if a.dtype != b.dtype:
        raise ValueError(f"boxes must be of one dtype, not {a.dtype} and {b.dtype}")
    # Twice the centres over the sum of the diagonals: every backend rounds in exactly these steps.
    delta = _centres(a)[:, None] - _centres(b)[None]
    distance = torch.sqrt(delta[..., 0] * delta[..., 0] + delta[..., 1] * delta[..., 1])
    if match_metric == "sum":
        return distance * 0.5 + intersections(a, b)
    equal = _equal(a, b)
    diagonals = _diagonals(a)[:, None] + _diagonals(b)[None]
    relative = torch.where(equal, 0.0, torch.where(diagonals > 0, distance / diagonals, torch.inf))
    if match_metric == "centres":
        return torch.where(iou(a, b) >= min_iou, relative, torch.inf)
    shared, union = _shared_and_union(a, b)
    return relative + torch.where(union > 0, (union - shared) / union, 1 - equal.to(relative.dtype))


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None = None, *, iou_threshold: float = 0.5,
    across_iou_threshold: float = 1.0,
) -> Tensor:  # fmt: skip
    """Non-maximum suppression within each group and, if asked, across groups.

    A box is removed if a kept box with a higher score (of equal scores, the first) overlaps it by an IoU above the
    threshold: `iou_threshold` for boxes of one group, `across_iou_threshold` for boxes of different groups.

    Args:
        boxes, scores: [T, 4] and [T], both float32 or both float64.
        groups: int64 [T], or None for one group.
        iou_threshold: the largest IoU of two kept boxes of a group.
        across_iou_threshold: the largest IoU of two kept boxes of different groups; 1 keeps all.

    Returns:
        Indices of the kept boxes, int64, highest score first.

    Raises:
        TypeError: for what is not a tensor.
        ValueError: for wrong shapes and dtypes (InputError, a subclass, for invalid values).
    """
    if groups is None and isinstance(boxes, Tensor):
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    check_boxes(boxes, scores, groups)
    check_values(boxes, scores)
    check_fraction("iou_threshold", iou_threshold)
    check_fraction("across_iou_threshold", across_iou_threshold)
    order = scores.argsort(descending=True, stable=True)
    if min(iou_threshold, across_iou_threshold) == 1:
        return order
    from overfeat.ops.backends import eager_boxes, numba_modules

    compiled = numba_modules.load("numba_nms") if len(boxes) > COMPILED_NMS else None
    return (compiled or eager_boxes).nms(boxes, order, groups, iou_threshold, across_iou_threshold)


def encode(boxes: Tensor, windows: Tensor, box_coder: str = "xyxy") -> Tensor:
    """Boxes [..., 4] in the frame of their windows [..., 4], where the window is the unit square (section 4.2).

    box_coder: "xyxy", the paper's (x1, y1, x2, y2); "cxcywh", the centre and the logarithms of width and height.
    """
    origin, size = windows[..., :2], windows[..., 2:] - windows[..., :2]
    low, high = (boxes[..., :2] - origin) / size, (boxes[..., 2:] - origin) / size
    if box_coder == "xyxy":
        return torch.cat([low, high], dim=-1)
    return torch.cat([(low + high) / 2, (high - low).log()], dim=-1)


def decode(codes: Tensor, windows: Tensor, box_coder: str = "xyxy") -> Tensor:
    """The boxes that `encode` encoded; edges in the wrong order are exchanged."""
    origin, size = windows[..., :2], windows[..., 2:] - windows[..., :2]
    if box_coder == "xyxy":
        low, high = sorted_edges(codes).chunk(2, dim=-1)
    else:
        half = codes[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
        low, high = codes[..., :2] - half, codes[..., :2] + half
    return torch.cat([origin + low * size, origin + high * size], dim=-1)


def sorted_edges(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] with edges in the wrong order exchanged."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=-1)


def mirrored(codes: Tensor, box_coder: str = "xyxy") -> Tensor:
    """The codes of the same boxes in the horizontally flipped window."""
    x1, y1, x2, y2 = codes.unbind(dim=-1)
    if box_coder == "xyxy":
        return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)
    return torch.stack([1 - x1, y1, x2, y2], dim=-1)


def paired_iou(a: Tensor, b: Tensor, generalised: bool = False) -> Tensor:
    """IoU of each box of a [..., 4] with the box of b [..., 4] at the same index: [...]; differentiable.

    generalised: GIoU, less the fraction of the smallest enclosing box that neither covers (Rezatofighi et al.
    2019), which has a gradient for disjoint boxes, too.
    """
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = sides.prod(dim=-1)
    union = areas(a) + areas(b) - shared
    result = shared / union.clamp(min=EPSILON)
    if generalised:
        hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(dim=-1)
        result = result - (hull - union) / hull.clamp(min=EPSILON)
    return result


def squares_around(boxes: Tensor, size: tuple[float, float], square: str = "maximum") -> Tensor:
    """The square around each box [n, 4], within an image of (height, width).

    It has the box's centre, but is shifted where it would reach beyond the image; its side is at least one pixel and
    at most the image's shorter side.

    square: "maximum", with the box's longer side, so that it contains the box; "minimum", with the shorter one, one
        reading of the DeepMultiBox paper's "minimum square region around the crop".
    """
    check_choice("square", square, SQUARES)
    sides = (boxes[:, 2:] - boxes[:, :2]).aminmax(dim=1)
    side = (sides.max if square == "maximum" else sides.min).clamp(1, min(size))[:, None]
    room = boxes.new_tensor([size[1], size[0]]) - side
    corner = torch.minimum((_centres(boxes) - side) / 2, room).clamp(min=0)
    return torch.cat([corner, corner + side], dim=1)


def _centres(boxes: Tensor) -> Tensor:
    """Twice the centres: [..., 2]."""
    return boxes[..., :2] + boxes[..., 2:]


def _diagonals(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.sqrt(sides[..., 0] * sides[..., 0] + sides[..., 1] * sides[..., 1])


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] == b[None]).all(dim=-1)
