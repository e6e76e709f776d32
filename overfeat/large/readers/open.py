"""Opening images of every kind to be read in windows."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from overfeat.data.arrays import ValueRange
from overfeat.data.images import open_header, read_image
from overfeat.data.limits import MAX_PIXELS
from overfeat.errors import ArgumentError, InputError, printable
from overfeat.large.readers.arrays import ArrayImage
from overfeat.large.readers.image import LargeImage, UndecodableError, opening
from overfeat.large.readers.openslide import SlideImage
from overfeat.large.readers.rasterio import RasterImage
from overfeat.large.readers.tiff import TiffImage
from overfeat.large.readers.turned import TurnedImage
from overfeat.large.readers.zarr import ZarrImage, is_zarr

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; + of BigTIFF
ARRAYS = (".npy",)
TIFF_SLIDES = (".svs", ".ndpi", ".scn", ".bif")
SLIDES = (".mrxs", ".vms", ".vmu", ".svslide", ".dcm")  # that openslide alone reads
RASTERS = (".vrt", ".img", ".ecw", ".sid")  # that GDAL alone reads
JPEG_2000 = (".jp2", ".j2k", ".jpx")
PAGES = 4  # of a TIFF, among which a level or a thumbnail, a mask and a level are
WIDTH, HEIGHT, COMPRESSION, SAMPLES, TILE_WIDTH, SUB_IFDS = 256, 257, 259, 277, 322, 330  # TIFF's tags

NO_EPSG = "its coordinate reference system has no EPSG number: GeoJSON is in pixels, and maps name no system"


def open_image(
    image: str | os.PathLike | np.ndarray | LargeImage, *, channels: object = None,
    value_range: ValueRange | None = None, max_pixels: int = MAX_PIXELS,
) -> LargeImage:  # fmt: skip
    """An image that is read in windows: RGB bytes of the levels of a pyramid, see `LargeImage`.

    Args:
        image: A TIFF (tiled, pyramidal, BigTIFF, OME-TIFF, SVS, GeoTIFF), a zarr or OME-Zarr folder, a .npy file, an
            array [H, W], [H, W, C] or [C, H, W], memory-mapped or not; any other image that `read_image` reads is held
            in memory. Other slides (MRXS, DICOM) need openslide, other rasters (VRT, large JPEG 2000) rasterio.
        channels: The numbers, from 0, of one channel, which is shown grey, or of three that are red, green and blue.
            None: all of an image that has one or three.
        value_range: The values of black and white. None: the range of the type of integers of up to 16 bits.
        max_pixels: Of a file that can be read as a whole only.

    Raises:
        InputError: For files that cannot be read in windows; the message has the remedy.
        TypeError: For what is neither a path nor an image.
    """
    if isinstance(image, LargeImage):
        if channels is not None or value_range is not None:
            argument = "channels" if channels is not None else "value_range"
            raise ArgumentError(argument, "is chosen when an image is opened; this one is open")
        return image
    if isinstance(image, np.ndarray):
        return ArrayImage(image, channels, value_range)
    if isinstance(image, str | os.PathLike):
        with opening(printable(image)):
            opened = _open_path(Path(image), channels, value_range, max_pixels)
        notes = getattr(opened, "notes", [])
        if opened.georeference and opened.georeference.epsg is None:
            notes = [*notes, NO_EPSG]
        if notes:
            warnings.warn(f"{opened.name}: {'; '.join(notes)}", stacklevel=2)
        return opened
    raise TypeError(f"a large image must be a path, a NumPy array or an open image, not {type(image).__name__}")


def _open_path(path: Path, channels: object, value_range: ValueRange | None, max_pixels: int) -> LargeImage:
    arguments = path, channels, value_range
    if is_zarr(path):
        return ZarrImage(*arguments)
    if _begins_as_tiff(path):
        return _open_tiff(*arguments, max_pixels)
    suffix = path.suffix.lower()
    if suffix in ARRAYS and path.is_file():
        return ArrayImage(*arguments)
    if suffix in SLIDES and path.is_file():
        return SlideImage(*arguments)
    if (suffix in RASTERS and path.is_file()) or _is_large_jpeg_2000(path, max_pixels):
        return RasterImage(*arguments)
    return _in_memory(*arguments, max_pixels)


def _open_tiff(path: Path, channels: object, value_range: ValueRange | None, max_pixels: int) -> LargeImage:
    """By tifffile, else by Pillow where that is the whole image, else by what is installed of openslide and GDAL."""
    try:
        image = TiffImage(path, channels, value_range, max_pixels)
        return TurnedImage(image, image.orientation) if image.orientation != 1 else image
    except InputError as error:
        others: list[Callable[..., LargeImage]] = []
        if channels is value_range is None and not isinstance(error, ArgumentError):
            others = [partial(_in_memory, max_pixels=max_pixels)]
        if isinstance(error, UndecodableError):
            others += [SlideImage, RasterImage]
        for other in others:
            with suppress(InputError):
                opened = other(path, channels, value_range)
                opened.read(0, slice(0, 1), slice(0, 1))
                return opened
        raise


def _in_memory(path: Path, channels: object, value_range: ValueRange | None, max_pixels: int) -> ArrayImage:
    image = ArrayImage(read_image(path, max_pixels).permute(1, 2, 0).numpy(), channels, value_range)
    image.name = printable(path)
    return image


def is_large(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a file is to be read in windows, by its header.

    Such are zarr folders, slides, arrays in .npy files, rasters of GDAL's own formats, TIFFs with a pyramid, or with
    channels that `read_image` does not know, and TIFFs and JPEG 2000 of more than max_pixels pixels; not TIFFs in
    compressed strips, which have no windows.
    """
    path = Path(path)
    if is_zarr(path) or _is_large_jpeg_2000(path, max_pixels):
        return True
    if path.suffix.lower() in (*ARRAYS, *SLIDES, *TIFF_SLIDES, *RASTERS):
        return path.is_file()
    if not _begins_as_tiff(path):
        return False
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged tags
            pages = _directories(file)
            return _is_large_tiff(pages, max_pixels) or (pages[0].get(SAMPLES, 1) > 1 and _is_unknown(file, path))
    except Exception:  # Pillow's reader raises many kinds for what is damaged; whoever reads the file reports it
        return False


def _is_large_tiff(pages: list[Any], max_pixels: int) -> bool:
    first, *others = pages
    width, is_tiled = first[WIDTH], TILE_WIDTH in first
    if is_tiled and (SUB_IFDS in first or any(TILE_WIDTH in page and page[WIDTH] < width for page in others)):
        return True
    return width * first[HEIGHT] > max_pixels and (is_tiled or first.get(COMPRESSION, 1) == 1)


def _is_unknown(file: BinaryIO, path: Path) -> bool:
    """Whether Pillow does not know the channels of a TIFF."""
    file.seek(0)
    try:
        open_header(file, path, sys.maxsize)
    except InputError:
        return True
    return False


def _is_large_jpeg_2000(path: Path, max_pixels: int) -> bool:
    if path.suffix.lower() not in JPEG_2000 or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            open_header(file, path, max_pixels)
    except ArgumentError:
        return True
    except Exception:  # whoever reads the file reports what is damaged
        return False
    return False


def _begins_as_tiff(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) in TIFF
    except OSError:
        return False


def _directories(file: BinaryIO) -> list[Any]:
    """The tags of the first pages of a TIFF."""
    header = file.read(8)
    header += file.read(8) if b"+" in header[2:4] else b""
    directory = ImageFileDirectory_v2(header)
    directories: list[Any] = []
    while directory.next and len(directories) < PAGES:
        offset, directory = directory.next, ImageFileDirectory_v2(header)
        file.seek(offset)
        directory.load(file)
        directories.append(directory)
    return directories
