"""What the pages of a TIFF are: levels of a pyramid, the samples of its pixels and their meaning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError
from overfeat.large.reader import Georeference
from overfeat.large.values import Alpha, Conversion, Kind, Samples, check_channels, conversion, default_channels
from overfeat.models.geometry import Size

Page = Any  # tifffile's TiffPage or TiffFrame
WHITE_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR = 0, 2, 3, 5, 6  # photometric interpretations
KINDS: dict[int, Kind] = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "CMYK", 6: "YCbCr"}
DECODED_AS_RGB = (6, 7, 33003, 33005, 34892, 50001, 33007)  # compressions whose decoders convert YCbCr
ALPHAS: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}  # by the tag ExtraSamples
PIXEL_SCALE, TIE_POINT, TRANSFORMATION = 33550, 33922, 34264  # GeoTIFF's tags
ASPECT = 0.02  # by which the sides of a level may differ from those of the finest, beyond rounding


@dataclass(frozen=True)
class Sample:
    """One number of every pixel: which page has it, and which of the page's samples it is."""

    page: int
    index: int


@dataclass(frozen=True)
class Layout:
    """How pixels are made: their samples, and what these mean."""

    samples: tuple[Sample, ...]
    convert: Conversion


def size_of(series: Any) -> Size:
    """(height, width) of a level."""
    return series.keyframe.imagelength, series.keyframe.imagewidth


def find_levels(file: Any, name: str) -> list[Any]:
    """The levels of the largest image of a file, the finest first, as series of pages. Raises InputError."""
    images = [series for series in file.series if series.keyframe is not None and min(size_of(series)) > 0]
    if not images:
        raise InputError(f"{name}: a TIFF without an image; copy or export it again")
    largest = max(images, key=lambda series: size_of(series)[0] * size_of(series)[1])
    levels = sorted(largest.levels, key=size_of, reverse=True)
    finest, kept = levels[0], levels[:1]
    for level in levels[1:]:
        factors = [full / size for full, size in zip(size_of(finest), size_of(level), strict=True)]
        slack = ASPECT + 1 / min(size_of(level))
        if (
            abs(factors[0] / factors[1] - 1) <= slack
            and level.keyframe.samplesperpixel == finest.keyframe.samplesperpixel
        ):
            kept.append(level)
    return kept


def layout_of(
    series: Any, name: str, channels: object, value_range: ValueRange | None, names: Sequence[str] = ()
) -> Layout:
    """The samples of a pixel and their conversion. Raises InputError for pixels that are no colours, ArgumentError."""
    page = series.keyframe
    kind = _kind(page, name)
    per_page = page.samplesperpixel
    pages = _channel_pages(series)
    alpha = ALPHAS.get((page.extrasamples or (0,))[-1]) if per_page > 1 else None
    colours = per_page - (alpha is not None)
    samples = [Sample(number, index) for number in pages for index in range(colours)]
    if channels is not None:
        samples, kind, alpha = _chosen(samples, kind, channels, name, names), "rgb", None
        kind = "grey" if len(samples) == 1 else "rgb"
    elif kind in ("rgb", "palette", "CMYK", "YCbCr") and len(pages) == 1:
        samples = samples[: {"rgb": 3, "palette": 1, "CMYK": 4, "YCbCr": 3}[kind]]
    else:
        numbers = default_channels(len(samples), name, names)
        samples, kind = [samples[number] for number in numbers], "grey" if len(numbers) == 1 else "rgb"
    if alpha is not None:
        samples.append(Sample(pages[0], per_page - 1))
    palette = _palette(page) if kind == "palette" else None
    bits = page.bitspersample if isinstance(page.bitspersample, int) else None
    made = conversion(
        page.dtype, kind, name, value_range if palette is None else (0, 255), bits=bits, alpha=alpha, palette=palette,
        white_is_zero=page.photometric == WHITE_IS_ZERO,
    )  # fmt: skip
    return Layout(tuple(samples), made)


def _kind(page: Page, name: str) -> Kind:
    photometric = int(page.photometric)
    if photometric not in KINDS:
        shown = getattr(page.photometric, "name", photometric)
        raise InputError(f"{name}: pixels of the kind {shown}, which are no colours; convert it to RGB")
    if photometric == YCBCR and page.compression in DECODED_AS_RGB and page.planarconfig == 1:
        return "rgb"
    return KINDS[photometric]


def _chosen(samples: list[Sample], kind: Kind, channels: object, name: str, names: Sequence[str]) -> list[Sample]:
    if kind not in ("grey", "rgb"):
        raise InputError(f"{name}: {kind} pixels have no channels to choose from; leave out channels")
    return [samples[number] for number in check_channels(channels, len(samples), name, names)]


def _channel_pages(series: Any) -> list[int]:
    """The numbers of the pages with the channels of the first time and depth, in the order of the channels."""
    shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
    page_shape = series.keyframe.shape
    count = len(shape) - len(page_shape)
    if count <= 0:
        return [0]
    leading = dict(zip(axes[:count], shape[:count], strict=True))
    step = int(np.prod([length for length in shape[axes.index("C") + 1 : count]])) if "C" in leading else 1
    return [number * step for number in range(leading.get("C", 1))]


def _palette(page: Page) -> Samples:
    """uint8 [n, 3]. Some writers store 8-bit values in the 16-bit numbers."""
    colours = np.asarray(page.colormap)
    return np.ascontiguousarray((colours if colours.max(initial=0) < 256 else colours >> 8).astype(np.uint8).T)


def unsupported(page: Page) -> str | None:
    """Why tifffile cannot decode the tiles of a page; None: it can."""
    try:
        page.decode(None, 0)
    except Exception as error:  # of many kinds
        return " ".join(str(error).split())
    return None


def georeference_of(page: Page) -> Georeference | None:
    """From GeoTIFF's tags, whose raster space may count from the centre of the first pixel."""
    tags = page.tags
    keys = page.geotiff_tags if page.is_geotiff else None
    matrix, scale, tie = (tags.valueof(number) for number in (TRANSFORMATION, PIXEL_SCALE, TIE_POINT))
    if matrix is not None and len(matrix) == 16:
        a, b, c, d, e, f = (float(matrix[number]) for number in (0, 1, 3, 4, 5, 7))
    elif scale is not None and tie is not None and len(tie) == 6 and len(scale) >= 2:
        a, b, d, e = float(scale[0]), 0.0, 0.0, -float(scale[1])
        c, f = tie[3] - a * tie[0], tie[4] - e * tie[1]
    else:
        return None
    if keys and int(keys.get("GTRasterTypeGeoKey", 1)) == 2:  # pixel is point
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return Georeference((a, b, c, d, e, f), *_reference_system(keys or {}))


def _reference_system(keys: dict[str, Any]) -> tuple[int | None, bool]:
    """The EPSG number of the coordinate reference system, and whether it is one of longitude and latitude."""
    for key in ("ProjectedCSTypeGeoKey", "ProjectedCRSGeoKey", "GeographicTypeGeoKey", "GeodeticCRSGeoKey"):
        number = keys.get(key)
        if number is not None and re.fullmatch(r"\d+", str(int(number))) and 1024 <= int(number) < 32767:
            return int(number), not key.startswith("Projected")
    return None, False
