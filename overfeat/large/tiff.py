"""TIFF files in windows, through tifffile: tiled and pyramidal, BigTIFF, OME-TIFF, SVS, GeoTIFF."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError, printable
from overfeat.large.packages import package
from overfeat.large.reader import TileError, check_window
from overfeat.large.tiff_pages import Page, find_levels, georeference_of, layout_of, size_of, unsupported
from overfeat.large.values import Samples
from overfeat.models.geometry import Size

JPEG = (6, 7, 34892, 33007)  # compressions whose decoders take tables
WHITE_SLIDES = (
    "svs",
    "ndpi",
    "scn",
    "bif",
    "philips",
    "qpi",
    "avs",
)  # kinds of files whose missing tiles are background
Window = tuple[int, int, int, int]  # top, bottom, left, right


class TiffImage:
    """A TIFF file, see `LargeImage` and `open_image`."""

    def __init__(self, path: str | os.PathLike, channels: object = None, value_range: ValueRange | None = None):
        self._arguments = os.fspath(path), channels, value_range
        self.levels: Sequence[Size]
        self.name = printable(path)
        self._lock = threading.Lock()
        self._file = _open(path, self.name)
        try:
            self._levels = find_levels(self._file, self.name)
            page = self._levels[0].keyframe
            if reason := unsupported(page):
                raise InputError(
                    f"{self.name}: cannot be decoded ({reason}); convert it to a tiled TIFF with JPEG or Deflate"
                )
            layout = layout_of(self._levels[0], self.name, channels, value_range)
            self._samples, self._convert = layout.samples, layout.convert
            self.levels = [size_of(level) for level in self._levels]
            self.tile = tile_of(page)
            self.georeference = georeference_of(page)
            self._is_slide = any(getattr(self._file, f"is_{kind}") for kind in WHITE_SLIDES)
        except BaseException:
            self.close()
            raise

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        window = check_window(self, level, rows, columns)
        errors: list[TileError] = []
        series = self._levels[level]
        pages: dict[int, Samples] = {}
        for number in dict.fromkeys(sample.page for sample in self._samples):
            pages[number] = self._read_page(level, series[number], window, errors)
        numbers = {sample.page for sample in self._samples}
        indices = [sample.index for sample in self._samples]
        if len(numbers) == 1:
            samples = pages[numbers.pop()]
            samples = samples if indices == list(range(samples.shape[2])) else samples[..., indices]
        else:
            samples = np.stack([pages[sample.page][..., sample.index] for sample in self._samples], axis=2)
        pixels = self._convert(samples)
        if errors and damaged is None:
            raise errors[0]
        for error in errors:
            top, bottom, left, right = _overlap(window, error.rows, error.columns)
            pixels[:, top:bottom, left:right] = 255
        if damaged is not None:
            damaged += {(error.rows.start, error.columns.start): error for error in errors}.values()
        return torch.from_numpy(pixels)

    def _read_page(self, level: int, page: Page, window: Window, errors: list[TileError]) -> Samples:
        """Samples [h, w, n] of a page; those of tiles that cannot be read are undefined."""
        top, bottom, left, right = window
        key = page.keyframe
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        samples = np.full((bottom - top, right - left, key.samplesperpixel), self._missing(key), key.dtype)
        (height, width), (rows, columns) = tile_of(key), size_of(page)
        across, down = -(-columns // width), -(-rows // height)
        for plane in range(planes):
            part = samples[..., plane : plane + 1] if planes > 1 else samples
            for i in range(top // height, -(-bottom // height)):
                for j in range(left // width, -(-right // width)):
                    covers = (
                        slice(i * height, min((i + 1) * height, rows)),
                        slice(j * width, min((j + 1) * width, columns)),
                    )
                    try:
                        tile = self._decode(page, (plane * down + i) * across + j)
                    except MemoryError:
                        raise
                    except Exception as error:  # decoders raise many kinds
                        errors.append(TileError(self.name, level, *covers, error))
                        continue
                    if tile is not None:
                        _paste(part, tile, window, i * height, j * width)
        return samples

    def _decode(self, page: Page, index: int) -> Samples | None:
        """A tile [h, w, n]; None: the file has none there."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0 or offset == 0:
            return None
        file = page.parent.filehandle
        with self._lock:
            file.seek(offset)
            content = file.read(count)
        if len(content) < count:
            raise ValueError(f"the file ends {count - len(content):,} bytes before the tile does")
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
        tile, _, _ = page.keyframe.decode(content, index, **(tables if page.keyframe.compression in JPEG else {}))
        return tile[0]

    def _missing(self, page: Page) -> Any:
        """The value of tiles that the file does not have."""
        if page.nodata == 0 and self._is_slide and page.dtype.kind == "u":
            return np.iinfo(page.dtype).max
        return page.nodata

    def close(self) -> None:
        """See `LargeImage.close`."""
        self._file.close()

    def __reduce__(self) -> tuple:
        return type(self), self._arguments


def _open(path: str | os.PathLike, name: str) -> Any:
    tifffile = package("tifffile", "large TIFF files")
    package("imagecodecs", "large TIFF files")
    try:
        return tifffile.TiffFile(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as a TIFF ({reason}); copy the file again") from error


def tile_of(page: Page) -> tuple[int, int]:
    """(height, width) of a tile, or of a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _paste(samples: Samples, tile: Samples, window: Window, y: int, x: int) -> None:
    """Copy the part of a tile with this position that is in the window."""
    top, bottom, left, right = _overlap(window, slice(y, y + tile.shape[0]), slice(x, x + tile.shape[1]))
    if top < bottom and left < right:
        dy, dx = window[0] - y, window[2] - x
        samples[top:bottom, left:right] = tile[top + dy : bottom + dy, left + dx : right + dx]


def _overlap(window: Window, rows: slice, columns: slice) -> Window:
    """What a rectangle of the level covers of a window, in the window's coordinates."""
    top, bottom, left, right = window
    return (
        max(rows.start, top) - top, min(rows.stop, bottom) - top,
        max(columns.start, left) - left, min(columns.stop, right) - left,
    )  # fmt: skip
