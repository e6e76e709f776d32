"""TIFF files in windows, through tifffile: tiled and pyramidal, BigTIFF, OME-TIFF, SVS, GeoTIFF."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.data.limits import MAX_PIXELS
from overfeat.errors import InputError, printable, reason_of
from overfeat.large.readers.arrays import TILE, window_of
from overfeat.large.readers.georeference import georeference_of
from overfeat.large.readers.image import TileError, UndecodableError, check_window, opening
from overfeat.large.readers.tiff_pages import (
    Page,
    check_layout,
    find_levels,
    is_fourth_band,
    layout_of,
    orientation_of,
    size_of,
    tile_of,
)
from overfeat.large.readers.values import Samples, range_note
from overfeat.large.readers.windows import Area, Window, finish_window, middle, overlap, tiles_in
from overfeat.models.geometry import Size
from overfeat.packages import package

JPEG = (6, 7, 34892, 33007)  # compressions whose decoders take tables
WHITE_SLIDES = ("svs", "ndpi", "scn", "bif", "philips", "qpi", "avs")  # whose missing tiles are background
ZEROS = bytes(64)  # no compressed tile ends in them: what follows was not written
FOURTH_BAND = (
    "a fourth band is tagged as transparency and is none, as near infrared is: the first three are read as RGB"
)
END_OF_IMAGE = b"\xff\xd9"  # which a JPEG ends in


class TiffImage:
    """A TIFF file, see `LargeImage` and `open_image`; pixels are read as they are stored, whatever the orientation."""

    def __init__(
        self, path: str | os.PathLike, channels: object = None, value_range: ValueRange | None = None,
        max_pixels: int = MAX_PIXELS,
    ):  # fmt: skip
        self._arguments = os.fspath(path), channels, value_range, max_pixels
        self.name = printable(path)
        self._lock = threading.Lock()
        self._maps: dict[tuple[int, int], Samples | None] = {}
        self._file = _open(path, self.name)
        try:
            with opening(self.name):
                self._describe(path, channels, value_range)
        except BaseException:
            self.close()
            raise

    def _describe(self, path: str | os.PathLike, channels: object, value_range: ValueRange | None) -> None:
        """Set the attributes from the file's headers. Raises InputError."""
        self._levels, self.notes = find_levels(self._file, self.name)
        finest = self._levels[0]
        check_layout(finest, self.name, path, self._arguments[3])
        self.levels: Sequence[Size] = [size_of(level) for level in self._levels]
        self.tile: Size = tile_of(finest.keyframe) if finest.keyframe.is_tiled else TILE
        self.georeference = georeference_of(finest.keyframe)
        self.orientation = 1 if self.georeference else orientation_of(finest.keyframe)
        self._is_slide = any(getattr(self._file, f"is_{kind}") for kind in WHITE_SLIDES)
        if self._mapped(0, 0) is None:
            self._check_decoder(finest.keyframe)
        self._layout = layout_of(self._file, finest, self.name, channels, value_range)
        self.notes += [*self._layout.notes, *self._inspect_values(value_range)]

    def _check_decoder(self, page: Page) -> None:
        """Raises UndecodableError if none of three tiles can be decoded: then it is not they that are damaged."""
        count, reasons = len(page.dataoffsets), []
        for index in {0, count // 2, count - 1}:
            try:
                self._decode(page, index)
                return
            except MemoryError:
                raise
            except Exception as error:  # decoders raise many kinds
                reasons.append(reason_of(error))
        problem = f"its tiles cannot be decoded ({reasons[0]})"
        raise UndecodableError(f"{self.name}: {problem}; copy or export the file again")

    def _inspect_values(self, value_range: ValueRange | None) -> list[str]:
        """Notes on the values in the middle of the coarsest level: their range, and a band that is no transparency."""
        convert, key = self._layout.convert, self._levels[0].keyframe
        wide = value_range is None and key.dtype.itemsize > 1 and convert.palette is None
        if not wide and convert.alpha is None:
            return []
        level = len(self.levels) - 1
        samples, _ = self._read_samples(level, middle(self.levels[level]))
        notes = range_note(key.dtype, convert, samples) if wide else []
        if convert.alpha is not None and convert.kind == "rgb" and is_fourth_band(samples[..., -1]):
            self._layout = replace(
                self._layout, samples=self._layout.samples[:-1], convert=replace(convert, alpha=None)
            )
            notes.append(FOURTH_BAND)
        return notes

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        window = check_window(self, level, rows, columns)
        samples, errors = self._read_samples(level, window)
        return finish_window(self._layout.convert(samples), window, errors, damaged)

    def _read_samples(self, level: int, window: Window) -> tuple[Samples, list[TileError]]:
        """The samples [h, w, n] of the layout, and the errors of the tiles that cannot be read."""
        requested = self._layout.samples
        errors: list[TileError] = []
        pages = {
            number: self._read_page(level, number, window, errors)
            for number in dict.fromkeys(sample.page for sample in requested)
        }
        if len(pages) > 1:
            return np.stack([pages[sample.page][..., sample.index] for sample in requested], axis=2), errors
        samples, indices = next(iter(pages.values())), [sample.index for sample in requested]
        return (samples if indices == list(range(samples.shape[2])) else samples[..., indices]), errors

    def _read_page(self, level: int, number: int, window: Window, errors: list[TileError]) -> Samples:
        """All samples [h, w, n] of a page."""
        mapped = self._mapped(level, number)
        if mapped is not None:
            return window_of(mapped, slice(*window[:2]), slice(*window[2:]))
        page = self._levels[level][number]
        key = self._levels[level].keyframe
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        shape = window[1] - window[0], window[3] - window[2], key.samplesperpixel
        samples = np.full(shape, self._missing(key), key.dtype)
        if page is None:
            return samples
        size, tile = size_of(self._levels[level]), tile_of(key)
        across, down = -(-size[1] // tile[1]), -(-size[0] // tile[0])
        for plane in range(planes):
            part = samples[..., plane : plane + 1] if planes > 1 else samples
            for i, j, covers in tiles_in(window, tile, size):
                try:
                    self._paste(part, page, (plane * down + i) * across + j, window, covers)
                except MemoryError:
                    raise
                except Exception as error:  # decoders raise many kinds
                    errors.append(TileError(self.name, level, *covers, error))
        return samples

    def _paste(self, samples: Samples, page: Page, index: int, window: Window, covers: Area) -> None:
        """Copy what a window has of a tile, unless the file has no such tile."""
        tile = self._decode(page, index)
        if tile is not None:
            needed = covers[0].stop - covers[0].start, covers[1].stop - covers[1].start
            if tile.shape[0] < needed[0] or tile.shape[1] < needed[1]:
                raise ValueError(f"it has {tile.shape[0]}x{tile.shape[1]} of {needed[0]}x{needed[1]} pixels")
            in_window, in_tile = overlap(window, covers)
            samples[in_window] = tile[in_tile]

    def _decode(self, page: Page, index: int) -> Samples | None:
        """A tile [h, w, n]; None: the file has none there."""
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise ValueError(f"the file lists {len(page.dataoffsets):,} tiles only")
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0 or offset == 0:
            return None
        file = page.parent.filehandle
        if offset + count > file.size:
            raise ValueError(f"it ends {offset + count - file.size:,} bytes after the file")
        with self._lock:
            file.seek(offset)
            content = file.read(count)
        key = page.keyframe
        if content.endswith(ZEROS) and key.compression != 1 and not content.rstrip(b"\0").endswith(END_OF_IMAGE):
            raise ValueError("its end is missing")
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in JPEG else {}
        return key.decode(content, index, **tables)[0][0]

    def _mapped(self, level: int, number: int) -> Samples | None:
        """A page that is stored as one array, as a map [H, W, n] of the file; None: it is not."""
        if (level, number) not in self._maps:
            self._maps[level, number] = _map_page(self._levels[level], number, self.name)
        return self._maps[level, number]

    def _missing(self, page: Page) -> Any:
        """The value of tiles that the file does not have."""
        if page.nodata == 0 and self._is_slide and page.dtype.kind == "u":
            return np.iinfo(page.dtype).max
        return page.nodata

    def close(self) -> None:
        """See `LargeImage.close`."""
        self._maps.clear()
        self._file.close()

    def __reduce__(self) -> tuple:
        return type(self), self._arguments


def _open(path: str | os.PathLike, name: str) -> Any:
    tifffile = package("tifffile", "large TIFF files need", "large")
    package("imagecodecs", "large TIFF files need", "large")
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds is reported where it matters
    try:
        return tifffile.TiffFile(path)
    except Exception as error:  # of many kinds for damaged files
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UndecodableError(f"{name}: cannot be read as a TIFF ({reason}); copy the file again") from error


def _map_page(series: Any, number: int, name: str) -> Samples | None:
    key = series.keyframe
    if key.is_tiled or key.compression != 1 or key.imagedepth != 1:
        return None
    page = None if series.dataoffset is not None else series[number]
    if series.dataoffset is not None:
        offset = series.dataoffset + number * key.nbytes
    elif page is not None and key.is_final and page.is_contiguous:
        offset = page.dataoffsets[0]
    else:
        return None
    file = key.parent.filehandle if page is None else page.parent.filehandle
    planes, _, height, width, count = key.shaped
    dtype = np.dtype(key.parent.byteorder + key._dtype.char)
    try:
        array = np.memmap(os.path.join(file.dirname, file.name), dtype, "r", offset, (planes, height, width, count))
    except ValueError as error:
        raise InputError(f"{name}: cut short, the file ends before its pixels do; copy the file again") from error
    return np.moveaxis(array[..., 0], 0, 2) if planes > 1 else array[0]
