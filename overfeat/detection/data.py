"""What detectors train on: parts of images around objects and background, at all the sizes of a net (section 5)."""

import numpy as np
import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.image_cache import CACHE_BYTES
from overfeat.data.items import empty_image, mirror_image
from overfeat.data.random_tiles import RandomTileDataset
from overfeat.data.resize import resize
from overfeat.dense.scales import SCALE_STEP, round_to_stride
from overfeat.detection.targets import HIGH, LOW
from overfeat.models.architecture import Architecture

BACKGROUND = 0.25  # of the tiles lie anywhere, the others around an object


class TileDataset(RandomTileDataset):
    """Random parts of images, each near one of the sizes `scale_factors`, with the boxes that reach into them.

    Every size is as frequent, times SCALE_STEP to the power of -0.5 to 0.5; the tile
    then lies around an object of the image that fits a window at that size, if there is one. tile: its side
    at that size; what is cut out of the image is no more than that. flip: half of them are mirrored. Items
    are dicts: "image" uint8 [3, h, w]; "boxes" float32 [n, 4] in its pixels, which may reach out of it;
    "labels" int64 [n]; "difficult" bool [n]; "unreadable" as in `RandomTileDataset`.
    """

    def __init__(
        self,
        annotated: Annotated,
        architecture: Architecture,
        scale_factors: tuple[float, ...],
        tile: int,
        tiles: int = 4,
        flip: bool = True,
        seed: int = 0,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        super().__init__(annotated, architecture.window, tiles, seed, max_pixels, cache_bytes)
        self.architecture, self.scale_factors, self.flip = architecture, scale_factors, flip
        self.tile = max(tile, architecture.window)

    def empty_item(self) -> dict:
        """See empty_image."""
        return empty_image(self.architecture.window)

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A tile."""
        mirror = rng.random() < 0.5 and self.flip
        zoom, (y1, x1, y2, x2) = self._region(rng, image.shape[1:], sample.boxes)
        size = tuple(
            max(self.architecture.window, round_to_stride(self.architecture, zoom * n)) for n in (y2 - y1, x2 - x1)
        )
        boxes = (sample.boxes - [x1, y1, x1, y1]) * ([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2)
        inside = (boxes[:, :2] < [size[1], size[0]]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        part = resize(image[None, :, y1:y2, x1:x2], size)[0]
        boxes = torch.from_numpy(boxes[inside]).float()
        if mirror:
            part, boxes = mirror_image(part, boxes)
        labels, difficult = (torch.from_numpy(values[inside]) for values in (sample.labels, sample.difficult))
        return {"image": part, "boxes": boxes, "labels": labels, "difficult": difficult}

    def _region(self, rng: np.random.Generator, shape: tuple[int, int], boxes: np.ndarray):
        """A size, and the part of the image [y1:y2, x1:x2] that makes a tile there."""
        window = self.architecture.window
        zoom = self.scale_factors[int(rng.random() * len(self.scale_factors))] * SCALE_STEP ** (rng.random() - 0.5)
        zoom = max(zoom, window / min(shape))
        sides = zoom * (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / window if len(boxes) else np.empty(0)
        fitting = np.flatnonzero((sides >= LOW) & (sides <= HIGH))
        anywhere = rng.random() < BACKGROUND or not len(fitting)
        box = None if anywhere else boxes[fitting[int(rng.random() * len(fitting))]]
        spans = []
        for axis, length in ((1, shape[0]), (0, shape[1])):
            side = min(length, max(1, round(self.tile / zoom)))
            if box is None:
                start = rng.random() * (length - side)
            else:  # so that the object lies wholly in it, anywhere
                low, high = box[axis + 2] - side, box[axis]
                start = low + rng.random() * (high - low)
            start = min(max(0, round(start)), length - side)
            spans.append((start, start + side))
        return zoom, (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
