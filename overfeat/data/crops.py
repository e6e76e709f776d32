"""What the nets see of an image: random crops and their mirror images in training, the centre otherwise."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from overfeat.data.folder import ImageFolder
from overfeat.data.images import read_image
from overfeat.files import InputError, named
from overfeat.resize import resize_short_side

CACHE_BYTES = 10**9
MAX_RESIZED = 40_000_000  # pixels; a 1 x 10,000 strip would otherwise become gigabytes


def resize_shorter(image: Tensor, short_side: int) -> Tensor:
    """The image with its shorter side resized to `short_side`: uint8 [3, H, W] -> [3, h, w].

    Raises InputError for images so elongated that the result would not be worth its memory.
    """
    _check_elongation(image, short_side)
    return resize_short_side(image[None], short_side)[0]


def centre_crop(image: Tensor, window: int, short_side: int) -> Tensor:
    """The middle of the resized image: uint8 [3, H, W] -> [3, window, window].

    Raises InputError where short_side is less than the window, and as `resize_shorter`.
    """
    _check_sizes(window, short_side, short_side)
    image = resize_shorter(image, short_side)
    y, x = (round(0.5 * (side - window)) for side in image.shape[1:])
    return image[:, y : y + window, x : x + window]


class ImageStore:
    """The images of a folder, each decoded once as long as they fit into `cache_bytes`.

    resize: the smallest and largest shorter side that will be asked for; where they are the same,
    images are kept resized. Workers share the budget, since each process holds its own part. check: called
    with an image's number and the image; InputError from it makes the image one that cannot be used. latest: when
    the budget is spent the images read first make room.
    """

    def __init__(
        self,
        folder: ImageFolder,
        resize: tuple[int, int],
        max_pixels: int | None,
        cache_bytes: int,
        check: Callable[[int, Tensor], None] | None = None,
        latest: bool = False,
    ):
        self.folder, self.check_image, self.latest = folder, check, latest
        self.resize = resize
        self.limits = {} if max_pixels is None else {"max_pixels": max_pixels}
        self.cache_bytes = cache_bytes
        self.cached: dict[int, Tensor] = {}
        self.used = 0
        self.bad: set[int] = set()

    def get(self, index: int) -> Tensor | None:
        """uint8 [3, H, W], or None where the file cannot be used; `complaint` says why."""
        if index in self.cached:
            return self.cached[index]
        if index in self.bad:
            return None
        try:
            image = self._read(index)
        except InputError:
            self.bad.add(index)
            return None
        worker = get_worker_info()
        budget = self.cache_bytes // (worker.num_workers if worker else 1)
        while self.latest and self.cached and self.used + image.nbytes > budget:
            self.used -= self.cached.pop(next(iter(self.cached))).nbytes
        if self.used + image.nbytes <= budget:
            self.cached[index] = image
            self.used += image.nbytes
        return image

    def complaint(self, index: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image that `get` gave None for."""
        path = self.folder.samples[index][0]
        try:
            self._read(index)
        except InputError as error:
            return str(path), named(path, error)
        return str(path), f"{path}: could not be read a moment ago, and can be now"

    def check(self) -> None:
        """Raises InputError where not one image can be used."""
        if all(self.get(index) is None for index in range(len(self.folder))):
            raise InputError(f"none of the {len(self.folder)} images can be used; {self.complaint(0)[1]}")

    def _read(self, index: int) -> Tensor:
        image = read_image(self.folder.samples[index][0], **self.limits)
        if self.check_image:
            self.check_image(index, image)
        low, high = self.resize
        # Judged at the largest size, so that it does not hang on chance which images are used.
        _check_elongation(image, high)
        return resize_shorter(image, low) if low == high else image


class CropDataset(Dataset):
    """Random crops of the resized images and their mirror images (section 3.1).

    An item's key is (epoch, index); index counts images, then crops, then the crop and its mirror
    image. All chance is seeded by (seed, epoch, image, crop), so an item is the same whichever
    process makes it and whenever. resize: the shorter side is drawn log-uniformly from lo..hi;
    the paper's is fixed at 256. Items are dicts: "image" uint8 [3, window, window], "label", and
    "unreadable": -1, or the number of the image that could not be used and that the next
    readable one stands in for.
    """

    def __init__(
        self,
        folder: ImageFolder,
        window: int,
        resize: tuple[int, int],
        crops: int = 5,
        flip: bool = True,
        seed: int = 0,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        _check_sizes(window, *resize)
        if crops < 1:
            raise InputError(f"--crops must be at least 1, not {crops}")
        self.window, self.resize, self.crops, self.flip, self.seed = window, resize, crops, flip, seed
        self.store = ImageStore(folder, resize, max_pixels, cache_bytes)

    def __len__(self) -> int:
        return len(self.store.folder) * self.crops * (2 if self.flip else 1)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        index, mirror = divmod(index, 2) if self.flip else (index, 0)
        number, crop = divmod(index, self.crops)
        draw = np.random.default_rng([self.seed, epoch, number, crop]).random(3)
        image, label = self._usable(number, draw[0])
        y, x = (
            min(int(part * (side - self.window + 1)), side - self.window)
            for part, side in zip(draw[1:], image.shape[1:], strict=True)
        )
        image = image[:, y : y + self.window, x : x + self.window]
        image = image.flip(-1) if mirror else image.contiguous()
        return {"image": image, "label": label, "unreadable": number if number in self.store.bad else -1}

    def complaint(self, number: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image named in "unreadable"."""
        return self.store.complaint(number)

    def _usable(self, number: int, part: float) -> tuple[Tensor, int]:
        """The image resized, or the next that can be used, and its label."""
        low, high = self.resize
        # A size between lo and hi + 1 on the log scale, floored, so that lo and hi both occur.
        size = min(high, math.floor(low * ((high + 1) / low) ** part))
        samples = self.store.folder.samples
        for candidate in (*range(number, len(samples)), *range(number)):
            image = self.store.get(candidate)
            if image is not None:
                return resize_shorter(image, size), samples[candidate][1]
        raise InputError(f"none of the {len(samples)} images can be used; {self.complaint(0)[1]}")


class CentreDataset(Dataset):
    """The centre crop of every image, for validation; items as those of `CropDataset`.

    An image that cannot be used comes as zeros with the label -1.
    """

    def __init__(
        self,
        folder: ImageFolder,
        window: int,
        short_side: int,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        _check_sizes(window, short_side, short_side)
        self.window, self.short_side = window, short_side
        self.store = ImageStore(folder, (short_side, short_side), max_pixels, cache_bytes)

    def __len__(self) -> int:
        return len(self.store.folder)

    def __getitem__(self, number: int) -> dict:
        image = self.store.get(number)
        if image is None:
            zeros = torch.zeros(3, self.window, self.window, dtype=torch.uint8)
            return {"image": zeros, "label": -1, "unreadable": number}
        image = centre_crop(image, self.window, self.short_side).contiguous()
        return {"image": image, "label": self.store.folder.samples[number][1], "unreadable": -1}

    def complaint(self, number: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image named in "unreadable"."""
        return self.store.complaint(number)


def _check_sizes(window: int, low: int, high: int) -> None:
    if low < window:
        raise InputError(f"--resize {low}: the shorter side must be at least the net's window of {window} px")
    if high < low:
        raise InputError(f"--resize {low} {high}: the smaller size comes first")


def _check_elongation(image: Tensor, short_side: int) -> None:
    height, width = image.shape[1:]
    if short_side**2 * max(height, width) / min(height, width) > MAX_RESIZED:
        raise InputError(f"{width}x{height} px is too elongated for a shorter side of {short_side}; crop it")
