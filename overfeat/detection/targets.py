"""Which windows of which size are to find an object, and at which sizes of an image (section 5).

A window finds an object that fits it: one whose longer side is LOW to HIGH of the window's, and whose
centre lies within CENTRAL of the window's side from the window's centre, along both axes. A window that
nearly does, up to the IGNORED limits, teaches nothing; all others are background. An object at an image's
border, where no window's centre comes near, is found by the window whose centre is nearest, if it reaches no
farther than INSIDE of the side from that centre.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.dense.grid import Grid

LOW, HIGH, CENTRAL = 0.45, 0.95, 0.15
IGNORED_LOW, IGNORED_HIGH, IGNORED_CENTRAL = 0.3, 1.3, 0.35
INSIDE = 0.55  # of the window's side, how far from its centre an object at the border may reach
IGNORE_INDEX = -1


def assign_targets(windows: Tensor, boxes: Tensor, labels: Tensor, background: int, ignored: Tensor | None = None):
    """What each window is to say: labels int64 [rows, columns], and the number of its object, int64, or -1.

    windows: [rows, columns, 4], all of one size; boxes [n, 4] in the same pixels; labels int64 [n].
    background: the label of windows without an object; IGNORED is that of windows that teach nothing.
    ignored: bool [n], objects whose windows teach nothing, such as VOC's difficult ones.
    """
    shape = windows.shape[:2]
    targets = torch.full(shape, background, dtype=torch.int64, device=windows.device)
    objects = torch.full_like(targets, -1)
    if not len(boxes):
        return targets, objects
    side = windows[0, 0, 2] - windows[0, 0, 0]
    centres, middles = (windows[..., :2] + windows[..., 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) / side  # [n]
    away = (centres[:, :, None] - middles).abs().amax(dim=3) / side  # [rows, columns, n]
    fits, nearly = (size >= LOW) & (size <= HIGH), (size >= IGNORED_LOW) & (size <= IGNORED_HIGH)
    # At the border the window that comes nearest will do, if the object is within it.
    nearest = away == away.flatten(0, 1).amin(dim=0)
    finds = fits & ((away <= CENTRAL) | (nearest & (away + size / 2 <= INSIDE)))
    targets[(nearly & (away <= IGNORED_CENTRAL)).any(dim=2)] = IGNORE_INDEX
    best = away.masked_fill(~finds, torch.inf).min(dim=2)
    found = best.values < torch.inf
    wanted = labels if ignored is None else labels.masked_fill(ignored, IGNORE_INDEX)
    targets[found] = wanted[best.indices[found]]
    objects[found] = best.indices[found].where(targets[found] != IGNORE_INDEX, -1)
    return targets, objects


def expected_votes(boxes: Tensor, grids: Sequence[Grid]) -> Tensor:
    """How many windows of the grids are to find each object [n, 4]: at least 1; a tensor [n].

    That is the accumulated confidence of an object which all of them are certain of.
    """
    counts = torch.zeros(len(boxes), dtype=torch.float64)
    device, boxes = boxes.device, boxes.double().cpu()
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for grid in grids:
        first = slice(0, 1)
        row, column = (torch.from_numpy(grid.boxes(*part)).view(-1, 4) for part in ((first,), (slice(None), first)))
        width, height = (row[0, 2:] - row[0, :2]).tolist()
        size = torch.maximum(sides[:, 0] / width, sides[:, 1] / height)
        within = []
        for axis, (windows, side) in enumerate(((row, width), (column, height))):
            centres = ((windows[:, axis] + windows[:, axis + 2]) / 2).sort().values
            low, high = (middles[:, axis] + sign * CENTRAL * side for sign in (-1, 1))
            within.append(torch.searchsorted(centres, high, right=True) - torch.searchsorted(centres, low))
        counts += torch.where((size >= LOW) & (size <= HIGH), within[0] * within[1], 0)
    return counts.clamp(min=1).to(device, torch.float32)
