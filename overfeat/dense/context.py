"""Context: what each position sees of its surroundings at half the resolution."""

from dataclasses import replace

import torch
from torch import Tensor

from overfeat.data.resize import resize
from overfeat.dense.grid import Grid
from overfeat.dense.scales import Size, round_to_stride
from overfeat.dense.tiling import Tile, tile_features
from overfeat.models.architecture import Stride
from overfeat.models.overfeat import ContextFeatures, OverFeat


def half_resolution(net: OverFeat, images: Tensor, size: Size) -> Tensor | None:
    """The images [N, 3, H, W] at half of a scale's (height, width), for a net with context.

    None for a net without context, and where half the size is less than a window.
    """
    height, width = (round_to_stride(net.architecture, side / 2) for side in size)
    if net.context is None or min(height, width) < net.architecture.window:
        return None
    return resize(images, (height, width))


def context_features(net: OverFeat, half: Tensor | None, tile: Tile, stride: Stride) -> ContextFeatures:
    """What a tile's positions see of their surroundings; half: all images by `half_resolution`, not mirrored."""
    grid, images = tile.grid, tile.shape[0]
    if half is None:
        return ContextFeatures(None, torch.full((tile.num_positions,), -1, device=net.device))
    coarse = Grid(grid.window, grid.stride, (half.shape[2], half.shape[3]), grid.image, grid.flipped)
    spans, nearest = [], []
    for outputs, scaled, halved, last in zip(
        (tile.rows, tile.columns), grid.scaled, coarse.scaled, coarse.shape, strict=True
    ):
        centres = (torch.arange(outputs.start, outputs.stop) * grid.stride + grid.window / 2) * (halved / scaled)
        cells = ((centres - grid.window / 2) / grid.stride).round().long().clamp(0, last - 1)
        spans.append(slice(int(cells[0]), int(cells[-1]) + 1))
        nearest.append(cells - cells[0])
    height, width = (span.stop - span.start for span in spans)
    positions = (nearest[0][:, None] * width + nearest[1]).flatten()
    positions = (torch.arange(images)[:, None] * height * width + positions).flatten()
    behind = replace(tile, grid=coarse, rows=spans[0], columns=spans[1])
    return ContextFeatures(tile_features(net, half, behind, stride), positions.to(net.device))
