"""Target assignment: which windows are positive, negative or ignored for which objects (section 5)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from overfeat.dense.grid import Grid

IGNORE_INDEX = -1
Sizes = TypeVar("Sizes", Tensor, np.ndarray)


@dataclass(frozen=True)
class AssignmentRule:
    """When a window is positive for an object; all lengths are fractions of the window's side.

    A window is positive if the object's longer side is within min_size..max_size and the centres are within
    center_tolerance of each other along both axes. Windows within the ignored limits do not contribute to the loss;
    all others are negative. At an image's border, where no window's centre comes near, the window with the nearest
    centre is positive if the object reaches no farther than border_reach from that centre.
    """

    min_size: float = 0.45
    max_size: float = 0.95
    center_tolerance: float = 0.15
    ignored_min_size: float = 0.3
    ignored_max_size: float = 1.3
    ignored_center_tolerance: float = 0.35
    border_reach: float = 0.55

    def fits(self, sizes: Sizes) -> Sizes:
        """Whether objects of these sizes have positive windows."""
        return (sizes >= self.min_size) & (sizes <= self.max_size)


RULE = AssignmentRule()


def assign_targets(
    windows: Tensor, boxes: Tensor, labels: Tensor,
    *, background: int, ignored: Tensor | None = None, rule: AssignmentRule = RULE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The class and the object of every window.

    Args:
        windows: [rows, columns, 4], all of one size.
        boxes: [n, 4] in the same pixels.
        labels: int64 [n].
        background: The label of negative windows.
        ignored: bool [n], objects whose windows are ignored, such as VOC's difficult ones.
        rule: When a window is positive.

    Returns:
        Labels int64 [rows, columns], IGNORE_INDEX for ignored windows, and the index of each positive window's
        object, int64, or -1.
    """
    targets = torch.full(windows.shape[:2], background, dtype=torch.int64, device=windows.device)
    objects = torch.full_like(targets, -1)
    if not len(boxes):
        return targets, objects
    distance, matches, near = _match(windows, boxes, rule)
    targets[near.any(dim=2)] = IGNORE_INDEX
    best = distance.masked_fill(~matches, torch.inf).min(dim=2)
    positive = best.values < torch.inf
    expected = labels if ignored is None else labels.masked_fill(ignored, IGNORE_INDEX)
    targets[positive] = expected[best.indices[positive]]
    objects[positive] = best.indices[positive].where(targets[positive] != IGNORE_INDEX, -1)
    return targets, objects


def _match(windows: Tensor, boxes: Tensor, rule: AssignmentRule) -> tuple[Tensor, Tensor, Tensor]:
    """For every window and object [rows, columns, n]: distance, whether it is positive, whether it is near to that."""
    side = windows[0, 0, 2] - windows[0, 0, 0]
    window_centers, box_centers = (windows[..., :2] + windows[..., 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) / side  # [n]
    distance = (window_centers[:, :, None] - box_centers).abs().amax(dim=3) / side
    nearest = distance == distance.flatten(0, 1).amin(dim=0)
    at_border = nearest & (distance + size / 2 <= rule.border_reach)
    matches = rule.fits(size) & ((distance <= rule.center_tolerance) | at_border)
    near_size = (size >= rule.ignored_min_size) & (size <= rule.ignored_max_size)
    return distance, matches, near_size & (distance <= rule.ignored_center_tolerance)


def expected_votes(boxes: Tensor, grids: Sequence[Grid], *, rule: AssignmentRule = RULE) -> Tensor:
    """The number of positive windows of each box [n, 4], at least 1: its summed confidence if all are certain.

    boxes: in the image's pixels; grids: the windows of each scale; the result is float32 [n].
    """
    counts = torch.zeros(len(boxes), dtype=torch.float64)
    device, boxes = boxes.device, boxes.double().cpu()
    box_centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for grid in grids:
        first = slice(0, 1)
        row = torch.from_numpy(grid.boxes(first)).view(-1, 4)
        column = torch.from_numpy(grid.boxes(slice(None), first)).view(-1, 4)
        width, height = (row[0, 2:] - row[0, :2]).tolist()
        size = torch.maximum(sides[:, 0] / width, sides[:, 1] / height)
        within = []
        for axis, (windows, side) in enumerate(((row, width), (column, height))):
            centers = ((windows[:, axis] + windows[:, axis + 2]) / 2).sort().values
            low, high = (box_centers[:, axis] + sign * rule.center_tolerance * side for sign in (-1, 1))
            within.append(torch.searchsorted(centers, high, right=True) - torch.searchsorted(centers, low))
        counts += torch.where(rule.fits(size), within[0] * within[1], 0)
    return counts.clamp(min=1).to(device, torch.float32)


def typical_votes(grids: Sequence[Grid], *, rule: AssignmentRule = RULE) -> float:
    """The mean of `expected_votes` over objects of the sizes that fit the grids' windows, away from the border."""
    # A scale fits an interval of the logarithm of an object's size, all scales together the union of these.
    length = math.log(rule.max_size / rule.min_size)
    starts = sorted(math.log(grid.window[0] * grid.image[0] / grid.scaled[0]) for grid in grids)
    union = length + sum(min(length, after - before) for before, after in itertools.pairwise(starts))
    windows = math.prod(2 * rule.center_tolerance * side / grids[0].stride for side in grids[0].window)
    return windows * len(grids) * length / union
