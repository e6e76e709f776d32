"""Context: what each position sees of its surroundings at half the resolution."""

from dataclasses import replace

import torch
from torch import Tensor

from overfeat.data.resize import pad_color, resize
from overfeat.dense.scales import add_margin, round_to_stride
from overfeat.dense.tiling import Pixels, Tile, tile_features
from overfeat.models.geometry import Size
from overfeat.models.net import Net
from overfeat.models.overfeat import ContextFeatures


def add_border(net: Net, images: Tensor, margin: Size) -> Tensor:
    """Images [N, C, H, W] with a margin of (rows, columns) of the net's mean colour on each side."""
    rows, columns = margin
    return pad_color(images, (columns, columns, rows, rows), net.mean_color)


def half_size(net: Net, size: Size, margin: Size = (0, 0)) -> Size | None:
    """Half of a scale's (height, width), for a net with context.

    None for a net without context, and where half the size, with the margin, is less than a window.
    """
    half = round_to_stride(net.geometry, (size[0] / 2, size[1] / 2))
    return half if net.context is not None and net.geometry.fits(add_margin(half, margin)) else None


def half_resolution(net: Net, images: Tensor, size: Size, margin: Size = (0, 0)) -> Pixels | None:
    """The images [N, 3, H, W] at the `half_size` of a scale, with as wide a margin; None where there is none."""
    half = half_size(net, size, margin)
    return None if half is None else Pixels(add_border(net, resize(images, half), margin), half)


def context_features(net: Net, half: Pixels | None, tile: Tile) -> ContextFeatures:
    """What a tile's positions see of their surroundings, from the images at half the resolution."""
    if half is None:
        return ContextFeatures(None, torch.full((tile.num_positions,), -1, device=net.device))
    behind, nearest = context_tile(tile, half.size)
    images, _, width = behind.shape
    positions = (nearest[0][:, None] * width + nearest[1]).flatten()
    positions = (torch.arange(images)[:, None] * behind.num_positions // images + positions).flatten()
    return ContextFeatures(tile_features(net, half, behind), positions.to(net.device))


def context_tile(tile: Tile, half: Size) -> tuple[Tile, list[Tensor]]:
    """The tile of the grid at half the resolution that the positions of a tile see, and which of its rows and columns.

    half: `half_size` of the tile's scale.
    """
    grid, coarse = tile.grid, replace(tile.grid, scaled=half)
    spans, nearest = [], []
    for axis, outputs in enumerate((tile.rows, tile.columns)):
        scaled, halved, window = grid.scaled[axis], coarse.scaled[axis], grid.window[axis]
        first = window / 2 - grid.margin[axis]  # the centre of the first window, in the image
        numbers = torch.arange(outputs.start, outputs.stop, dtype=torch.float32)
        centres = (numbers * grid.stride + first) * (halved / scaled)
        cells = ((centres - first) / grid.stride).round().long().clamp(0, coarse.shape[axis] - 1)
        spans.append(slice(int(cells[0]), int(cells[-1]) + 1))
        nearest.append(cells - cells[0])
    return replace(tile, grid=coarse, rows=spans[0], columns=spans[1]), nearest
