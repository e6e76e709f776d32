"""Maps of large images as tiled TIFFs with levels, GeoTIFFs where the image is georeferenced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from overfeat.files import atomic_write
from overfeat.large.map_file import MapFile, MapPositions
from overfeat.large.readers.georeference import PIXEL_SCALE, TIE_POINT, TRANSFORMATION, Georeference
from overfeat.packages import package

TILE = 256
CLASSIC_BYTES = 4 * 10**9  # larger files need BigTIFF
GEO_KEYS, GDAL_METADATA, GDAL_NODATA = 34735, 42112, 42113  # tags
MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1024, 1025, 2048, 3072  # keys of GeoTIFF
AREA = 1  # of RASTER_TYPE: coordinates are those of pixel corners
DOUBLE, SHORT = 12, 3  # types of TIFF


def write_map_tiff(path: str | Path, maps: MapFile, georeference: Georeference | None = None) -> None:
    """Write the maps of a file as a tiled TIFF, tile by tile: a float32 band for each class, with its levels.

    With a georeference it is a GeoTIFF in the image's coordinate reference system, in which a pixel is the surroundings
    of a position's centre. GDAL's tags name the bands, and NaN as missing. Raises WriteError.

    Args:
        path: The file, which is replaced as a whole.
        maps: Complete, with its levels.
        georeference: Of the image.
    """
    tifffile = package("tifffile", "TIFFs of maps need", "large")
    channels, height, width = maps.levels[0].shape
    big = 4 * channels * height * width * 4 / 3 > CLASSIC_BYTES
    with atomic_write(path) as part, tifffile.TiffWriter(part, bigtiff=big) as file:
        for number, array in enumerate(maps.levels):
            file.write(
                _tiles(array), shape=array.shape, dtype=np.float32, tile=(TILE, TILE), photometric="minisblack",
                planarconfig="separate" if channels > 1 else None, compression="zlib", metadata=None,
                extratags=_tags(maps, georeference if number == 0 else None), subfiletype=int(number > 0),
                software="overfeat",
            )  # fmt: skip


def _tiles(array: Any) -> Iterator[np.ndarray]:
    """The tiles of each channel in rows; those of a row are read from the maps together."""
    channels, height, width = array.shape
    for channel in range(channels):
        for row in range(0, height, TILE):
            values = array[channel, row : row + TILE]
            for column in range(0, width, TILE):
                tile = np.full((TILE, TILE), np.nan, np.float32)
                part = values[:, column : column + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _tags(maps: MapFile, georeference: Georeference | None) -> list[tuple[int, int, int, Any, bool]]:
    """GDAL's tags, and GeoTIFF's."""
    described = "".join(
        f'<Item name="DESCRIPTION" sample="{number}" role="description">{escape(name)}</Item>'
        for number, name in enumerate(maps.names)
    )
    metadata = f"<GDALMetadata>{described}</GDALMetadata>".encode("ascii", "xmlcharrefreplace").decode()
    tags: list[tuple[int, int, int, Any, bool]] = [
        (GDAL_METADATA, 2, 0, metadata, True),
        (GDAL_NODATA, 2, 0, "nan", True),
    ]
    if georeference is None:
        return tags
    a, b, c, d, e, f = map_transform(maps.positions, georeference)
    if b == d == 0 and a > 0 > e:  # the form that all programs read
        tags += [
            (PIXEL_SCALE, DOUBLE, 3, (a, -e, 0.0), True),
            (TIE_POINT, DOUBLE, 6, (0.0, 0.0, 0.0, c, f, 0.0), True),
        ]
    else:
        matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        tags.append((TRANSFORMATION, DOUBLE, 16, matrix, True))
    keys = [(RASTER_TYPE, AREA)]
    if georeference.epsg is not None:
        kind = GEOGRAPHIC if georeference.geographic else PROJECTED
        keys = [(MODEL_TYPE, 2 if kind == GEOGRAPHIC else 1), *keys, (kind, georeference.epsg)]
    directory = [1, 1, 0, len(keys)]
    for key, value in keys:
        directory += [key, 0, 1, value]
    return [*tags, (GEO_KEYS, SHORT, len(directory), tuple(directory), True)]


def map_transform(positions: MapPositions, georeference: Georeference) -> tuple[float, ...]:
    """The transform of a map's pixel corners (column, row) to the image's coordinate reference system."""
    a, b, c, d, e, f = georeference.transform
    down, across = positions.step
    y, x = (first - step / 2 for first, step in zip(positions.origin, positions.step, strict=True))
    return a * across, b * down, a * x + b * y + c, d * across, e * down, d * x + e * y + f
