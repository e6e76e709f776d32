"""One synthetic image: digits and clutter on a photograph.

An image is a pure function of (split, seed, index, objects, digits). Pixel arithmetic is float64 with one rounding at
the end, and the random draws use only `random` and `integers`, so an image is the same on every machine whose Pillow
decodes and resizes the photographs alike.

Boxes are x1, y1, x2, y2 in pixels, half-open: a box of one pixel at the origin is (0, 0, 1, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfeat.data.synthetic import DIGITS, MAX_OBJECTS, SPLITS
from overfeat.data.synthetic.compositing import Canvas
from overfeat.data.synthetic.shapes import MAX_SIDE, MIN_SIDE, log_uniform, tight_box, uniform
from overfeat.data.synthetic.sources import PHOTOGRAPHS, pick, random_crop
from overfeat.errors import ArgumentError


@dataclass(frozen=True)
class SyntheticImage:
    """image uint8 [H, W, 3] RGB; boxes float64 [n, 4] of the visible ink; labels int64 [n]."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def make_image(
    split: str, seed: int, index: int, *, objects: tuple[int, int] = (1, 1), digits: Sequence[int] = DIGITS
) -> SyntheticImage:
    """Image number `index` of a split: the same for the same arguments.

    A digit's box has a longer side of 24 to 100 pixels. In images of at most one digit, this is a quarter to three
    quarters of the image's shorter side; otherwise the shorter side is 128 to 176 pixels. The longer side is at most
    1.4 times the shorter.

    Args:
        split: "train", "validation" or "test"; the splits share neither digits nor photographs.
        seed, index: 0 or more.
        objects: Smallest and largest number of digits; the number is uniform between them.
        digits: The classes that occur.
    """
    check_arguments(split, seed, objects, digits)
    if index < 0:
        raise ArgumentError("index", f"must be 0 or more, not {index}")
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    height, width, side, max_side = _draw_sizes(rng, objects[1])
    background = pick(rng, PHOTOGRAPHS[split])
    others = tuple(name for name in PHOTOGRAPHS[split] if name != background)
    canvas = Canvas(random_crop(rng, background, height, width).copy(), split, others)
    patches = [(bool(rng.random() < 0.3), log_uniform(rng, 12.0, 60.0)) for _ in range(rng.integers(7))]
    for above, size in patches:
        if not above:
            canvas.add_patch(rng, round(size))
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        canvas.add_digit(rng, side, max_side, digits)
        side = log_uniform(rng, MIN_SIDE + 1.0, max_side - 1.0)
    for above, size in patches:
        if above:
            canvas.add_patch(rng, round(min(size, 26.0)))
    boxes = np.array([tight_box(digit.visible) for digit in canvas.digits], dtype=np.float64).reshape(-1, 4)
    labels = np.array([digit.label for digit in canvas.digits], dtype=np.int64)
    return SyntheticImage(np.floor(np.clip(canvas.pixels, 0.0, 255.0) + 0.5).astype(np.uint8), boxes, labels)


def _draw_sizes(rng: np.random.Generator, most_objects: int) -> tuple[int, int, float, float]:
    """Height and width of an image, the longer side of its first digit, and the largest of all digits."""
    if most_objects == 1:
        side = log_uniform(rng, MIN_SIDE + 1.0, MAX_SIDE - 1.0)
        shorter = min(max(72, round(side / log_uniform(rng, 0.25, 0.75))), 240)
        max_side = min(MAX_SIDE, 0.75 * shorter)
    else:
        shorter = int(rng.integers(128, 177))
        max_side = min(MAX_SIDE, 0.6 * shorter)
        side = log_uniform(rng, MIN_SIDE + 1.0, max_side - 1.0)
    longer = round(shorter * uniform(rng, 1.0, 1.4))
    height, width = (shorter, longer) if rng.random() < 0.5 else (longer, shorter)
    return height, width, side, max_side


def check_arguments(split: str, seed: int, objects: tuple[int, int], digits: Sequence[int]) -> None:
    """Raises ArgumentError for arguments of `make_image` out of range."""
    if split not in SPLITS:
        raise ArgumentError("split", f"must be one of {', '.join(SPLITS)}, not {split!r}")
    if seed < 0:
        raise ArgumentError("seed", f"must be 0 or more, not {seed}")
    low, high = objects
    if not 0 <= low <= high <= MAX_OBJECTS:
        raise ArgumentError("objects", f"must be LO HI with 0 <= LO <= HI <= {MAX_OBJECTS}, not {low} {high}")
    if not digits or not set(digits) <= set(DIGITS):
        raise ArgumentError("digits", f"must be one or more of 0 to 9, not {' '.join(map(str, digits)) or 'none'}")
