"""Boxes: overlaps, match scores and suppression. Boxes are (x1, y1, x2, y2) in pixels, continuous and half-open."""

import math

import torch
from torch import Tensor

from overfeat.errors import InputError

MATCHES = ("normalised", "sum", "centres")
LARGEST_LOG = 7.0  # of a side over its window's: more is not a box any more
EPSILON = 1e-9
SQUARES = ("maximum", "minimum")
FARTHEST = 1e9  # pixels; squares of more would come near the end of float32
# How a box is written in its window's frame, and the box in the middle of the window.
BOX_CODERS = {
    "edges": torch.tensor([0.25, 0.25, 0.75, 0.75]),
    "centre": torch.tensor([0.5, 0.5, 0.5, 0.5]).where(torch.tensor([True, True, False, False]), -math.log(2)),
}


def check_boxes(boxes: Tensor, scores: Tensor, groups: Tensor) -> None:
    """Raises ValueError unless they are boxes [T, 4], scores [T] and groups [T] of fitting types on one device."""
    for value in (boxes, scores, groups):
        if not isinstance(value, Tensor):
            raise ValueError(f"boxes, scores and groups are tensors, not {type(value).__name__}")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or groups.shape != scores.shape:
        raise ValueError(
            "boxes must be [T, 4], scores and groups [T]; these have shapes "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(groups.shape)}"
        )
    if boxes.dtype not in (torch.float32, torch.float64) or scores.dtype != boxes.dtype or groups.dtype != torch.int64:
        raise ValueError(
            "boxes and scores must be float32 or both float64, groups int64; "
            f"they are {boxes.dtype}, {scores.dtype} and {groups.dtype}: use .float() and .long()"
        )
    if not boxes.device == scores.device == groups.device:
        raise ValueError(f"boxes, scores, groups are on {boxes.device}, {scores.device}, {groups.device}; move them")


def check_values(boxes: Tensor, scores: Tensor) -> None:
    """Raises InputError for boxes and scores that are none, with the first of them."""
    wrong = {
        f"coordinates that are NaN, infinite or beyond {FARTHEST:.0e} px": ~(boxes.abs() <= FARTHEST).all(dim=1),
        "x2 < x1 or y2 < y1": (boxes[:, 2:] < boxes[:, :2]).any(dim=1),
        "a score that is NaN, infinite or negative": ~((scores >= 0) & (scores < torch.inf)),
    }
    for what, which in wrong.items():
        if which.any():
            first = int(which.nonzero()[0])
            raise InputError(
                f"{int(which.sum())} of {len(boxes)} boxes have {what}; the first is number {first}, "
                f"{boxes[first].tolist()} with score {float(scores[first])}"
            )


def areas(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """Area that every box of a [n, 4] shares with every box of b [m, 4]: [n, m]."""
    a, b = a[:, None], b[None]
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (Jaccard) of every box of a [n, 4] with every box of b [m, 4]: [n, m].

    Of two boxes without area it is 1 where they are equal, else 0.
    """
    shared = intersections(a, b)
    union = (areas(a)[:, None] + areas(b)[None]) - shared
    return torch.where(union > 0, shared / union, _equal(a, b).to(shared.dtype))


def match_score(a: Tensor, b: Tensor, match: str = "normalised", overlap: float = 0.5) -> Tensor:
    """How little every box of a [n, 4] matches every box of b [m, 4]: [n, m], 0 for equal boxes (section 4.3).

    match "normalised": the distance of the centres over the mean of the two diagonals, plus
    1 - IoU. "sum": the paper's words read literally, the distance of the centres in pixels plus
    the area shared; it is large for equal boxes and small for distant ones. "centres": the distance
    over the mean diagonal, infinite for pairs whose IoU is below `overlap`, as the first author's
    earlier library merges.
    """
    if match not in MATCHES:
        raise ValueError(f"match is one of {', '.join(MATCHES)}, not {match!r}")
    if not all(x.dim() == 2 and x.shape[1] == 4 and x.dtype in (torch.float32, torch.float64) for x in (a, b)):
        raise ValueError(f"boxes must be [n, 4], float32 or float64, not {tuple(a.shape)} {a.dtype} and "
                         f"{tuple(b.shape)} {b.dtype}")  # fmt: skip
    if a.dtype != b.dtype:
        raise ValueError(f"boxes must be of one type, not {a.dtype} and {b.dtype}")
    # Centres counted double, as the diagonals' mean is: every backend rounds in just these steps.
    apart = _centres(a)[:, None] - _centres(b)[None]
    apart = torch.sqrt(apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1])
    if match == "sum":
        return apart * 0.5 + intersections(a, b)
    equal = _equal(a, b)
    diagonals = _diagonals(a)[:, None] + _diagonals(b)[None]
    far = torch.where(equal, 0.0, torch.where(diagonals > 0, apart / diagonals, torch.inf))
    if match == "centres":
        return torch.where(iou(a, b) >= overlap, far, torch.inf)
    shared = intersections(a, b)
    union = (areas(a)[:, None] + areas(b)[None]) - shared
    return far + torch.where(union > 0, (union - shared) / union, 1 - equal.to(far.dtype))


def nms(boxes: Tensor, scores: Tensor, groups: Tensor | None = None, threshold: float = 0.5) -> Tensor:
    """Non-maximum suppression within each group: the boxes that stay, int64, best score first.

    boxes [T, 4], scores [T], groups int64 [T] or None for one. A box goes when a better one of its
    group that stays overlaps it by an IoU above the threshold; of equal scores the first is better.
    Raises ValueError for shapes and types, InputError for values that make no sense.
    """
    if groups is None and isinstance(boxes, Tensor):
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    check_boxes(boxes, scores, groups)
    check_values(boxes, scores)
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is an IoU, 0 to 1, not {threshold}")
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[:1], left[1:]
        kept.append(best)
        left = left[(iou(boxes[best], boxes[left])[0] <= threshold) | (groups[left] != groups[best])]
    return torch.cat(kept) if kept else left


def encode(boxes: Tensor, windows: Tensor, form: str = "edges") -> Tensor:
    """Boxes [..., 4] in the frame of their windows [..., 4], where the window is the unit square (section 4.2).

    form "edges", the paper's: x1, y1, x2, y2. "centre": the centre, then the logarithms of width and height.
    """
    corner, size = windows[..., :2], windows[..., 2:] - windows[..., :2]
    low, high = (boxes[..., :2] - corner) / size, (boxes[..., 2:] - corner) / size
    if form == "edges":
        return torch.cat([low, high], dim=-1)
    return torch.cat([(low + high) / 2, (high - low).log()], dim=-1)


def decode(values: Tensor, windows: Tensor, form: str = "edges") -> Tensor:
    """The boxes that `encode` wrote; edges in the wrong order are exchanged."""
    corner, size = windows[..., :2], windows[..., 2:] - windows[..., :2]
    if form == "edges":
        low, high = sorted_edges(values).chunk(2, dim=-1)
    else:
        half = values[..., 2:].clamp(max=LARGEST_LOG).exp() / 2
        low, high = values[..., :2] - half, values[..., :2] + half
    return torch.cat([corner + low * size, corner + high * size], dim=-1)


def sorted_edges(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] with edges in the wrong order exchanged."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=-1)


def mirrored(values: Tensor, form: str = "edges") -> Tensor:
    """What `encode` writes of the same boxes seen in the mirror, left and right exchanged."""
    x1, y1, x2, y2 = values.unbind(dim=-1)
    if form == "edges":
        return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)
    return torch.stack([1 - x1, y1, x2, y2], dim=-1)


def paired_iou(a: Tensor, b: Tensor, generalised: bool = False) -> Tensor:
    """IoU of each box of a [..., 4] with the box of b [..., 4] at its place: [...]; differentiable.

    generalised: less the share of the smallest box around both that neither covers (Rezatofighi et
    al. 2019), which has a gradient for boxes apart, too.
    """
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = sides.prod(dim=-1)
    union = areas(a) + areas(b) - shared
    found = shared / union.clamp(min=EPSILON)
    if generalised:
        around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(dim=-1)
        found = found - (around - union) / around.clamp(min=EPSILON)
    return found


def squares_around(boxes: Tensor, size: tuple[int, int], square: str = "maximum") -> Tensor:
    """The square around each box [n, 4], in pixels of an image of (height, width): [n, 4].

    square "maximum": its side is the box's longer one, so that it holds the box; "minimum": the shorter one, one way
    to read the DeepMultiBox paper's "minimum square region around the crop". Its centre is the box's, unless it would
    reach out of the image. No side is longer than the image's shorter one, or less than a pixel. Raises InputError for
    another square.
    """
    if square not in SQUARES:
        raise InputError(f"the square is one of {', '.join(SQUARES)}, not {square!r}")
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
