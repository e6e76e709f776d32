"""What the pages of a TIFF are: levels of a pyramid, the samples of its pixels and their meaning."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from overfeat.data.arrays import ValueRange
from overfeat.data.images import tiling
from overfeat.data.pixels import MIN_MASKED, ORIENTATION, STORED
from overfeat.errors import ArgumentError, InputError, reason_of
from overfeat.large.readers.channels import channel_note, check_channels, default_channels, first_note
from overfeat.large.readers.image import UndecodableError
from overfeat.large.readers.values import COUNTS, Alpha, Conversion, Kind, Samples, conversion
from overfeat.models.geometry import Size

Page = Any  # tifffile's TiffPage or TiffFrame
WHITE_IS_ZERO, YCBCR = 0, 6  # photometric interpretations
KINDS: dict[int, Kind] = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "CMYK", 6: "YCbCr"}
DECODED_AS_RGB = (6, 7, 33005, 34892, 50001, 33007)  # compressions whose decoders convert YCbCr
APERIO_YCBCR = 33003  # JPEG 2000, YCbCr whatever the photometric interpretation
ALPHAS: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}  # by the tag ExtraSamples
MAX_TILE = 1 << 30  # bytes
ASPECT = 0.02  # by which the ratio of a level's sides may differ from that of the finest, beyond rounding


@dataclass(frozen=True)
class Sample:
    """One number of every pixel: which page has it, and which of the page's samples it is."""

    page: int
    index: int


@dataclass(frozen=True)
class Layout:
    """How pixels are made: their samples, what these mean, and what is to be reported of it."""

    samples: tuple[Sample, ...]
    convert: Conversion
    notes: tuple[str, ...] = ()


def size_of(series: Any) -> Size:
    """(height, width) of a level."""
    return series.keyframe.imagelength, series.keyframe.imagewidth


def tile_of(page: Page) -> Size:
    """(height, width) of a tile, or of a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def orientation_of(page: Page) -> int:
    """The EXIF orientation; 1, upright, without a valid one."""
    value = page.tags.valueof(ORIENTATION, 1)
    return value if isinstance(value, int) and value in STORED else 1


def find_levels(file: Any, name: str) -> tuple[list[Any], list[str]]:
    """The levels of the largest image of a file, the finest first, as series of pages, and notes.

    Raises InputError for a file without an image.
    """
    images = [series for series in file.series if series.keyframe is not None and min(size_of(series)) > 0]
    if not images:
        raise InputError(f"{name}: a TIFF without an image; copy or export it again")
    largest = max(images, key=lambda series: size_of(series)[0] * size_of(series)[1])
    finest, *coarser = sorted(largest.levels, key=size_of, reverse=True)
    kept, notes = [finest], []
    for level in coarser:
        if problem := _unlike(finest, level):
            notes.append(f"the level of {'x'.join(map(str, size_of(level)))} px is not used, {problem}")
        else:
            kept.append(level)
    return kept, notes


def _unlike(finest: Any, level: Any) -> str | None:
    """Why a page is no level of the pyramid of another; None: it is."""
    (height, width), (full_height, full_width) = size_of(level), size_of(finest)
    ratio = full_height * width / (full_width * height)
    if abs(ratio - 1) > ASPECT + 1 / min(height, width):
        return "its sides are in another ratio"
    page, key = level.keyframe, finest.keyframe
    if (page.samplesperpixel, page.dtype, len(level)) != (key.samplesperpixel, key.dtype, len(finest)):
        return "its channels are not those of the finest"
    return None if unsupported(page) is None else "it cannot be decoded"


def check_layout(series: Any, name: str, path: str | os.PathLike, max_pixels: int) -> None:
    """Raises InputError for pages that cannot be read in windows; the message has the remedy."""
    page = series.keyframe
    if reason := unsupported(page):
        raise UndecodableError(f"{name}: cannot be decoded ({reason}); {tiling(path)} converts it")
    height, width = tile_of(page)
    if height * width * page.samplesperpixel * page.dtype.itemsize > MAX_TILE and not page.is_contiguous:
        kind = "tiles" if page.is_tiled else "strips"
        raise InputError(
            f"{name}: {kind} of {height}x{width} pixels, too large to be read; {tiling(path)} writes others"
        )
    height, width = size_of(series)
    if not page.is_tiled and page.compression != 1 and height * width > max_pixels:
        problem = f"{name}: {height}x{width} pixels in compressed strips, of which no windows can be read; "
        raise ArgumentError("max_pixels", f"allows to read all of them, or {tiling(path)} writes tiles", problem)


def unsupported(page: Page) -> str | None:
    """Why tifffile cannot decode the tiles of a page; None: it can."""
    try:
        page.decode(None, 0)
    except Exception as error:  # of many kinds
        return reason_of(error)
    return None


def layout_of(file: Any, series: Any, name: str, channels: object, value_range: ValueRange | None) -> Layout:
    """The samples of a pixel and their conversion. Raises InputError for pixels that are no colours, ArgumentError."""
    page, kind, alpha = series.keyframe, _kind(series.keyframe, name), None
    pages, notes = _channel_pages(series)
    if page.samplesperpixel > 1:
        alpha = ALPHAS.get((page.extrasamples or (0,))[-1])
    count = page.samplesperpixel - (alpha is not None)
    samples = [Sample(number, index) for number in pages for index in range(count)]
    names = _channel_names(file, series, len(samples))
    if channels is not None:
        if kind not in ("grey", "rgb"):
            raise InputError(f"{name}: {kind} pixels have no channels to choose from; leave out `channels`")
        numbers, alpha = check_channels(channels, len(samples), name, names), None
    elif kind != "grey" and len(pages) == 1:
        numbers = tuple(range(COUNTS[kind]))
    else:
        numbers = default_channels(len(samples), name, names)
        notes += channel_note(numbers, names or [str(number) for number in numbers])
    kind = kind if kind in ("palette", "CMYK", "YCbCr") else "grey" if len(numbers) == 1 else "rgb"
    chosen = [samples[number] for number in numbers]
    if alpha is not None:
        chosen.append(Sample(pages[0], page.samplesperpixel - 1))
    return Layout(tuple(chosen), _conversion(page, kind, name, value_range, alpha), tuple(notes))


def _conversion(page: Page, kind: Kind, name: str, value_range: ValueRange | None, alpha: Alpha | None) -> Conversion:
    if kind == "palette":
        colours = np.asarray(page.colormap)
        # Some writers store 8-bit values in the 16-bit numbers.
        colours = (colours if colours.max(initial=0) < 256 else colours >> 8).astype(np.uint8)
        return Conversion("palette", palette=np.ascontiguousarray(colours.T))
    bits = page.bitspersample if isinstance(page.bitspersample, int) else None
    white_is_zero = page.photometric == WHITE_IS_ZERO
    return conversion(page.dtype, kind, name, value_range, bits=bits, alpha=alpha, white_is_zero=white_is_zero)


def _kind(page: Page, name: str) -> Kind:
    photometric = int(page.photometric)
    if photometric not in KINDS or page.samplesperpixel < COUNTS[KINDS[photometric]]:
        shown = getattr(page.photometric, "name", photometric)
        raise InputError(f"{name}: pixels of {page.samplesperpixel} samples as {shown}, no colours; convert it to RGB")
    if page.compression == APERIO_YCBCR:
        return "YCbCr"
    if photometric == YCBCR and page.compression in DECODED_AS_RGB and page.planarconfig == 1:
        return "rgb"
    return KINDS[photometric]


def _channel_pages(series: Any) -> tuple[list[int], list[str]]:
    """The numbers of the pages with the channels of the first time and depth, in their order, and notes."""
    shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
    leading = [(axis, length) for axis, length in zip(axes, shape, strict=True) if axis not in "YXS"]
    steps = [int(np.prod([length for _, length in leading[number + 1 :]])) for number in range(len(leading))]
    channels = [(length, step) for (axis, length), step in zip(leading, steps, strict=True) if axis == "C"]
    others = [(axis, length) for axis, length in leading if axis != "C" and length > 1]
    length, step = channels[0] if channels else (1, 1)
    return [number * step for number in range(length)], first_note(others)


def _channel_names(file: Any, series: Any, count: int) -> Sequence[str]:
    """The names of the channels in the metadata of an OME-TIFF; none if there are not `count`."""
    images = re.split(r"<(?:\w+:)?Image\b", file.ome_metadata or "" if file.is_ome else "")[1:]
    number = next(number for number, other in enumerate(file.series) if other is series)
    names = re.findall(r'<(?:\w+:)?Channel\b[^>]*?\sName="([^"]*)"', images[number]) if number < len(images) else []
    return names if len(names) == count else ()


def is_fourth_band(alpha: Samples) -> bool:
    """Whether values that are tagged as transparency are none: a mask is mostly opaque or transparent."""
    white = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    return bool(((alpha == 0) | (alpha == white)).mean() < MIN_MASKED)
