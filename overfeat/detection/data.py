"""Training data of detectors: tiles around objects and background, at all scales of a net (section 5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.random_tiles import RandomTileDataset, mirror_image
from overfeat.data.resize import resize
from overfeat.dense.scales import SCALE_STEP, round_to_stride
from overfeat.detection.targets import RULE
from overfeat.models.architecture import Architecture

RANDOM_TILES = 0.25  # fraction of tiles at random positions; the others hold an object


class TileDataset(RandomTileDataset):
    """Random tiles of images, each near one of the scale factors, with the boxes that reach into them.

    All scale factors are equally frequent, times SCALE_STEP to the power of -0.5 to 0.5. Most tiles hold an object of
    the image that fits a window at that scale, if there is one. Items are dicts: "image" uint8 [3, h, w]; "boxes"
    float32 [n, 4] in its pixels, which may reach out of it; "labels" int64 [n]; "difficult" bool [n]; "unreadable" as
    in `RandomTileDataset`.

    Args:
        annotated: Images with boxes.
        architecture, scale_factors: Of the net.
        tile: Largest side of a tile in pixels, at its scale.
        samples_per_image: Tiles per image and epoch.
        flip: Mirror half of them.
        **options: See `RandomTileDataset`.
    """

    def __init__(
        self, annotated: Annotated, architecture: Architecture, scale_factors: Sequence[float], tile: int,
        *, samples_per_image: int = 4, flip: bool = True, **options: Any,
    ):  # fmt: skip
        super().__init__(annotated, architecture.window, samples_per_image, **options)
        self.architecture, self.scale_factors, self.flip = architecture, scale_factors, flip
        self.tile = max(tile, architecture.window)

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A tile; `index` makes no difference."""
        mirror = rng.random() < 0.5 and self.flip
        factor, (y1, x1, y2, x2) = self._region(rng, tuple(image.shape[1:]), sample.boxes)
        window = self.architecture.window
        size = round_to_stride(self.architecture.geometry, (factor * (y2 - y1), factor * (x2 - x1)))
        height, width = (max(window, side) for side in size)
        boxes = (sample.boxes - [x1, y1, x1, y1]) * ([width / (x2 - x1), height / (y2 - y1)] * 2)
        inside = (boxes[:, :2] < [width, height]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        tile = resize(image[None, :, y1:y2, x1:x2], (height, width))[0]
        tile_boxes = torch.from_numpy(boxes[inside]).float()
        if mirror:
            tile, tile_boxes = mirror_image(tile, tile_boxes)
        labels, difficult = (torch.from_numpy(values[inside]) for values in (sample.labels, sample.difficult))
        return {"image": tile, "boxes": tile_boxes, "labels": labels, "difficult": difficult}

    def _region(
        self, rng: np.random.Generator, shape: tuple[int, ...], boxes: np.ndarray
    ) -> tuple[float, tuple[int, int, int, int]]:
        """A scale factor, and the region y1, x1, y2, x2 of the image that makes a tile there."""
        window = self.architecture.window
        factor = self.scale_factors[int(rng.random() * len(self.scale_factors))] * SCALE_STEP ** (rng.random() - 0.5)
        factor = max(factor, window / min(shape))
        sides = factor * (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / window if len(boxes) else np.empty(0)
        fitting = np.flatnonzero(RULE.fits(sides))
        anywhere = rng.random() < RANDOM_TILES or not len(fitting)
        box = None if anywhere else boxes[fitting[int(rng.random() * len(fitting))]]
        spans = []
        for axis, length in ((1, shape[0]), (0, shape[1])):
            side = min(length, max(1, round(self.tile / factor)))
            if box is None:
                start = rng.random() * (length - side)
            else:  # the whole object lies in the tile, at a random position
                low, high = box[axis + 2] - side, box[axis]
                start = low + rng.random() * (high - low)
            first = min(max(0, round(start)), length - side)
            spans.append((first, first + side))
        return factor, (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
