"""Tiling: large maps are evaluated in tiles that fit a memory limit, to the same result."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from overfeat.dense.grid import Grid
from overfeat.errors import ArgumentError
from overfeat.models.geometry import Size
from overfeat.models.net import InputSpan, Net


@dataclass(frozen=True)
class Tile:
    """Output positions [rows, columns] of a grid, for the images `batch`; `index` is the grid's in its list."""

    grid: Grid
    index: int
    batch: slice
    rows: slice
    columns: slice

    @classmethod
    def whole(cls, grid: Grid) -> "Tile":
        """The tile of all positions of a grid, of one image."""
        height, width = grid.shape
        return cls(grid, 0, slice(0, 1), slice(0, height), slice(0, width))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(images, rows, columns)."""
        n, height, width = (span.stop - span.start for span in (self.batch, self.rows, self.columns))
        return n, height, width

    @property
    def num_positions(self) -> int:
        """Number of positions of all its images together."""
        n, height, width = self.shape
        return n * height * width

    def windows(self) -> Tensor:
        """The window of each position of one image, in pixels of the image as given: float64 [rows * columns, 4]."""
        return torch.from_numpy(self.grid.boxes(self.rows, self.columns)).view(-1, 4)

    def grid_positions(self, positions: Tensor) -> Tensor:
        """Numbers, row by row in its grid, of positions that are numbered within the tile; of a single image."""
        width = self.columns.stop - self.columns.start
        row, column = self.rows.start + positions // width, self.columns.start + positions % width
        return row * self.grid.shape[1] + column


@dataclass(frozen=True)
class Pixels:
    """Images at one scale with the margin of its grids, not mirrored, or a part of them."""

    images: Tensor  # [N, C, h, w]
    size: Size  # (height, width) of the scaled images without the margin
    origin: Size = (0, 0)  # of `images` in the scaled images with their margin

    def crop(self, batch: slice, rows: slice, columns: slice) -> Tensor:
        """These rows and columns of the scaled images with their margin: [n, C, h, w]."""
        top, left = self.origin
        return self.images[batch, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def tile_features(net: Net, pixels: Pixels, tile: Tile) -> Any:
    """What a net's head needs of a tile, computed from just the pixels that the tile's outputs depend on."""
    rows, columns = _spans(net, tile)
    crop = pixels.crop(tile.batch, *tile_pixels(net, tile)).to(net.device)
    return net.tile_features(crop.flip(-1) if tile.grid.flipped else crop, rows, columns, tile.grid.stride)


def tile_pixels(net: Net, tile: Tile) -> tuple[slice, slice]:
    """(rows, columns) of the scaled images with their margin, not mirrored, that a tile's outputs depend on."""
    rows, columns = _spans(net, tile)
    left, right = columns.start, columns.stop
    if tile.grid.flipped:
        left, right = tile.grid.padded[1] - right, tile.grid.padded[1] - left
    return slice(rows.start, rows.stop), slice(left, right)


def tile_bytes(net: Net, tile: Tile, box_channels: int = 0, enough: int = 0) -> tuple[int, int]:
    """Bytes that a tile needs at most: for its features; for its head, with features, outputs, scores and boxes.

    Args:
        box_channels: Of a regressor.
        enough: A bound that is quicker to compute is returned if it is at most this.
    """
    # A position's box is written, decoded and scaled before the next tile comes.
    results = 4 * tile.num_positions * (3 * net.num_classes + 16 * box_channels)
    spans = _spans(net, tile)
    for count in (net.tile_bytes_bound, net.tile_bytes):
        features, head = count(tile.shape[0], *spans, tile.grid.stride)
        if max(features, head + results) <= enough:
            break
    return features, head + results


def _spans(net: Net, tile: Tile) -> tuple[InputSpan, InputSpan]:
    """The pixels of the scaled images, mirrored where the grid is, that a tile's outputs depend on."""
    rows, columns = (
        net.input_span(axis, tile.grid.padded[axis], outputs, tile.grid.stride)
        for axis, outputs in enumerate((tile.rows, tile.columns))
    )
    return rows, columns


def plan_tiles(
    net: Net, num_images: int, grid: Grid, index: int, memory_limit: int, box_channels: int = 0
) -> Iterator[Tile]:
    """Cut the outputs of N images into tiles of which two fit the memory limit.

    Whole images together where they fit; else tiles of one image, halved along the longer side until they fit.
    """
    whole = replace(Tile.whole(grid), index=index, batch=slice(0, num_images))
    return cut_tile(net, whole, memory_limit, box_channels)


def cut_tile(net: Net, tile: Tile, memory_limit: int, box_channels: int = 0) -> Iterator[Tile]:
    """`plan_tiles` of the positions and images of one tile."""
    budget, (num_images, *shape) = memory_limit // 2, tile.shape
    top, left = tile.rows.start, tile.columns.start

    def part(batch: slice, rows: slice, columns: slice) -> Tile:
        rows, columns = (slice(first + s.start, first + s.stop) for first, s in ((top, rows), (left, columns)))
        return replace(tile, batch=batch, rows=rows, columns=columns)

    def cost(rows: slice, columns: slice) -> int:
        """Of one image."""
        return max(tile_bytes(net, part(slice(0, 1), rows, columns), box_channels, budget // max(1, num_images)))

    sides, needed = fit_tile(net, (shape[0], shape[1]), budget, cost)
    images = max(1, min(num_images, budget // needed)) if list(sides) == shape else 1
    for batch in _slices(num_images, images):
        for rows, columns in tiles_of((shape[0], shape[1]), sides):
            yield part(batch, rows, columns)


def fit_tile(net: Net, shape: Size, budget: int, cost: Callable[[slice, slice], int]) -> tuple[Size, int]:
    """(rows, columns) of a tile of a map that fits the budget, and the bytes of one image that it needs.

    The map's shape, the longer side halved until the tile fits. Raises InputError if a single output does not.

    Args:
        net: For the message.
        cost: The bytes that these rows and columns need.
    """
    sides = list(shape)
    while True:
        # In the middle of the image, where an output depends on pixels on all its sides.
        rows, columns = (
            slice((length - side) // 2, (length - side) // 2 + side) for length, side in zip(shape, sides, strict=True)
        )
        needed = cost(rows, columns)
        if needed <= budget:
            return (sides[0], sides[1]), needed
        if sides == [1, 1]:
            limit, minimum = f"{budget / 2**19:.3g} MiB", -(-2 * needed >> 20)
            one_window = f"one window of the {net.geometry.name} net"
            problem = f"a memory limit of {limit} is too little for {one_window}; "
            raise ArgumentError("memory_limit", f"must be at least {minimum} MiB", problem)
        longer = 0 if sides[0] >= sides[1] else 1
        sides[longer] = (sides[longer] + 1) // 2


def tiles_of(shape: Size, sides: Size) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the tiles of a map, in rows; the last ones may be smaller."""
    for rows in _slices(shape[0], sides[0]):
        for columns in _slices(shape[1], sides[1]):
            yield rows, columns


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of `size` that cover the length; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
