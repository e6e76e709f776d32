"""Which windows of a large image see background alone, by a cheap rule on its coarsest level."""

from dataclasses import dataclass

import numpy as np

from overfeat.dense.grid import Grid
from overfeat.large.view import View

SIDE = 4096  # pixels of the picture that the rule looks at, at most
WHITE, BLACK, COLOR = 210, 10, 20  # lowest value of white, highest of black, largest difference of channels


@dataclass(frozen=True)
class Mask:
    """Where a view is not background: near-white or near-black, and without colour.

    Attributes:
        counts: int64 [rows + 1, columns + 1], pixels that are not background above and left of each corner.
    """

    counts: np.ndarray

    @classmethod
    def of(cls, view: View) -> "Mask":
        """The mask of a view, from its coarsest level; of a view without a small level from all its pixels, resized."""
        longest = max(view.image.levels[-1])
        factor = min(1.0, SIDE / longest) * longest / max(view.image.levels[view.level])
        rows, columns = (max(1, round(side * min(1.0, factor))) for side in view.size)
        image = view.scaled((rows, columns)).crop(slice(0, rows), slice(0, columns), []).numpy()
        low, high = image.min(axis=0), image.max(axis=0)
        background = (high - low <= COLOR) & ((low >= WHITE) | (high <= BLACK))
        counts = np.zeros((rows + 1, columns + 1), np.int64)
        counts[1:, 1:] = (~background).cumsum(axis=0).cumsum(axis=1)
        return cls(counts)

    def rectangle(self, grid: Grid, rows: slice, columns: slice) -> tuple[slice, slice] | None:
        """The rows and columns that enclose all positions whose windows are not background alone; None without any."""
        first = slice(rows.start, rows.start + 1), slice(columns.start, columns.start + 1)
        down, across = grid.boxes(rows, first[1])[:, 0], grid.boxes(first[0], columns)[0]
        height, width = (side - 1 for side in self.counts.shape)
        top, bottom = _cells(down[:, 1], down[:, 3], grid.image[0], height)
        left, right = _cells(across[:, 0], across[:, 2], grid.image[1], width)
        counts = self.counts
        seen = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left] > 0
        if not seen.any():
            return None
        (top, bottom), (left, right) = (np.flatnonzero(seen.any(axis=axis))[[0, -1]] for axis in (1, 0))
        return (
            slice(rows.start + int(top), rows.start + int(bottom) + 1),
            slice(columns.start + int(left), columns.start + int(right) + 1),
        )


def _cells(low: np.ndarray, high: np.ndarray, length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 cells of intervals of an axis of this length."""
    first = np.floor(low * (cells / length)).astype(np.int64).clip(0, cells - 1)
    last = np.ceil(high * (cells / length)).astype(np.int64).clip(1, cells)
    return first, np.maximum(last, first + 1)
