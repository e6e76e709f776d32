"""Training data of detectors: tiles around objects and background, at all scales of a net (section 5)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.augment import jitter_color, mirror_image, quarter_turn
from overfeat.data.random_tiles import RandomTileDataset
from overfeat.data.resize import pad_color, resize
from overfeat.dense.scales import SCALE_STEP
from overfeat.detection.targets import RULE
from overfeat.models.geometry import Geometry

RANDOM_TILES = 0.25  # fraction of tiles at random positions; the others hold an object
ASPECT_JITTER = 0.1  # largest relative change of a tile's width to its height


class Span(NamedTuple):
    """Part of an axis: pixels start:stop of the image, resized to `length` with `before` and `after` beyond it."""

    start: int
    stop: int
    length: int
    before: int
    after: int


class TileDataset(RandomTileDataset):
    """Random tiles of images, each near one of the scale factors, with the boxes that reach into them.

    All scale factors are equally frequent, times SCALE_STEP to the power of -0.5 to 0.5. Most tiles hold an object of
    the image that fits a window at that scale, if there is one, of a random class. Tiles reach beyond the image as
    windows do, over pixels of the mean colour. Items are dicts: "image" uint8 [3, h, w]; "boxes" float32 [n, 4] in its
    pixels, which may reach out of it; "labels" int64 [n]; "difficult" bool [n]; "unreadable" as in
    `RandomTileDataset`.

    Args:
        annotated: Images with boxes.
        geometry, scale_factors: Of the net, whose windows are square.
        margin, color: `Net.margin` along an axis, and `Net.mean_color`.
        tile: Largest side of a tile in pixels, at its scale.
        samples_per_image: Tiles per image and epoch.
        flip: Mirror half of them.
        quarter_turns: Turn them by 0, 90, 180 or 270 degrees.
        color_jitter: Largest relative change of brightness, contrast and saturation; 0 leaves the colours and the
            tiles' aspect ratios as they are.
        **options: See `RandomTileDataset`.
    """

    def __init__(
        self, annotated: Annotated, geometry: Geometry, scale_factors: Sequence[float], tile: int,
        *, margin: int = 0, color: Sequence[float] = (0.0,), samples_per_image: int = 4, flip: bool = True,
        quarter_turns: bool = False, color_jitter: float = 0.0, **options: Any,
    ):  # fmt: skip
        window = max(geometry.window)
        super().__init__(annotated, window, samples_per_image, **options)
        self.window, self.stride, self.scale_factors = window, geometry.fine_stride, scale_factors
        self.margin, self.color = margin, tuple(color)
        self.flip, self.quarter_turns, self.color_jitter = flip, quarter_turns, color_jitter
        self.tile = max(tile, window)

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A tile; `index` makes no difference."""
        mirror, turns = rng.random() < 0.5 and self.flip, int(rng.random() * 4) if self.quarter_turns else 0
        rows, columns = self._region(rng, (image.shape[1], image.shape[2]), sample)
        tile = resize(
            image[None, :, rows.start : rows.stop, columns.start : columns.stop], (rows.length, columns.length)
        )
        if self.color_jitter:
            tile = jitter_color(tile[0], rng, self.color_jitter)[None]
        tile = pad_color(tile, (columns.before, columns.after, rows.before, rows.after), self.color)[0]
        scale = [span.length / (span.stop - span.start) for span in (columns, rows)]
        boxes = (sample.boxes - [columns.start, rows.start] * 2) * (scale * 2) + [columns.before, rows.before] * 2
        inside = (boxes[:, :2] < [tile.shape[2], tile.shape[1]]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        tile_boxes = torch.from_numpy(boxes[inside]).float()
        if mirror:
            tile, tile_boxes = mirror_image(tile, tile_boxes)
        for _ in range(turns):
            tile, tile_boxes = quarter_turn(tile, tile_boxes)
        labels, difficult = (torch.from_numpy(values[inside]) for values in (sample.labels, sample.difficult))
        return {"image": tile, "boxes": tile_boxes, "labels": labels, "difficult": difficult}

    def _region(self, rng: np.random.Generator, shape: tuple[int, int], sample: Sample) -> tuple[Span, Span]:
        """Rows and columns of a tile near one of the scale factors."""
        boxes = sample.boxes
        factor = self.scale_factors[int(rng.random() * len(self.scale_factors))] * SCALE_STEP ** (rng.random() - 0.5)
        factor = max(factor, (self.window - 2 * self.margin) / min(shape))
        sides = factor * (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / self.window if len(boxes) else np.empty(0)
        fitting = np.flatnonzero(RULE.fits(sides))
        anywhere = rng.random() < RANDOM_TILES or not len(fitting)
        box = None if anywhere else boxes[self._choose(rng, fitting, sample.labels)]
        stretch = (1 + ASPECT_JITTER) ** rng.uniform(-0.5, 0.5) if self.color_jitter else 1.0
        rows, columns = (
            self._span(rng, shape[axis], factor * stretch**sign, None if box is None else box[[1 - axis, 3 - axis]])
            for axis, sign in ((0, 1), (1, -1))
        )
        return rows, columns

    @staticmethod
    def _choose(rng: np.random.Generator, fitting: np.ndarray, labels: np.ndarray) -> int:
        """One of the fitting objects, of a random class of theirs: rare classes are as frequent as others."""
        classes = np.unique(labels[fitting])
        own = fitting[labels[fitting] == classes[int(rng.random() * len(classes))]]
        return own[int(rng.random() * len(own))]

    def _span(self, rng: np.random.Generator, length: int, factor: float, box: np.ndarray | None) -> Span:
        """A random part of an axis of `length` pixels that holds an object's `box`, its first and last pixel."""
        padded = round(factor * length) + 2 * self.margin
        # A whole number of strides more than the window, at most the tile and the padded axis.
        side = self.window + (max(0, min(self.tile, padded) - self.window)) // self.stride * self.stride
        free = max(0, padded - side)
        if box is None:
            first = rng.random() * free
        else:  # the whole object lies in the tile, at a random position
            low, high = box[1] * factor + self.margin - side, box[0] * factor + self.margin
            first = low + rng.random() * (high - low)
        first = min(max(0, round(first)), free) - self.margin  # from the image's first pixel at its scale
        start = min(max(0, round(first / factor)), length - 1)
        stop = max(start + 1, min(length, round((first + side) / factor)))
        before = min(max(0, -first), side - 1)
        return Span(start, stop, *self._lengths(side, before, round((stop - start) * factor)))

    def _lengths(self, side: int, before: int, resized: int) -> tuple[int, int, int]:
        """(length, before, after) of a tile of `side` pixels; without a margin the image fills it."""
        if not self.margin:
            return side, 0, 0
        length = min(max(1, resized), side - before)
        return length, before, side - before - length
