"""What detectors train on: parts of images around objects and background, at all the sizes of a net (section 5)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from overfeat.architectures import Architecture
from overfeat.data.annotated import Annotated
from overfeat.data.crops import CACHE_BYTES, ImageStore
from overfeat.data.folder import ImageFolder
from overfeat.data.scaled import mirror_image
from overfeat.dense import whole_size
from overfeat.resize import resize
from overfeat.windows import HIGH, LOW, STEP

MAX_WORKERS = 8  # that share the memory for images without reading any twice
BACKGROUND = 0.25  # of the tiles lie anywhere, the others around an object


class TileDataset(Dataset):
    """Random parts of images, each near one of the sizes `zooms`, with the boxes that reach into them.

    An item's key is (epoch, index); index counts images, then the image's tiles. All chance is seeded by
    (seed, epoch, image, tile). Every size is as frequent, times STEP to the power of -0.5 to 0.5; the tile
    then lies around an object of the image that fits a window at that size, if there is one. tile: its side
    at that size; what is cut out of the image is no more than that. flip: half of them are mirrored. Items
    are dicts: "image" uint8 [3, h, w]; "boxes" float32 [n, 4] in its pixels, which may reach out of it;
    "labels" int64 [n]; "difficult" bool [n];
    "unreadable": -1, or the number of the image that cannot be used, which comes as zeros without boxes.
    """

    def __init__(
        self,
        annotated: Annotated,
        architecture: Architecture,
        zooms: tuple[float, ...],
        tile: int,
        tiles: int = 4,
        flip: bool = True,
        seed: int = 0,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.annotated, self.architecture, self.zooms = annotated, architecture, zooms
        self.tile, self.tiles, self.flip, self.seed = max(tile, architecture.window), tiles, flip, seed
        folder = ImageFolder(annotated.class_names, [(sample.path, 0) for sample in annotated.samples])
        window = architecture.window
        self.store = ImageStore(folder, (window, window + 1), max_pixels, cache_bytes, self._check, latest=True)
        self.together = cache_bytes // MAX_WORKERS  # bytes of images whose tiles come mixed

    def __len__(self) -> int:
        return len(self.annotated) * self.tiles

    def order(self, samples: int, generator: torch.Generator) -> Tensor:
        """All indices in random order: group after group of images that fit into the memory of any worker.

        So each process reads an image once an epoch. It does not depend on the number of workers.
        """
        groups, used = [[]], 0
        for number in torch.randperm(samples // self.tiles, generator=generator).tolist():
            height, width = self.annotated.samples[number].size
            used += 3 * height * width
            if groups[-1] and used > self.together:
                groups.append([])
                used = 3 * height * width
            groups[-1].append(number)
        parts = []
        for group in groups:
            tiles = (torch.tensor(group)[:, None] * self.tiles + torch.arange(self.tiles)).flatten()
            parts.append(tiles[torch.randperm(len(tiles), generator=generator)])
        return torch.cat(parts)

    def __getitem__(self, key: tuple[int, int] | int) -> dict:
        epoch, index = (0, key) if isinstance(key, int) else key
        number, tile = divmod(index, self.tiles)
        image, sample = self.store.get(number), self.annotated.samples[number]
        if image is None:
            side = self.architecture.window
            nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
            nothing["difficult"] = torch.empty(0, dtype=torch.bool)
            return {"image": torch.zeros(3, side, side, dtype=torch.uint8), **nothing, "unreadable": number}
        draw = np.random.default_rng([self.seed, epoch, number, tile])
        mirror = draw.random() < 0.5 and self.flip
        zoom, (y1, x1, y2, x2) = self._part(draw, image.shape[1:], sample.boxes)
        size = tuple(max(self.architecture.window, whole_size(self.architecture, zoom * n)) for n in (y2 - y1, x2 - x1))
        boxes = (sample.boxes - [x1, y1, x1, y1]) * ([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2)
        inside = (boxes[:, :2] < [size[1], size[0]]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        part = resize(image[None, :, y1:y2, x1:x2], size)[0]
        boxes = torch.from_numpy(boxes[inside]).float()
        if mirror:
            part, boxes = mirror_image(part, boxes)
        labels, difficult = (torch.from_numpy(values[inside]) for values in (sample.labels, sample.difficult))
        return {"image": part, "boxes": boxes, "labels": labels, "difficult": difficult, "unreadable": -1}

    def complaint(self, number: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image named in "unreadable"."""
        return self.store.complaint(number)

    def _check(self, number: int, image: Tensor) -> None:
        self.annotated.samples[number].check(image)

    def _part(self, draw: np.random.Generator, shape: tuple[int, int], boxes: np.ndarray):
        """A size, and the part of the image [y1:y2, x1:x2] that makes a tile there."""
        window = self.architecture.window
        zoom = self.zooms[int(draw.random() * len(self.zooms))] * STEP ** (draw.random() - 0.5)
        zoom = max(zoom, window / min(shape))
        sides = zoom * (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / window if len(boxes) else np.empty(0)
        fitting = np.flatnonzero((sides >= LOW) & (sides <= HIGH))
        anywhere = draw.random() < BACKGROUND or not len(fitting)
        box = None if anywhere else boxes[fitting[int(draw.random() * len(fitting))]]
        spans = []
        for axis, length in ((1, shape[0]), (0, shape[1])):
            side = min(length, max(1, round(self.tile / zoom)))
            if box is None:
                start = draw.random() * (length - side)
            else:  # so that the object lies wholly in it, anywhere
                low, high = box[axis + 2] - side, box[axis]
                start = low + draw.random() * (high - low)
            start = min(max(0, round(start)), length - side)
            spans.append((start, start + side))
        return zoom, (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
