"""Detections of large images as GeoJSON and tables, in pixels or in the coordinates of a map."""

import colorsys
import csv
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from overfeat.files import atomic_write
from overfeat.large.readers.georeference import Georeference

COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2", "confidence_sum", "count")
MAP_COLUMNS = ("map_x", "map_y")


def write_geojson(
    path: str | Path, entries: Iterable[dict[str, Any]], georeference: Georeference | None = None
) -> None:
    """Write detections as GeoJSON: a polygon with class and score for each. Raises WriteError.

    Coordinates are pixels of the image, x to the right and y down, as QuPath and napari read them; with a georeference
    that has an EPSG number those of the image's coordinate reference system, which the member "crs" names as GDAL and
    QGIS read it, and "pixel_box" has the pixels. Without a name they would be read as degrees.

    Args:
        path: The file, which is replaced as a whole.
        entries: See `dense.results.object_entries`.
        georeference: Of the image.
    """
    named = georeference if georeference and georeference.epsg is not None else None
    with atomic_write(path) as part, open(part, "w", encoding="ascii") as file:
        file.write('{"type": "FeatureCollection",')
        if named:
            file.write(f' "crs": {json.dumps({"type": "name", "properties": {"name": _crs_name(named)}})},')
        file.write(' "features": [')
        for number, entry in enumerate(entries):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(_feature(entry, named)))
        file.write("\n]}\n")


def _feature(entry: dict[str, Any], georeference: Georeference | None) -> dict[str, Any]:
    """A detection as QuPath writes its own."""
    measurements = {"score": entry["score"], "confidence_sum": entry["confidence_sum"], "count": entry["count"]}
    properties: dict[str, Any] = {
        "objectType": "detection",
        "classification": {"name": entry["class"], "color": class_color(entry["class"])},
        "measurements": measurements,
    }
    if georeference:  # flat, as tables of attributes need them
        properties |= {"class": entry["class"], **measurements, "pixel_box": entry["box"]}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [_ring(entry["box"], georeference)]},
        "properties": properties,
    }


def _ring(box: Sequence[float], georeference: Georeference | None) -> list[list[float]]:
    """The corners of a box counterclockwise, as RFC 7946 asks, the first one again at the end."""
    x1, y1, x2, y2 = box
    corners = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    if georeference:
        corners = [map_coordinates(georeference, x, y) for x, y in corners]
        a, b, _, d, e, _ = georeference.transform
        if a * e - b * d < 0:
            corners.reverse()
    return [*corners, corners[0]]


def map_coordinates(georeference: Georeference, x: float, y: float) -> list[float]:
    """The coordinates in its reference system of a point in pixels, rounded to a thousandth of a pixel or finer."""
    a, b, c, d, e, f = georeference.transform
    decimals = 3 - math.floor(math.log10(min(math.hypot(a, d), math.hypot(b, e))))
    return [round(a * x + b * y + c, decimals), round(d * x + e * y + f, decimals)]


def _crs_name(georeference: Georeference) -> str:
    """The name of a coordinate reference system; longitude comes first in all these files, as in CRS84."""
    if georeference.epsg == 4326:
        return "urn:ogc:def:crs:OGC:1.3:CRS84"
    return f"urn:ogc:def:crs:EPSG::{georeference.epsg}"


def class_color(name: str) -> list[int]:
    """A colour (red, green, blue) in 0..255 that a class has in every file."""
    hue = zlib.crc32(name.encode("utf-8", "surrogatepass")) / 2**32
    return [round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.8, 0.9)]


def write_csv(
    path: str | Path, image: str, entries: Iterable[dict[str, Any]], georeference: Georeference | None = None
) -> None:
    """Write detections as a table with a line for each, which `data.readers.csv` reads too. Raises WriteError.

    Boxes are in pixels; with a georeference `map_x` and `map_y` are their centres in the image's coordinate reference
    system.

    Args:
        path: The file, which is replaced as a whole.
        image: Its name, for the first column.
        entries: See `dense.results.object_entries`.
        georeference: Of the image.
    """
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *(MAP_COLUMNS if georeference else ())])
        for entry in entries:
            x1, y1, x2, y2 = entry["box"]
            row = [image, entry["class"], entry["score"], x1, y1, x2, y2, entry["confidence_sum"], entry["count"]]
            centre = map_coordinates(georeference, (x1 + x2) / 2, (y1 + y2) / 2) if georeference else ()
            table.writerow([*row, *centre])
