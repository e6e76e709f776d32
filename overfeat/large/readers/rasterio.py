"""Files that only GDAL reads, such as VRT, ERDAS IMAGINE and JPEG 2000, in windows, through rasterio."""

import os
import re
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError, printable, reason_of
from overfeat.large.readers.channels import channel_note, check_channels, default_channels
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import TileError, check_window
from overfeat.large.readers.values import Alpha, Conversion, Kind, Samples, conversion, range_note
from overfeat.large.readers.windows import Window, finish_window, middle, read_by_tiles
from overfeat.models.geometry import Size
from overfeat.packages import package

NUMBERED = re.compile(r"(Layer|Band)[_ ]?\d+")  # GDAL's names of bands without one


class RasterImage:
    """A file of GDAL's, see `LargeImage` and `open_image`."""

    def __init__(self, path: str | os.PathLike, channels: object = None, value_range: ValueRange | None = None):
        self._arguments = os.fspath(path), channels, value_range
        self.name = printable(path)
        self._rasterio = package("rasterio", "files of this kind need", install="rasterio")
        self._lock = threading.Lock()  # a dataset is for one thread at a time
        finest = self._open()
        self._levels = [finest, *(self._open(level) for level in range(len(finest.overviews(1))))]
        self.levels: Sequence[Size] = [dataset.shape for dataset in self._levels]
        self.tile: Size = finest.block_shapes[0]
        self.georeference = _georeference(finest)
        self.notes: list[str] = []
        self._bands, self._convert = self._layout(finest, channels, value_range)
        dtype = np.dtype(finest.dtypes[0])
        if value_range is None and dtype.itemsize > 1:
            level = len(self.levels) - 1
            self.notes += range_note(dtype, self._convert, self._samples(level, middle(self.levels[level]))[0])

    def _open(self, overview: int | None = None) -> Any:
        options = {} if overview is None else {"overview_level": overview}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
                return self._rasterio.open(self._arguments[0], **options)
        except self._rasterio.errors.RasterioError as error:
            problem = f"{self.name}: GDAL cannot read it ({reason_of(error)})"
            raise InputError(f"{problem}; convert it to a tiled TIFF") from error

    def _layout(self, dataset: Any, channels: object, value_range: ValueRange | None) -> tuple[list[int], Conversion]:
        """The bands to read, from 1, and the conversion of their values."""
        colours = [interpretation.name for interpretation in dataset.colorinterp]
        bands = [number for number, colour in enumerate(colours) if colour != "alpha"]
        alpha: Alpha | None = "straight" if "alpha" in colours and channels is None else None
        if channels is not None:
            numbers = check_channels(channels, len(bands), self.name)
        elif colours == ["palette"]:
            table = dataset.colormap(1)
            palette = np.array([table.get(value, (0, 0, 0))[:3] for value in range(max(table) + 1)], np.uint8)
            return [1], Conversion("palette", palette=palette)
        elif {"red", "green", "blue"} <= set(colours):
            bands, numbers = [colours.index(colour) for colour in ("red", "green", "blue")], (0, 1, 2)
        else:
            names = [name for name in dataset.descriptions if name and not NUMBERED.fullmatch(name)]
            names = names if len(names) == len(bands) else []
            numbers = default_channels(len(bands), self.name, names)
            self.notes += channel_note(numbers, names)
        chosen = [bands[number] + 1 for number in numbers] + ([colours.index("alpha") + 1] if alpha else [])
        kind: Kind = "grey" if len(numbers) == 1 else "rgb"
        bits = dataset.tags(chosen[0], ns="IMAGE_STRUCTURE").get("NBITS")
        dtype = np.dtype(dataset.dtypes[0])
        made = conversion(dtype, kind, self.name, value_range, bits=int(bits) if bits else None, alpha=alpha)
        return chosen, made

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        window = check_window(self, level, rows, columns)
        samples, errors = self._samples(level, window)
        return finish_window(self._convert(samples), window, errors, damaged)

    def _samples(self, level: int, window: Window) -> tuple[Samples, list[TileError]]:
        dataset = self._levels[level]
        empty = np.zeros((window[1] - window[0], window[3] - window[2], len(self._bands)), dataset.dtypes[0])

        def read(window: Window) -> Samples:
            with self._lock:
                return np.moveaxis(dataset.read(self._bands, window=(window[:2], window[2:])), 0, 2)

        return read_by_tiles(read, window, dataset.block_shapes[0], self, level, empty)

    def close(self) -> None:
        """See `LargeImage.close`."""
        for dataset in self._levels:
            dataset.close()

    def __reduce__(self) -> tuple:
        return type(self), self._arguments


def _georeference(dataset: Any) -> Georeference | None:
    transform, crs = tuple(dataset.transform)[:6], dataset.crs
    if transform == (1, 0, 0, 0, 1, 0) and not crs:
        return None
    return Georeference(transform, crs.to_epsg() if crs else None, bool(crs and crs.is_geographic))
