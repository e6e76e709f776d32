"""What ships with the package: small, listed, and made as SOURCES.md describes."""

import json

import numpy as np
import pytest
from PIL import Image

import overfeat
from overfeat.cli.assets import ASSETS, SHIPPED_CELLS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.data.images import list_images
from overfeat.data.readers.coco import read_coco
from overfeat.data.readers.voc import read_voc
from overfeat.data.synthetic.images import make_image
from overfeat.metrics.average_precision import ground_truth

IMAGES = list_images(ASSETS / "scenes")


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_shipped_images_are_what_the_generator_makes(path):
    made = make_image("test", seed=0, index=int(path.stem))
    with Image.open(path) as shipped:
        np.testing.assert_array_equal(np.asarray(shipped), made.image)
    assert json.loads((ASSETS / "scenes" / "labels.json").read_text())[path.name] == str(made.labels[0])


def test_shipped_net():
    assert SHIPPED_WEIGHTS.stat().st_size <= 2_000_000
    net = overfeat.load(SHIPPED_WEIGHTS)
    assert net.architecture.name == "small" and net.class_names == [str(digit) for digit in range(10)]
    assert not net.flip  # a mirrored digit is no digit
    assert overfeat.load_regressor(SHIPPED_WEIGHTS).num_classes is None


def test_shipped_detector():
    assert SHIPPED_DETECTOR.stat().st_size <= 2_000_000
    net, regressor = overfeat.load(SHIPPED_DETECTOR), overfeat.load_regressor(SHIPPED_DETECTOR)
    assert net.background and net.class_names == [*map(str, range(10)), "background"] and net.context is not None
    assert not net.flip and regressor.box_features == "unpooled" and len(net.scale_factors) == 5


def test_the_multi_object_images_are_what_the_generator_makes():
    """Annotations and, where the packages are installed, pixels."""
    multi_object = read_coco(ASSETS / "multi-object" / "test.json")
    assert {len(sample.labels) for sample in multi_object.samples} >= {0, 8}
    for sample in multi_object.samples:
        made = make_image("test", 0, int(sample.path.stem), objects=(0, 8))
        np.testing.assert_array_equal(sample.read().permute(1, 2, 0).numpy(), made.image)
        np.testing.assert_allclose(sample.boxes, made.boxes, atol=0.011)
        assert sample.labels.tolist() == made.labels.tolist()


def test_the_micrographs_of_blood():
    cells = read_voc(ASSETS / "cells")
    assert cells.class_names == ["Platelets", "RBC", "WBC"] and not cells.problems
    counts = [np.bincount(sample.labels, minlength=3).tolist() for sample in cells.samples]
    assert counts == [[2, 16, 1], [3, 12, 1], [3, 14, 1]]
    for sample in cells.samples:
        assert sample.read().shape == (3, 480, 640) and sample.path.stat().st_size <= 25_000


def test_shipped_detector_of_cells():
    """It detects the cells of a test image, about as many as are annotated."""
    assert SHIPPED_CELLS.stat().st_size <= 3_000_000
    net, regressor = overfeat.load(SHIPPED_CELLS), overfeat.load_regressor(SHIPPED_CELLS)
    assert net.background and net.class_names == ["Platelets", "RBC", "WBC", "background"] and net.reach > 0
    sample = read_voc(ASSETS / "cells" / "BloodImage_00385.xml", class_names=net.class_names[:3]).samples[0]
    detections, objects = overfeat.detect(net, regressor, sample.read()), ground_truth(sample)
    same = detections.labels[:, None] == objects.labels
    detected = (same & (overfeat.iou(detections.boxes.double(), objects.boxes) >= 0.5)).any(dim=0)
    assert detected.float().mean() >= 0.9 and len(detections) <= 1.5 * len(objects.labels)
    assert (detections.labels == net.class_names.index("WBC")).sum() == 1


def test_every_asset_is_listed():
    listed = (ASSETS / "SOURCES.md").read_text()
    for path in ASSETS.rglob("*"):
        if path.is_file() and path.name not in ("SOURCES.md", "labels.json"):
            folder = path.relative_to(ASSETS).parts[0]
            assert f"`{path.name}`" in listed or f"`{folder}/*{path.suffix}`" in listed or f"`{folder}/`" in listed, (
                path
            )
