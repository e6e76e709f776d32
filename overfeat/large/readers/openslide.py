"""Whole slides that only openslide reads, such as MRXS, in windows."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError, printable
from overfeat.large.readers.channels import check_channels
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import TileError, check_window
from overfeat.large.readers.values import Kind, Samples, conversion
from overfeat.large.readers.windows import Window, finish_window, read_by_tiles
from overfeat.models.geometry import Size
from overfeat.packages import package

TILE = 256  # of files that name none
CHANNELS = 3


class SlideImage:
    """A whole slide, see `LargeImage` and `open_image`. What was not scanned is white."""

    georeference: Georeference | None = None

    def __init__(self, path: str | os.PathLike, channels: object = None, value_range: ValueRange | None = None):
        self._arguments = os.fspath(path), channels, value_range
        self.name = printable(path)
        self._openslide = package("openslide", "slides of this kind need", install="openslide-python openslide-bin")
        self._lock = threading.Lock()
        self._slide = self._open()
        self.levels: Sequence[Size] = [(height, width) for width, height in self._slide.level_dimensions]
        properties = self._slide.properties
        height, width = (int(properties.get(f"openslide.level[0].tile-{side}", TILE)) for side in ("height", "width"))
        self.tile: Size = height, width
        chosen = None if channels is None else check_channels(channels, CHANNELS, self.name)
        kind: Kind = "grey" if chosen is not None and len(chosen) == 1 else "rgb"
        self._channels = [*(range(CHANNELS) if chosen is None else chosen), CHANNELS]
        self._convert = conversion(np.dtype(np.uint8), kind, self.name, value_range, alpha="straight")

    def _open(self) -> Any:
        try:
            return self._openslide.OpenSlide(self._arguments[0])
        except (self._openslide.OpenSlideError, OSError) as error:
            reason = " ".join(str(error).split())[:200] or "of a kind that it does not read"
            remedy = "copy the file again, with the folder beside it if it has one"
            raise InputError(f"{self.name}: openslide cannot read it ({reason}); {remedy}") from error

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        window = check_window(self, level, rows, columns)
        empty = np.zeros((window[1] - window[0], window[3] - window[2], len(self._channels)), np.uint8)
        samples, errors = read_by_tiles(lambda area: self._window(level, area), window, self.tile, self, level, empty)
        return finish_window(self._convert(samples), window, errors, damaged)

    def _window(self, level: int, window: Window) -> Samples:
        """RGBA [h, w, 4] of a window, whose corner openslide takes in pixels of the finest level."""
        top, bottom, left, right = window
        slide, factor = self._slide, self._slide.level_downsamples[level]
        try:
            region = slide.read_region((round(left * factor), round(top * factor)), level, (right - left, bottom - top))
        except self._openslide.OpenSlideError:
            with self._lock:  # an error closes a slide for good
                if self._slide is slide:
                    self._slide = self._open()
            raise
        return np.asarray(region)[..., self._channels]

    def close(self) -> None:
        """See `LargeImage.close`."""
        self._slide.close()

    def __reduce__(self) -> tuple:
        return type(self), self._arguments
