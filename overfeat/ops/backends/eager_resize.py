"""Bilinear, antialiased resizing of a part of an image of bytes, to the last bit as torch resizes the whole.

The functions run where numba_resize, which has the same, does not.

torch's kernel for bytes (like Pillow's) weights columns, rounds to bytes, then weights rows, in 16-bit fixed point; its
precision depends on the largest weight of the axis.
"""

from dataclasses import dataclass

import numpy as np

MAX_PRECISION = 22  # bits
CHUNK = 1 << 16  # outputs whose weights are computed at a time in search of the largest


@dataclass(frozen=True)
class AxisWeights:
    """Which pixels of an axis each output is made of, and how.

    Attributes:
        first: int64 [n], the first pixel of each output.
        counts: int64 [n], how many it has.
        weights: int64 [n, largest count], fixed point.
        precision: Bits behind the point.
    """

    first: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    precision: int

    @property
    def span(self) -> slice:
        """All pixels that the outputs are made of."""
        return slice(int(self.first.min()), int((self.first + self.counts).max()))


@dataclass(frozen=True)
class Axis:
    """One axis of an image that is resized.

    Attributes:
        pixels: Length of the image.
        scaled: Length of the resized image.
        start, length: The part of the image that is resized, in pixels; fractions of pixels are allowed. Pixels that it
            touches count.
    """

    pixels: int
    scaled: int
    start: float = 0.0
    length: float | None = None

    @property
    def step(self) -> float:
        """Pixels of the image from one output to the next."""
        return (self.pixels if self.length is None else self.length) / self.scaled

    def is_copy(self) -> bool:
        """Whether outputs are pixels as they are."""
        return self.step == 1 and float(self.start).is_integer()

    def weights(self, outputs: slice, precision: int) -> AxisWeights:
        """The weights of some outputs; precision: of `precision()`."""
        first, counts, weights = self._float_weights(outputs)
        return AxisWeights(first, counts, np.floor(weights * (1 << precision) + 0.5).astype(np.int64), precision)

    def precision(self) -> int:
        """Bits behind the point of all weights of the axis: the most with which they fit 16 bits."""
        starts = range(0, self.scaled, CHUNK)
        largest = max(self._float_weights(slice(a, min(a + CHUNK, self.scaled)))[2].max() for a in starts)
        for bits in range(MAX_PRECISION):
            if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15:
                return bits
        return MAX_PRECISION

    def _float_weights(self, outputs: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        step = self.step
        support, inverse = max(step, 1.0), 1 / max(step, 1.0)
        low = int(np.floor(self.start))
        high = self.pixels if self.length is None else min(self.pixels, int(np.ceil(self.start + self.length)))
        centres = self.start + step * (np.arange(outputs.start, outputs.stop) + 0.5)
        first = np.maximum((centres - support + 0.5).astype(np.int64), low)
        counts = np.minimum((centres + support + 0.5).astype(np.int64), high) - first
        taps = np.arange(counts.max())
        distances = np.abs((taps + first[:, None] - centres[:, None] + 0.5) * inverse)
        weights = np.where(taps < counts[:, None], np.maximum(1 - distances, 0), 0)
        return first, counts, weights / weights.sum(axis=1, keepdims=True)


def weigh_columns(image: np.ndarray, offset: int, weights: AxisWeights) -> np.ndarray:
    """Bytes [C, h, n] from bytes [C, h, w], whose first column is `offset` of the whole image."""
    result = np.full((*image.shape[:2], len(weights.first)), 1 << (weights.precision - 1), np.int32)
    for tap, values in enumerate(weights.weights.T.astype(np.int32)):  # 0 where an output has fewer
        columns = np.minimum(weights.first - offset + tap, image.shape[2] - 1)
        result += image[:, :, columns] * values
    return np.clip(result >> weights.precision, 0, 255).astype(np.uint8)


def weigh_rows(image: np.ndarray, offset: int, weights: AxisWeights) -> np.ndarray:
    """Bytes [C, n, w] from bytes [C, h, w], whose first row is `offset` of the whole image."""
    return weigh_columns(image.swapaxes(1, 2), offset, weights).swapaxes(1, 2)
