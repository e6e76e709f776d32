"""Images that are stored turned or mirrored, upright."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.data.pixels import STORED
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import LargeImage, TileError, check_window
from overfeat.models.geometry import Size

MIRRORED_ROWS, MIRRORED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # orientations whose files have them from the end
TRANSPOSED = 5  # and those above: rows are stored as columns
UPRIGHT = {**{number: number for number in STORED}, 6: 8, 8: 6}  # the entry of STORED that undoes each


class TurnedImage:
    """An image with an EXIF orientation other than 1, see `LargeImage`."""

    georeference: Georeference | None = None

    def __init__(self, image: LargeImage, orientation: int):
        self._image, self._orientation = image, orientation
        self.name, self.notes = image.name, getattr(image, "notes", [])
        self.levels: Sequence[Size] = [self._turned(size) for size in image.levels]
        self.tile: Size = self._turned(image.tile)

    def _turned(self, size: Size) -> Size:
        return (size[1], size[0]) if self._orientation >= TRANSPOSED else size

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        top, bottom, left, right = check_window(self, level, rows, columns)
        stored = self._stored(level, slice(top, bottom), slice(left, right))
        errors: list[TileError] = []
        pixels = self._image.read(level, *stored, damaged=errors).numpy()
        for error in errors:
            upright = TileError(self.name, level, *self._upright(level, error.rows, error.columns), error.reason)
            if damaged is None:
                raise upright
            damaged.append(upright)
        return torch.from_numpy(STORED[UPRIGHT[self._orientation]](pixels).copy())

    def _stored(self, level: int, rows: slice, columns: slice) -> tuple[slice, slice]:
        """The window of the stored image that has these upright pixels."""
        rows, columns = self._mirrored(level, rows, columns)
        return (columns, rows) if self._orientation >= TRANSPOSED else (rows, columns)

    def _upright(self, level: int, rows: slice, columns: slice) -> tuple[slice, slice]:
        """The upright window of these stored pixels."""
        rows, columns = (columns, rows) if self._orientation >= TRANSPOSED else (rows, columns)
        return self._mirrored(level, rows, columns)

    def _mirrored(self, level: int, rows: slice, columns: slice) -> tuple[slice, slice]:
        height, width = self.levels[level]
        if self._orientation in MIRRORED_ROWS:
            rows = slice(height - rows.stop, height - rows.start)
        if self._orientation in MIRRORED_COLUMNS:
            columns = slice(width - columns.stop, width - columns.start)
        return rows, columns

    def close(self) -> None:
        """See `LargeImage.close`."""
        self._image.close()
