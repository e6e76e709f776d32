"""Where an image lies on the Earth, from the tags of a GeoTIFF."""

from dataclasses import dataclass
from typing import Any

PIXEL_SCALE, TIE_POINT, TRANSFORMATION = 33550, 33922, 34264  # tags
PROJECTED = ("ProjectedCSTypeGeoKey", "ProjectedCRSGeoKey")
GEOGRAPHIC = ("GeographicTypeGeoKey", "GeodeticCRSGeoKey")
MIN_EPSG, USER_DEFINED = 1024, 32767
PIXEL_IS_POINT = 2  # the raster type of coordinates that are those of the centres of pixels
GEOGRAPHIC_MODEL = 2


@dataclass(frozen=True)
class Georeference:
    """Where the finest level of an image lies on the Earth.

    Attributes:
        transform: (a, b, c, d, e, f): the point (column, row) of the image, with (0, 0) its upper left corner, is at
            x = a * column + b * row + c, y = d * column + e * row + f in the coordinate reference system.
        epsg: The number of that system; None: the file names none.
        geographic: Whether its coordinates are longitude and latitude.
    """

    transform: tuple[float, float, float, float, float, float]
    epsg: int | None = None
    geographic: bool = False


def georeference_of(page: Any) -> Georeference | None:
    """Of a page of a TIFF, as tifffile reads it."""
    matrix, scale, tie = (page.tags.valueof(number) for number in (TRANSFORMATION, PIXEL_SCALE, TIE_POINT))
    if matrix is not None and len(matrix) == 16:
        a, b, c, d, e, f = (float(matrix[number]) for number in (0, 1, 3, 4, 5, 7))
    elif scale is not None and tie is not None and len(tie) >= 6 and len(scale) >= 2:
        a, b, d, e = float(scale[0]), 0.0, 0.0, -float(scale[1])
        c, f = tie[3] - a * tie[0], tie[4] - e * tie[1]
    else:
        return None
    keys = (page.geotiff_tags if page.is_geotiff else None) or {}
    if int(keys.get("GTRasterTypeGeoKey", 1)) == PIXEL_IS_POINT:
        c, f = c - (a + b) / 2, f - (d + e) / 2
    epsg, geographic = _system(keys)
    return Georeference((a, b, c, d, e, f), epsg, geographic)


def _system(keys: dict[str, Any]) -> tuple[int | None, bool]:
    """The EPSG number of the coordinate reference system, and whether it is a geographic one."""
    for geographic, names in ((False, PROJECTED), (True, GEOGRAPHIC)):
        for name in names:
            number = int(keys.get(name, 0))
            if MIN_EPSG <= number < USER_DEFINED:
                return number, geographic
            if number == USER_DEFINED and not geographic:  # a projection that has no number
                return None, False
    return None, int(keys.get("GTModelTypeGeoKey", 0)) == GEOGRAPHIC_MODEL
