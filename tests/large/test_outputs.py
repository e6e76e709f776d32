"""Detections as GeoJSON and tables, read by geojson, rasterio's transforms and the table reader."""

import csv

import geojson
import numpy as np
import pytest
from affine import Affine
from PIL import Image

from overfeat.data.readers.csv import read_csv
from overfeat.errors import WriteError
from overfeat.large.outputs import class_color, write_csv, write_geojson
from overfeat.large.readers.georeference import Georeference

ENTRIES = [
    {"class": "cell, \"big\"", "score": 0.9, "box": [10.0, 20.5, 30.0, 60.0], "confidence_sum": 3.5, "count": 4},
    {"class": "Zelle é", "score": 0.4, "box": [0.0, 0.0, 5.0, 6.0], "confidence_sum": 0.4, "count": 1},
]  # fmt: skip
UTM = Georeference((0.5, 0.0, 400000.0, 0.0, -0.5, 5000000.0), 32633)
DEGREES = Georeference((1e-5, 0.0, 13.0, 0.0, -1e-5, 52.0), 4326)
TURNED = Georeference((0.4, 0.3, 400000.0, 0.3, -0.4, 5000000.0), 32633)


def area(ring):
    """The signed area of a ring: positive counterclockwise."""
    x, y = (np.array(ring) - ring[0]).T
    return 0.5 * np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])


def test_geojson_in_pixels_as_qupath_has_it(tmp_path):
    write_geojson(tmp_path / "a.geojson", ENTRIES)
    data = geojson.loads((tmp_path / "a.geojson").read_text())
    assert data.is_valid and "crs" not in data and len(data["features"]) == 2
    first, second = data["features"]
    assert first["geometry"]["type"] == "Polygon"
    assert first["geometry"]["coordinates"] == [[[10, 20.5], [30, 20.5], [30, 60], [10, 60], [10, 20.5]]]
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": 'cell, "big"', "color": class_color('cell, "big"')},
        "measurements": {"score": 0.9, "confidence_sum": 3.5, "count": 4},
    }
    assert second["properties"]["classification"]["name"] == "Zelle é"


def test_geojson_without_detections_is_an_empty_collection(tmp_path):
    write_geojson(tmp_path / "a.geojson", [])
    data = geojson.loads((tmp_path / "a.geojson").read_text())
    assert data.is_valid and data["type"] == "FeatureCollection" and data["features"] == []


@pytest.mark.parametrize("georeference", [UTM, DEGREES, TURNED], ids=["UTM", "degrees", "turned"])
def test_geojson_in_the_reference_system_of_the_file(georeference, tmp_path):
    write_geojson(tmp_path / "a.geojson", iter(ENTRIES), georeference)
    data = geojson.loads((tmp_path / "a.geojson").read_text(), strict=True)
    assert data.is_valid
    name = "urn:ogc:def:crs:OGC:1.3:CRS84" if georeference is DEGREES else "urn:ogc:def:crs:EPSG::32633"
    assert data["crs"] == {"type": "name", "properties": {"name": name}}
    pixel = min(abs(georeference.transform[0]), 1)
    for feature, entry in zip(data["features"], ENTRIES, strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        back = [~Affine(*georeference.transform) @ tuple(point) for point in ring]
        x1, y1, x2, y2 = entry["box"]
        corners = {(x1, y1), (x2, y1), (x2, y2), (x1, y2)}
        assert {(round(x, 2), round(y, 2)) for x, y in back} == corners
        assert area(ring) > 0 and ring[0] == ring[-1]
        assert area(ring) == pytest.approx(
            (x2 - x1) * (y2 - y1) * pixel**2 * (1.5625 if georeference is TURNED else 1), rel=1e-3
        )
        assert feature["properties"]["pixel_box"] == entry["box"] and feature["properties"]["score"] == entry["score"]


def test_geojson_of_a_system_without_a_number_is_in_pixels(tmp_path):
    write_geojson(tmp_path / "a.geojson", ENTRIES, Georeference((2.0, 0.0, 100.0, 0.0, -2.0, 900.0), None))
    text = (tmp_path / "a.geojson").read_text()
    write_geojson(tmp_path / "a.geojson", ENTRIES)
    assert text == (tmp_path / "a.geojson").read_text()


def test_table_in_pixels_with_centres_on_the_map(tmp_path):
    write_csv(tmp_path / "a.csv", "slide.tif", ENTRIES, UTM)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ['cell, "big"', "Zelle é"]
    assert {name: rows[0][name] for name in ("image", "score", "x1", "y1", "x2", "y2", "count")} == {
        "image": "slide.tif", "score": "0.9", "x1": "10.0", "y1": "20.5", "x2": "30.0", "y2": "60.0", "count": "4",
    }  # fmt: skip
    assert (float(rows[0]["map_x"]), float(rows[0]["map_y"])) == (400010.0, 4999979.875)


def test_table_is_read_as_annotations(tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "slide.png")
    write_csv(tmp_path / "a.csv", "slide.png", ENTRIES)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").startswith("image,class,score,x1,y1,x2,y2,confidence_sum,")
    data = read_csv(tmp_path / "a.csv")
    (sample,) = data.samples
    assert sample.boxes.tolist() == [[10, 20.5, 30, 60], [0, 0, 5, 6]]
    assert [data.class_names[label] for label in sample.labels] == ['cell, "big"', "Zelle é"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"no/a\.geojson: cannot be written"):
        write_geojson(tmp_path / "no" / "a.geojson", ENTRIES)
