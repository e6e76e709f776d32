"""Context: what each position sees of its surroundings at half the resolution."""

import torch
from torch import Tensor

from overfeat.data.resize import resize
from overfeat.dense.grid import Grid
from overfeat.dense.scales import round_to_stride
from overfeat.dense.tiling import part_features
from overfeat.models.architecture import Stride
from overfeat.models.overfeat import ContextFeatures, OverFeat


def half_resolution(net: OverFeat, images: Tensor, size: tuple[int, int]) -> Tensor | None:
    """What a net with context sees around the places of images at this size: the images at half of it.

    None for a net without context, and where that is less than a window.
    """
    sides = tuple(round_to_stride(net.architecture, side / 2) for side in size)
    return None if net.context is None or min(sides) < net.architecture.window else resize(images, sides)


def context_features(
    net: OverFeat, half: Tensor | None, images: int, grid: Grid, rows: slice, columns: slice, stride: Stride
) -> ContextFeatures:
    """What outputs [rows, columns] of a grid of so many images see of their surroundings.

    half: see `half_resolution`, not mirrored.
    """
    device = net.device
    if half is None:
        places = images * (rows.stop - rows.start) * (columns.stop - columns.start)
        return ContextFeatures(None, torch.full((places,), -1, device=device))
    there = Grid(grid.window, grid.stride, tuple(half.shape[2:]), grid.image, grid.flipped)
    spans, places = [], []
    for part, scaled, halved, last in zip((rows, columns), grid.scaled, there.scaled, there.shape, strict=True):
        centres = (torch.arange(part.start, part.stop) * grid.stride + grid.window / 2) * (halved / scaled)
        nearest = ((centres - grid.window / 2) / grid.stride).round().long().clamp(0, last - 1)
        spans.append(slice(int(nearest[0]), int(nearest[-1]) + 1))
        places.append(nearest - nearest[0])
    height, width = (span.stop - span.start for span in spans)
    places = (places[0][:, None] * width + places[1]).flatten()
    places = (torch.arange(len(half))[:, None] * height * width + places).flatten()
    return ContextFeatures(part_features(net, half, there, *spans, stride), places.to(device))
