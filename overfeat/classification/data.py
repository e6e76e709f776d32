"""Labelled images to train and validate a classifier on."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from overfeat.data.image_cache import CACHE_BYTES, ImageCache, resize_shorter
from overfeat.data.image_folder import ImageFolder, align
from overfeat.data.readers.ilsvrc import read_ilsvrc
from overfeat.data.readers.image_folder import read_image_folder
from overfeat.errors import ArgumentError, InputError


def read_data(data: Path, validation: Path | None, devkit: Path | None) -> tuple[ImageFolder, ImageFolder | None]:
    """Training and validation images. Raises InputError as the readers do.

    Args:
        data: A folder of images per class; or a folder that holds one as train, and perhaps validation or val.
        validation: A folder of validation images with the same classes; None: the one beside train, if any.
        devkit: ILSVRC's development kit, for images laid out as there.
    """
    if (data / "train").is_dir():
        folders = [data / name for name in ("validation", "val") if (data / name).is_dir()]
        validation = validation or (folders[0] if folders else None)
        data = data / "train"
    if devkit:
        train = read_ilsvrc(devkit, data, "train")
        return train, read_ilsvrc(devkit, validation, "validation") if validation else None
    train = read_image_folder(data)
    if validation is None:
        return train, None
    try:
        return train, align(read_image_folder(validation), train.class_names)
    except InputError as error:
        raise InputError(f"{validation}: {error}") from error


def centre_crop(image: Tensor, window: int, short_side: int) -> Tensor:
    """The centre of the resized image: uint8 [3, H, W] -> [3, window, window].

    Raises InputError where short_side is less than the window, and as `resize_shorter`.
    """
    check_sizes(window, short_side, short_side)
    image = resize_shorter(image, short_side)
    y, x = (round(0.5 * (side - window)) for side in image.shape[1:])
    return image[:, y : y + window, x : x + window]


class CropDataset(Dataset):
    """Random crops of the resized images and their mirror images (section 3.1).

    An item's key is (epoch, index); index counts images, then crops, then the crop and its mirror image. All
    randomness is seeded by (seed, epoch, image, crop), so an item does not depend on the process that makes it. Items
    are dicts: "image" uint8 [3, window, window], "label", and "unreadable": -1, or the number of the image that could
    not be used and that the next readable one replaces.

    Args:
        folder: The labelled images.
        window: Side of the crops in pixels.
        resize: Range of the shorter side, drawn log-uniformly; the paper's is fixed at 256.
        crops, flip: Crops per image and epoch, and whether the mirror image of each is added.
        seed: Of all randomness.
        max_pixels, cache_bytes: See `ImageCache`.
    """

    def __init__(
        self, folder: ImageFolder, window: int, resize: tuple[int, int], *, crops: int = 5, flip: bool = True,
        seed: int = 0, max_pixels: int | None = None, cache_bytes: int = CACHE_BYTES,
    ):  # fmt: skip
        check_sizes(window, *resize)
        if crops < 1:
            raise ArgumentError("crops", f"must be at least 1, not {crops}")
        self.window, self.resize, self.crops, self.flip, self.seed = window, resize, crops, flip, seed
        self.samples = folder.samples
        paths = [path for path, _ in folder.samples]
        self.cache = ImageCache(paths, resize, max_pixels=max_pixels, cache_bytes=cache_bytes)

    def __len__(self) -> int:
        return len(self.samples) * self.crops * (2 if self.flip else 1)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        index, mirror = divmod(index, 2) if self.flip else (index, 0)
        number, crop = divmod(index, self.crops)
        draw = np.random.default_rng([self.seed, epoch, number, crop]).random(3)
        image, label = self._usable(number, draw[0])
        room = [side - self.window for side in image.shape[1:]]
        y, x = (min(int(fraction * (most + 1)), most) for fraction, most in zip(draw[1:], room, strict=True))
        image = image[:, y : y + self.window, x : x + self.window]
        image = image.flip(-1) if mirror else image.contiguous()
        return {"image": image, "label": label, "unreadable": number if number in self.cache.invalid else -1}

    def _usable(self, number: int, fraction: float) -> tuple[Tensor, int]:
        """The image, or the next that can be used, resized, and its label."""
        low, high = self.resize
        # A size between lo and hi + 1 on the log scale, floored, so that lo and hi both occur.
        size = min(high, math.floor(low * ((high + 1) / low) ** fraction))
        for candidate in (*range(number, len(self.samples)), *range(number)):
            image = self.cache.get(candidate)
            if image is not None:
                return resize_shorter(image, size), self.samples[candidate][1]
        raise InputError(f"none of the {len(self.samples)} images can be used; {self.cache.error_for(0)[1]}")


class CentreCropDataset(Dataset):
    """The centre crop of every image, for validation; items as those of `CropDataset`.

    An image that cannot be used is replaced by zeros with the label -1.
    """

    def __init__(
        self, folder: ImageFolder, window: int, short_side: int,
        *, max_pixels: int | None = None, cache_bytes: int = CACHE_BYTES,
    ):  # fmt: skip
        check_sizes(window, short_side, short_side)
        self.window, self.short_side = window, short_side
        self.samples = folder.samples
        paths = [path for path, _ in folder.samples]
        self.cache = ImageCache(paths, (short_side, short_side), max_pixels=max_pixels, cache_bytes=cache_bytes)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict:
        image = self.cache.get(number)
        if image is None:
            zeros = torch.zeros(3, self.window, self.window, dtype=torch.uint8)
            return {"image": zeros, "label": -1, "unreadable": number}
        image = centre_crop(image, self.window, self.short_side).contiguous()
        return {"image": image, "label": self.samples[number][1], "unreadable": -1}


def check_sizes(window: int, low: int, high: int) -> None:
    """Raises ArgumentError for shorter sides below the window, or in the wrong order."""
    if low < window:
        raise ArgumentError("resize", f"must be at least the net's window of {window} px, not {low}")
    if high < low:
        raise ArgumentError("resize", f"must be the smaller size, then the larger, not {low},{high}")
