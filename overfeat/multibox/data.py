"""What DeepMultiBox trains on: square parts of images with their boxes, and squares around single boxes."""

import math

import numpy as np
import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.image_cache import CACHE_BYTES
from overfeat.data.items import empty_image
from overfeat.data.random_tiles import RandomTileDataset
from overfeat.data.resize import resize_crop
from overfeat.errors import InputError
from overfeat.ops.boxes import areas, intersections, iou, mirrored, squares_around

BUCKETS = ((0.0, 0.05), (0.05, 0.15), (0.15, 0.5), (0.5, 1.0))  # of a square that boxes cover (section 4.1)
TRIES = 64  # squares that are drawn at a time to find one
SIDES = ((0.4, 1.0), (0.1, 0.4))  # of the image's shorter side; the smaller ones where no larger one will do
VISIBLE = 0.5  # of an object's box that a square must hold for it to be looked for there
CELLS = 256  # along an image's longer side, for what boxes cover
KINDS = 3  # one square around an object, two around nothing
POSITIVE, NEGATIVE = 0.5, 0.2  # IoU with an object, at least and at most (section 4.2.1)


class SquareDataset(RandomTileDataset):
    """Random squares of images, as many from each, with the objects that lie in them by half or more (section 4.1).

    Square number k of an image is covered by boxes to a share in BUCKETS[k % 4], or as nearly so as 128 draws find.
    squares: a multiple of 4. centred: the largest square in the middle of each image instead, as in prediction. side:
    what squares are resized to. flip: half of them are mirrored. Items: "image" uint8 [3, side, side]; "boxes" float32
    [n, 4], in the unit square, which they may reach out of; "labels" int64 [n]; "difficult" bool [n]; "unreadable" as
    in `RandomTileDataset`. Raises InputError for another number of squares.
    """

    def __init__(
        self,
        annotated: Annotated,
        side: int,
        squares: int = 4,
        flip: bool = True,
        seed: int = 0,
        max_pixels: int | None = None,
        centred: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        if squares < 1 or squares % len(BUCKETS):
            raise InputError(f"--squares {squares}: give a multiple of {len(BUCKETS)}, one for each covered share")
        super().__init__(annotated, side, 1 if centred else squares, seed, max_pixels, cache_bytes)
        self.side, self.flip, self.centred = side, flip and not centred, centred

    def empty_item(self) -> dict:
        """See empty_image."""
        return empty_image(self.side)

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A square."""
        square, boxes, held = self._square(rng, index, sample)
        part, boxes = resize_crop(image, square, self.side), torch.from_numpy(boxes).float()
        if self.flip and rng.random() < 0.5:
            part, boxes = part.flip(-1), mirrored(boxes)
        labels, difficult = (torch.from_numpy(values[held]) for values in (sample.labels, sample.difficult))
        return {"image": part, "boxes": boxes, "labels": labels, "difficult": difficult}

    def truths(self, most: int) -> np.ndarray:
        """The boxes [n, 4] of squares as they come in training, `most` or a few more, or those of one epoch.

        No image is read for it.
        """
        found, count = [], 0
        for index in np.random.default_rng(self.seed).permutation(len(self)).tolist():
            number, part = divmod(index, self.samples_per_image)
            rng = np.random.default_rng([self.seed, 0, number, part])
            _, boxes, _ = self._square(rng, part, self.annotated.samples[number])
            if self.flip and rng.random() < 0.5:
                boxes = mirrored(torch.from_numpy(boxes)).numpy()
            found.append(boxes)
            count += len(boxes)
            if count >= most:
                break
        return np.concatenate(found)

    def _square(self, rng: np.random.Generator, number: int, sample: Sample):
        """A square x1, y1, x2, y2 of whole pixels, the boxes in its frame, and which of the sample's they are."""
        if self.centred:
            square = centre_square(*sample.size)
        else:
            low, high = BUCKETS[number % len(BUCKETS)]
            best = np.inf
            for sides in SIDES:
                squares = _candidates(rng, sample, sides)
                share = _covered(squares, sample)
                away = np.maximum(0, np.maximum(low - share, share - high))
                if away.min() < best:  # the first of those that are nearest
                    best, square = away.min(), squares[away.argmin()]
                if best == 0:
                    break
        square = np.asarray(square, dtype=np.float64)
        inside = torch.from_numpy(sample.boxes), torch.from_numpy(square)[None]
        held = (intersections(*inside)[:, 0] >= VISIBLE * areas(inside[0])).numpy()
        return square, (sample.boxes[held] - np.tile(square[:2], 2)) / (square[2] - square[0]), held


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest square in the middle of an image: x1, y1, x2, y2."""
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def _candidates(rng: np.random.Generator, sample: Sample, sides: tuple[float, float]) -> np.ndarray:
    """Squares of whole pixels [TRIES, 4], every second one with an object in it, if there is one."""
    height, width = sample.size
    sides = np.maximum(1, np.floor(min(height, width) * rng.uniform(*sides, TRIES)))
    room = np.stack([width - sides, height - sides], axis=1)
    corners = rng.random((TRIES, 2)) * room
    if len(sample.boxes):
        boxes = sample.boxes[rng.integers(len(sample.boxes), size=TRIES)]
        around = (boxes[:, :2] + boxes[:, 2:]) / 2 - rng.random((TRIES, 2)) * sides[:, None]
        corners[::2] = np.clip(around, 0, room)[::2]
    corners = np.floor(corners)
    return np.concatenate([corners, corners + sides[:, None]], axis=1)


def _covered(squares: np.ndarray, sample: Sample) -> np.ndarray:
    """The share of each square that boxes cover, to the size of a cell: [n]."""
    step = max(1.0, max(sample.size) / CELLS)
    rows, columns = (math.ceil(length / step) for length in sample.size)
    mask = np.zeros((rows + 1, columns + 1))
    for x1, y1, x2, y2 in np.rint(sample.boxes / step).astype(int):
        mask[y1 + 1 : y2 + 1, x1 + 1 : x2 + 1] = 1
    sums = mask.cumsum(axis=0).cumsum(axis=1)
    cells = np.rint(squares / step).astype(int)
    x1, y1, x2, y2 = np.minimum(cells, [columns, rows, columns, rows]).T
    area = np.maximum(1, (x2 - x1) * (y2 - y1))
    return (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) / area


class BoxDataset(RandomTileDataset):
    """Squares around boxes near objects and away from them, for the net that tells what is in a box (section 4.2.1).

    Of every three parts of an image the first is around a box that overlaps an object by an IoU of POSITIVE or more,
    with its label; the others are around boxes that overlap none by more than NEGATIVE, or as little as can be found,
    with the label `background`. square: see boxes.squares_around. Items: "image" uint8 [3, side, side]; "label", -1
    for an image that cannot be used; "unreadable" as in `RandomTileDataset`.
    """

    def __init__(
        self,
        annotated: Annotated,
        side: int,
        parts: int = 3,
        square: str = "maximum",
        flip: bool = True,
        seed: int = 0,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        if parts < 1 or parts % KINDS:
            raise InputError(f"--parts {parts}: give a multiple of {KINDS}; of each {KINDS} one is around an object")
        super().__init__(annotated, side, parts, seed, max_pixels, cache_bytes)
        self.side, self.square, self.flip, self.background = side, square, flip, len(annotated.class_names)

    def empty_item(self) -> dict:
        """A black image of no class."""
        return {"image": torch.zeros(3, self.side, self.side, dtype=torch.uint8), "label": -1}

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A square around a box."""
        easy = np.flatnonzero(~sample.difficult)
        positive = index % KINDS == 0 and len(easy) > 0
        chosen = int(easy[int(rng.random() * len(easy))]) if positive else None
        boxes = _boxes_near(rng, sample, chosen)
        overlaps = iou(torch.from_numpy(boxes), torch.from_numpy(sample.boxes)).numpy()
        if positive:
            fits = overlaps[:, chosen] >= POSITIVE  # the last is the object's own
            box, label = boxes[fits.argmax()], int(sample.labels[chosen])
        else:
            most = overlaps.max(axis=1, initial=0.0)
            box = boxes[(most <= NEGATIVE).argmax() if (most <= NEGATIVE).any() else most.argmin()]
            label = self.background
        (square,) = squares_around(torch.from_numpy(box)[None], sample.size, self.square).tolist()
        part = resize_crop(image, square, self.side)
        mirror = self.flip and rng.random() < 0.5
        return {"image": part.flip(-1) if mirror else part, "label": label}


def _boxes_near(rng: np.random.Generator, sample: Sample, chosen: int | None) -> np.ndarray:
    """Boxes within an image [TRIES, 4]: moved copies of one of its objects, last itself; for None boxes anywhere."""
    height, width = sample.size
    if chosen is None:
        # As large as objects are, where there are any, since such boxes are what there will be to tell apart.
        sizes = np.full((TRIES, 2), min(height, width) * 0.3)
        if len(sample.boxes):
            boxes = sample.boxes[rng.integers(len(sample.boxes), size=TRIES)]
            sizes = boxes[:, 2:] - boxes[:, :2]
        sizes = np.minimum(sizes * 2.0 ** rng.uniform(-1, 1, (TRIES, 2)), [width, height])
        corners = rng.random((TRIES, 2)) * ([width, height] - sizes)
        if len(sample.boxes):  # half of them near objects
            near = boxes[:, :2] + rng.uniform(-1, 1, (TRIES, 2)) * sizes
            corners[::2] = np.clip(near, 0, [width, height] - sizes)[::2]
        return np.concatenate([corners, corners + sizes], axis=1)
    box = sample.boxes[chosen]
    size = np.tile(box[2:] - box[:2], 2)
    boxes = box + rng.normal(0, 0.15, (TRIES, 4)) * size
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes[-1] = box
    return boxes
