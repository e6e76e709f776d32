"""The canvas on which digits and patches of photographs are painted, and the visible ink of each digit."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from overfeat.data.synthetic import DIGITS
from overfeat.data.synthetic.shapes import MIN_SIDE, distort, patch_mask, render, soften, tight_box, uniform
from overfeat.data.synthetic.sources import DIGIT_RANGES, mnist_digits, pick, random_crop

MAX_HIDDEN = 0.30  # fraction of a digit's ink that later layers may cover
MAX_OVERLAP = 0.35  # fraction of the smaller of two boxes that the other may overlap
MAX_CLUTTERED = 0.15  # fraction of a digit's ink that patches may cover
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass
class PlacedDigit:
    """A digit on the canvas: coverage of each pixel by its ink, [H, W], less what later layers hide."""

    label: int
    ink: float  # the coverage's sum when it was painted
    visible: np.ndarray
    clutter: float = 0.0  # fraction of the ink under patches

    def hidden(self, cover: np.ndarray | float = 0.0) -> float:
        """Fraction of the ink that would be hidden under a further layer."""
        return 1.0 - float((self.visible * (1.0 - cover)).sum()) / self.ink

    def stays_readable(self, cover: np.ndarray) -> bool:
        """Whether enough of the ink would stay visible under a further layer."""
        if self.hidden(cover) > MAX_HIDDEN:
            return False
        x1, y1, x2, y2 = tight_box(self.visible * (1.0 - cover))
        return max(x2 - x1, y2 - y1) >= MIN_SIDE

    def overlaps(self, other: "PlacedDigit") -> bool:
        """Whether the boxes of the two overlap so much that neither digit can be read."""
        a, b = tight_box(self.visible), tight_box(other.visible)
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return max(width, 0) * max(height, 0) > MAX_OVERLAP * smaller


@dataclass
class Canvas:
    """Pixels float64 [H, W, 3] in 0..255 and the digits painted on them.

    split: whose MNIST digits are used. photographs: the names of those that textures and patches are cropped from.
    """

    pixels: np.ndarray
    split: str
    photographs: tuple[str, ...]
    digits: list[PlacedDigit] = field(default_factory=list)

    def add_digit(self, rng: np.random.Generator, side: float, max_side: float, labels: Sequence[int] = DIGITS) -> None:
        """Paint a digit of one of the classes where it hides little of the others; it is made smaller until it fits.

        Rarely, and only from nine digits on, none fits even at the smallest size: nothing is painted.

        side, max_side: longer side of the digit's box, and its limit after distortion.
        """
        height, width = self.pixels.shape[:2]
        label = labels[int(rng.integers(len(labels)))]
        shape = distort(rng, mnist_digits()[label][int(rng.integers(*DIGIT_RANGES[self.split]))])
        for _ in range(8):
            ink, outline = render(shape, side, max_side)
            h, w = ink.shape
            for _ in range(12 if h <= height and w <= width else 0):
                y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                cover, visible = np.zeros((height, width)), np.zeros((height, width))
                cover[y : y + h, x : x + w] = outline
                visible[y : y + h, x : x + w] = ink
                new = PlacedDigit(label, float(ink.sum()), visible)
                if all(old.stays_readable(cover) and not old.overlaps(new) for old in self.digits):
                    touches = any((old.visible * cover).any() for old in self.digits)
                    cover = self.paint_digit(rng, (y, x), ink, outline, outlined=touches)
                    for old in self.digits:
                        old.visible = old.visible * (1.0 - cover)
                    self.digits.append(new)
                    return
            side = max(MIN_SIDE + 1.0, 0.75 * side)

    def paint_digit(
        self, rng: np.random.Generator, corner: tuple[int, int], ink: np.ndarray, outline: np.ndarray, *, outlined: bool
    ) -> np.ndarray:
        """Paint one digit, with its top left at `corner` (y, x); returns what it covers of earlier layers, [H, W].

        outlined: always with an outline, to separate it from the digit below.
        """
        window = (slice(corner[0], corner[0] + ink.shape[0]), slice(corner[1], corner[1] + ink.shape[1]))
        background = self.pixels[window]
        textured = bool(rng.random() < 0.25)
        colour = _ink_colour(rng, background, 20.0 if textured else 0.0)
        outlined = outlined or float((background @ LUMA).std()) > 42.0
        opacity, style = uniform(rng, 0.85, 1.0), float(rng.random())
        luma = float(colour @ LUMA)
        if outlined or style < 0.2:
            outlined = True
            edge = np.full(3, 20.0 if luma > 127.5 else 235.0) + 0.15 * (colour - luma)
            self._blend(window, outline * uniform(rng, 0.6, 0.95), np.clip(edge, 0.0, 255.0))
        elif style < 0.45:
            drop = max(1, round(ink.shape[0] / uniform(rng, 18.0, 35.0)))
            shadow = soften(np.pad(ink, ((drop, 0), (drop, 0)))[: ink.shape[0], : ink.shape[1]], 2)
            dark = 0.0 if luma > 110.0 else 255.0  # a glow for dark ink
            self._blend(window, shadow * uniform(rng, 0.25, 0.5), np.full(3, dark))
        fill = np.broadcast_to(colour, (*ink.shape, 3))
        if textured:
            fill = self._textured(rng, fill)
        self._blend(window, ink * opacity, fill)
        cover = np.zeros(self.pixels.shape[:2])
        cover[window] = outline if outlined else ink
        return cover

    def add_patch(self, rng: np.random.Generator, size: int) -> None:
        """Paste a crop of a photograph, unless it would hide too much of a digit."""
        name = pick(rng, self.photographs)
        height, width = self.pixels.shape[:2]
        mask = patch_mask(rng, size) * uniform(rng, 0.8, 1.0)
        patch = random_crop(rng, name, size, size)
        y, x = int(rng.integers(-size // 3, height - size // 2)), int(rng.integers(-size // 3, width - size // 2))
        top, left, bottom, right = max(y, 0), max(x, 0), min(y + size, height), min(x + size, width)
        inside = (slice(top - y, bottom - y), slice(left - x, right - x))
        window = (slice(top, bottom), slice(left, right))
        cover = np.zeros((height, width))
        cover[window] = mask[inside]
        for digit in self.digits:
            cluttered = float((digit.visible * cover).sum()) / digit.ink
            if digit.clutter + cluttered >= MAX_CLUTTERED or not digit.stays_readable(cover):
                return
        self._blend(window, mask[inside], patch[inside])
        for digit in self.digits:
            digit.clutter += float((digit.visible * cover).sum()) / digit.ink
            digit.visible = digit.visible * (1.0 - cover)

    def _textured(self, rng: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        """The fill [h, w, 3] with the structure of a photograph."""
        height, width = fill.shape[:2]
        texture = random_crop(rng, pick(rng, self.photographs), height, width, max_scale=1.5)
        texture = texture - texture.mean((0, 1))
        return np.clip(fill + texture * min(1.0, 20.0 / (float(texture.std()) + 1e-9)), 0.0, 255.0)

    def _blend(self, window: tuple[slice, slice], alpha: np.ndarray, colour: np.ndarray) -> None:
        alpha = alpha[..., None]
        self.pixels[window] = self.pixels[window] * (1.0 - alpha) + colour * alpha


def _ink_colour(rng: np.random.Generator, background: np.ndarray, extra: float) -> np.ndarray:
    """A random colour [3] that contrasts in brightness with a background [h, w, 3]."""
    luma = background @ LUMA
    mean, spread = float(luma.mean()), float(luma.std())
    contrast = min(75.0 + 1.4 * spread + extra, 0.85 * max(mean, 255.0 - mean))
    for _ in range(24):
        colour = np.clip(1.7 * rng.random(3) - 0.35, 0.0, 1.0) * 255.0
        if abs(float(colour @ LUMA) - mean) >= contrast:
            return colour
    return np.full(3, 12.0 if mean > 127.5 else 243.0)
