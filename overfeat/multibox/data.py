"""Training data of DeepMultiBox: square crops of images with their boxes, and squares around single boxes."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.random_tiles import RandomTileDataset
from overfeat.data.resize import resize_crop
from overfeat.errors import ArgumentError
from overfeat.ops.boxes import areas, intersections, iou, mirrored, squares_around

COVERAGE_BINS = ((0.0, 0.05), (0.05, 0.15), (0.15, 0.5), (0.5, 1.0))  # fraction of a square in boxes (section 4.1)
TRIES = 64  # candidate squares per draw
SIDES = ((0.4, 1.0), (0.1, 0.4))  # fractions of the image's shorter side; the second range if the first gives none
MIN_VISIBLE = 0.5  # fraction of an object's box that a square holds for the object to count
COVERAGE_CELLS = 256  # along an image's longer side, of the coverage mask
CROPS_PER_POSITIVE = 3  # one square around an object, two around background
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.2  # of a box and an object, at least and at most (section 4.2.1)


class SquareDataset(RandomTileDataset):
    """Random square crops of images, with the objects of which they hold at least half (section 4.1).

    The fraction of square number k that boxes cover is in COVERAGE_BINS[k % 4], or as near as 128 candidates come.
    Items: "image" uint8 [3, image_size, image_size]; "boxes" float32 [n, 4], in the unit square, which they may reach
    out of; "labels" int64 [n]; "difficult" bool [n]; "unreadable" as in `RandomTileDataset`.

    Args:
        annotated: Images with boxes.
        image_size: Side that squares are resized to.
        samples_per_image: Squares per image and epoch, a multiple of 4; else raises ArgumentError.
        flip: Mirror half of them.
        centred: The largest square at the centre of each image instead, as in prediction.
        **options: See `RandomTileDataset`.
    """

    def __init__(
        self, annotated: Annotated, image_size: int, samples_per_image: int = 4,
        *, flip: bool = True, centred: bool = False, **options: Any,
    ):  # fmt: skip
        check_multiple(samples_per_image, len(COVERAGE_BINS), "so that all ranges of covered area are equally frequent")
        super().__init__(annotated, image_size, 1 if centred else samples_per_image, **options)
        self.image_size, self.flip, self.centred = image_size, flip and not centred, centred

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """Square crop `index` of an image."""
        square, boxes, held = self._square(rng, index, sample)
        crop = resize_crop(image, square.tolist(), (self.image_size, self.image_size))
        unit_boxes = torch.from_numpy(boxes).float()
        if self.flip and rng.random() < 0.5:
            crop, unit_boxes = crop.flip(-1), mirrored(unit_boxes)
        labels, difficult = (torch.from_numpy(values[held]) for values in (sample.labels, sample.difficult))
        return {"image": crop, "boxes": unit_boxes, "labels": labels, "difficult": difficult}

    def ground_truth(self, count: int) -> np.ndarray:
        """Boxes [n, 4] of squares as they come in training, `count` or more, or all of one epoch; reads no image."""
        boxes, total = [np.empty((0, 4))], 0
        for index in np.random.default_rng(self.seed).permutation(len(self)).tolist():
            number, tile = divmod(index, self.samples_per_image)
            rng = np.random.default_rng([self.seed, 0, number, tile])
            _, of_square, _ = self._square(rng, tile, self.annotated.samples[number])
            if self.flip and rng.random() < 0.5:
                of_square = mirrored(torch.from_numpy(of_square)).numpy()
            boxes.append(of_square)
            total += len(of_square)
            if total >= count:
                break
        return np.concatenate(boxes)

    def _square(
        self, rng: np.random.Generator, number: int, sample: Sample
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A square x1, y1, x2, y2 of whole pixels, the boxes in its unit square, and which of the sample's they are."""
        if self.centred:
            square = np.array(centre_square(*sample.size))
        else:
            low, high = COVERAGE_BINS[number % len(COVERAGE_BINS)]
            best = np.inf
            for sides in SIDES:
                squares = _candidates(rng, sample, sides)
                coverage = _coverage(squares, sample)
                distance = np.maximum(0, np.maximum(low - coverage, coverage - high))
                if distance.min() < best:  # the first of the nearest
                    best, square = distance.min(), squares[distance.argmin()]
                if best == 0:
                    break
        square = np.asarray(square, dtype=np.float64)
        inside = torch.from_numpy(sample.boxes), torch.from_numpy(square)[None]
        held = (intersections(*inside)[:, 0] >= MIN_VISIBLE * areas(inside[0])).numpy()
        return square, (sample.boxes[held] - np.tile(square[:2], 2)) / (square[2] - square[0]), held


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest square at the centre of an image: x1, y1, x2, y2."""
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def _candidates(rng: np.random.Generator, sample: Sample, fractions: tuple[float, float]) -> np.ndarray:
    """Squares of whole pixels [TRIES, 4]; every second one holds an object, if the image has any."""
    height, width = sample.size
    sides = np.maximum(1, np.floor(min(height, width) * rng.uniform(*fractions, TRIES)))
    room = np.stack([width - sides, height - sides], axis=1)
    corners = rng.random((TRIES, 2)) * room
    if len(sample.boxes):
        boxes = sample.boxes[rng.integers(len(sample.boxes), size=TRIES)]
        around = (boxes[:, :2] + boxes[:, 2:]) / 2 - rng.random((TRIES, 2)) * sides[:, None]
        corners[::2] = np.clip(around, 0, room)[::2]
    corners = np.floor(corners)
    return np.concatenate([corners, corners + sides[:, None]], axis=1)


def _coverage(squares: np.ndarray, sample: Sample) -> np.ndarray:
    """The fraction of each square that boxes cover, to the size of a cell: [n]."""
    step = max(1.0, max(sample.size) / COVERAGE_CELLS)
    rows, columns = (math.ceil(length / step) for length in sample.size)
    mask = np.zeros((rows + 1, columns + 1))
    for x1, y1, x2, y2 in np.rint(sample.boxes / step).astype(int):
        mask[y1 + 1 : y2 + 1, x1 + 1 : x2 + 1] = 1
    sums = mask.cumsum(axis=0).cumsum(axis=1)
    cells = np.rint(squares / step).astype(int)
    x1, y1, x2, y2 = np.minimum(cells, [columns, rows, columns, rows]).T
    area = np.maximum(1, (x2 - x1) * (y2 - y1))
    return (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) / area


class BoxCropDataset(RandomTileDataset):
    """Square crops around boxes near objects and on background, for the classifier of boxes (section 4.2.1).

    Of every three crops of an image the first is around a box whose IoU with an object is at least POSITIVE_IOU, with
    its label. The others are around boxes whose IoU with every object is at most NEGATIVE_IOU, or the smallest of the
    candidates, with the label `background`. Items: "image" uint8 [3, image_size, image_size]; "label", -1 for an image
    that cannot be used; "unreadable" as in `RandomTileDataset`.

    `samples_per_image` is a multiple of 3, else raises ArgumentError. For `square` see `ops.boxes.squares_around`,
    for the others `SquareDataset`.
    """

    def __init__(
        self, annotated: Annotated, image_size: int, samples_per_image: int = 3,
        *, square: str = "maximum", flip: bool = True, **options: Any,
    ):  # fmt: skip
        check_multiple(samples_per_image, CROPS_PER_POSITIVE, "of which a third are around an object")
        super().__init__(annotated, image_size, samples_per_image, **options)
        self.image_size, self.square, self.flip = image_size, square, flip
        self.background = len(annotated.class_names)

    def empty_item(self) -> dict:
        """A black image without a class."""
        return {"image": torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8), "label": -1}

    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """A square around a box."""
        easy = np.flatnonzero(~sample.difficult)
        positive = index % CROPS_PER_POSITIVE == 0 and len(easy) > 0
        target = int(easy[int(rng.random() * len(easy))]) if positive else None
        boxes = _boxes_near(rng, sample, target)
        overlaps = iou(torch.from_numpy(boxes), torch.from_numpy(sample.boxes)).numpy()
        if target is not None:
            fits = overlaps[:, target] >= POSITIVE_IOU  # the last candidate is the object's own box
            box, label = boxes[fits.argmax()], int(sample.labels[target])
        else:
            largest = overlaps.max(axis=1, initial=0.0)
            fits = largest <= NEGATIVE_IOU
            box, label = boxes[fits.argmax() if fits.any() else largest.argmin()], self.background
        (square,) = squares_around(torch.from_numpy(box)[None], sample.size, self.square).tolist()
        crop = resize_crop(image, square, (self.image_size, self.image_size))
        mirror = self.flip and rng.random() < 0.5
        return {"image": crop.flip(-1) if mirror else crop, "label": label}


def check_multiple(samples_per_image: int, of: int, why: str) -> None:
    """Raises ArgumentError unless it is a multiple of a number."""
    if samples_per_image < 1 or samples_per_image % of:
        raise ArgumentError("samples_per_image", f"must be a multiple of {of}, {why}, not {samples_per_image}")


def _boxes_near(rng: np.random.Generator, sample: Sample, target: int | None) -> np.ndarray:
    """Boxes within an image [TRIES, 4]: jittered copies of one of its objects, last itself; for None random boxes."""
    height, width = sample.size
    if target is None:
        # As large as the objects, since proposals will be.
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
    box = sample.boxes[target]
    size = np.tile(box[2:] - box[:2], 2)
    boxes = box + rng.normal(0, 0.15, (TRIES, 4)) * size
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes[-1] = box
    return boxes
