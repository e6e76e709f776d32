"""Tiling: large maps are evaluated in tiles that fit a memory limit, to the same result."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import Grid
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Stride
from overfeat.models.overfeat import OverFeat
from overfeat.models.receptive_field import SlidingWindow, input_size, input_span, output_size
from overfeat.ops.backends import eager


@dataclass(frozen=True)
class Tile:
    """Output positions [rows, columns] of a grid, for the images `batch`; `index` is the grid's in its list."""

    grid: Grid
    index: int
    batch: slice
    rows: slice
    columns: slice

    @classmethod
    def whole(cls, grid: Grid, num_images: int = 1, index: int = 0) -> "Tile":
        """The tile of all positions of a grid."""
        height, width = grid.shape
        return cls(grid, index, slice(0, num_images), slice(0, height), slice(0, width))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(images, rows, columns)."""
        n, height, width = (span.stop - span.start for span in (self.batch, self.rows, self.columns))
        return n, height, width

    @property
    def num_positions(self) -> int:
        """Of all its images together."""
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


def tile_features(net: OverFeat, scaled: Tensor, tile: Tile, stride: Stride) -> Tensor:
    """The last maps that a tile's outputs depend on, [n, C, h, w], computed from just the pixels that they need.

    They equal a crop of the whole images' maps. scaled: all images at the grid's scale, not mirrored.
    """
    grid, images = tile.grid, scaled[tile.batch]
    if tile.shape[1:] == grid.shape:
        images = images.to(net.device)
        return net.features(images.flip(-1) if grid.flipped else images)
    spans, pads = [], []
    for length, outputs in zip(images.shape[2:], (tile.rows, tile.columns), strict=True):
        span, pad = input_span(net.architecture.feature_steps, length, *maps_span(net.architecture, outputs, stride))
        spans.append(span)
        pads.append(pad)
    (top, bottom), (left, right) = spans
    if grid.flipped:
        left, right = images.shape[3] - right, images.shape[3] - left
    crop = images[:, :, top:bottom, left:right].to(net.device)
    return net.features(crop.flip(-1) if grid.flipped else crop, pads)


def maps_span(architecture: Architecture, outputs: slice, stride: Stride) -> tuple[int, int]:
    """Which cells of the last maps these outputs of one axis depend on: (start, stop)."""
    step = 1 if stride == "fine" else architecture.pool
    return outputs.start * step, (outputs.stop - 1) * step + architecture.kernel * architecture.pool


def plan_tiles(
    net: OverFeat, num_images: int, grid: Grid, index: int, config: DenseConfig, outputs: int
) -> Iterator[Tile]:
    """Cut the outputs of N images into tiles of which two fit the memory limit.

    Whole images together where they fit; else tiles of one image, halved along the longer side until they fit.
    outputs: numbers per position, see `outputs_per_position`.
    """
    (height, width), budget = grid.shape, config.memory_limit // 2
    sides = [height, width]

    def cost(images: int) -> int:
        tile = Tile(grid, index, slice(0, images), slice(0, sides[0]), slice(0, sides[1]))
        features = feature_bytes(net.architecture, tile, config.stride)
        return max(features, classifier_bytes(net, tile, config.stride, outputs))

    while cost(1) > budget and sides != [1, 1]:
        longer = 0 if sides[0] >= sides[1] else 1
        sides[longer] = (sides[longer] + 1) // 2
    if cost(1) > budget:
        limit, needed = f"{config.memory_limit / 2**20:.3g} MiB", f"it needs {-(-2 * cost(1) >> 20)} MiB"
        raise InputError(
            f"a memory limit of {limit} is too little for one window of the {net.architecture.name} net; {needed}"
        )
    images = max(1, min(num_images, budget // cost(1))) if sides == [height, width] else 1
    for batch in _slices(num_images, images):
        for rows in _slices(height, sides[0]):
            for columns in _slices(width, sides[1]):
                yield Tile(grid, index, batch, rows, columns)


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of `size` that cover the length; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def feature_bytes(architecture: Architecture, tile: Tile, stride: Stride) -> int:
    """A bound on the bytes that are held at once on the way to a tile's last maps, as float32.

    That is a map, its padded copy if it is padded, and the next map. The bound is that of a tile inside the image,
    which needs pixels on all its sides.
    """
    steps = architecture.feature_steps
    unpadded = [SlidingWindow(step.kernel, step.stride) for step in steps]
    sides = []
    for length, outputs in zip(tile.grid.scaled, (tile.rows, tile.columns), strict=True):
        start, stop = maps_span(architecture, outputs, stride)
        sides.append(min(length, input_size(unpadded, stop - start)))
    channels, step = 3, 0
    before = channels * sides[0] * sides[1]
    largest = 3 * before  # the image, less the mean, over the deviation
    for conv in architecture.convs:
        channels = conv.channels
        for _ in range(2 if conv.pool > 1 and conv is not architecture.convs[-1] else 1):
            copies = 2 if steps[step].pad else 1
            sides = [output_size([steps[step]], side) for side in sides]
            after = channels * sides[0] * sides[1]
            largest, before, step = max(largest, copies * before + after), after, step + 1
    return 4 * tile.shape[0] * largest


def classifier_bytes(net: OverFeat, tile: Tile, stride: Stride, outputs: int) -> int:
    """Bytes of a tile's last maps, the pooled maps, and everything computed from them, as float32.

    outputs: numbers per position, see `outputs_per_position`.
    """
    architecture, (images, height, width) = net.architecture, tile.shape
    start, stop = zip(*(maps_span(architecture, span, stride) for span in (tile.rows, tile.columns)), strict=True)
    cells, positions = (stop[0] - start[0]) * (stop[1] - start[1]), height * width
    channels = architecture.convs[-1].channels
    # Beside its outputs, a position's gathered window, or its fraction of a transformed Winograd tile.
    inner = channels * (architecture.kernel**2 if positions < eager.GATHER_MAX_POSITIONS else 4)
    per_position = inner + 4 * max((*architecture.hidden, net.num_classes)) + outputs
    return 4 * images * (3 * channels * cells + positions * per_position)


def outputs_per_position(net: OverFeat, box_channels: int = 0) -> int:
    """Numbers per position for the scores, the context and, with a regressor, boxes of so many channels."""
    # A position's box is written, decoded and scaled before the next tile comes.
    outputs = 3 * net.num_classes + 16 * box_channels
    return outputs + (3 * net.fc_layers[0].out_channels if net.context is not None else 0)
