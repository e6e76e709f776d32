"""Reading boxes: COCO, PASCAL VOC and ILSVRC files, valid and invalid ones."""

import os
import random
import re

import numpy as np
import pytest
from annotation_files import (
    HEIGHT,
    WIDTH,
    annotation,
    coco,
    damaged,
    error_of,
    only_problem,
    picture,
    voc_object,
    xml,
)
from PIL import Image

from overfeat.data.annotated import Annotated, align_boxes
from overfeat.data.readers.annotations import read_annotations
from overfeat.data.readers.coco import read_coco
from overfeat.data.readers.ilsvrc import read_ignore_list, read_ilsvrc_boxes
from overfeat.data.readers.voc import read_voc
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.data.synthetic.images import make_image
from overfeat.errors import InputError

LAUGH = "&l{};"
LAUGHS = "".join(f"<!ENTITY l{i} '{LAUGH.format(i - 1) * 10}'>" for i in range(1, 10))
LAUGHS = f"<!DOCTYPE a [<!ENTITY l0 'ha'>{LAUGHS}]>"


def test_synthetic_images_have_the_boxes_they_were_made_with(tmp_path):
    write_dataset(tmp_path, "train", 3, seed=5, progress=False)
    for data in (read_coco(tmp_path / "train.json"), read_annotations(tmp_path, split="train")):
        assert data.class_names == [str(i) for i in range(10)] and data.problems == [] and len(data) == 3
        for index, sample in enumerate(data.samples):
            made = make_image("train", 5, index)
            assert np.array_equal(sample.boxes, made.boxes) and sample.boxes.dtype == np.float64
            assert np.array_equal(sample.labels, made.labels) and sample.labels.dtype == np.int64
            assert sample.path == tmp_path / "train" / str(made.labels[0]) / f"{index:05}.png"
            assert sample.size == made.image.shape[:2] and sample.difficult.tolist() == [False]
    assert "3 images with 3 boxes of 10 classes" in data.describe() and data.fingerprint in data.describe()
    assert "give one of train" in error_of(read_annotations, tmp_path, split="test")


def test_coco_boxes_categories_and_crowd_annotations(tmp_path):
    picture(tmp_path / "pictures" / "b.png")
    images = [
        {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in ((9, "b.png"), (7, "a.png"))
    ]
    entries = [annotation(1, [0.5, 1, 19.51, 9]), annotation(2, category_id=1), annotation(3, [-5, 0, 1, 1], iscrowd=1)]
    path = coco(tmp_path, images, entries)
    picture(tmp_path / "pictures" / "a.png")
    data = read_coco(path, tmp_path / "pictures")
    assert data.class_names == ["ant", "bee"]
    assert [sample.path.name for sample in data.samples] == ["b.png", "a.png"]
    empty, full = data.samples
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == empty.difficult.shape == (0,)
    # 0.5 + 19.51 reaches 0.01 past the image: rounding, so it is clipped.
    assert full.boxes.tolist() == [[0.5, 1, 20, 10], [1, 2, 4, 6]]
    assert full.labels.tolist() == [1, 0] and full.size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"bbox": [18, 2, 3.03, 4]},
            r"annotation 2: bbox \[18, 2, 3.03, 4\]: outside the image, which is 20 pixels wide",
        ),
        ({"bbox": [1, 2, 3, 9.03]}, "annotation 2: .*outside"),
        ({"bbox": [-1.03, 2, 3, 4]}, "annotation 2: .*outside"),
        ({"bbox": [1, 2, 0, 4]}, "annotation 2: .*no area"),
        ({"bbox": [1, 2, 3, -4]}, "annotation 2: .*reversed"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"annotation 2: bbox \[1, 2, nan, 4\]: not finite"),
        ({"bbox": [1, 2, 10**400, 4]}, "annotation 2: .*not finite"),
        ({"bbox": [1, 2, 3]}, "annotation 2: .*four numbers"),
        ({"bbox": [1, 2, "x", 4]}, "annotation 2: bbox is 'x', not a number"),
        ({"bbox": [1, 2, True, 4]}, "annotation 2: .*four numbers"),
        ({"bbox": [1.0, 2, 3, 4]}, "annotation 2: .*same box and class 'bee'"),
        ({"category_id": 3}, "annotation 2: category_id 3 is the id of no category"),
        ({"image_id": 8}, "annotation 2: image_id 8 is the id of no image"),
        ({"image_id": [7]}, r"annotation 2: image_id \[7\]"),
        ({"iscrowd": "maybe"}, "annotation 2: iscrowd is 'maybe', not 0 or 1"),
    ],
)
def test_bad_coco_annotations_are_named_and_skipped(tmp_path, change, problem):
    path = coco(
        tmp_path, annotations=[annotation(1), {**annotation(2, [5, 5, 2, 2]), **change}, annotation(3, [8, 2, 3, 4])]
    )
    line, data = only_problem(read_coco, path)
    assert line.startswith(f"{path}, ") and re.search(problem, line)
    assert data.samples[0].boxes.tolist() == [[1, 2, 4, 6], [8, 2, 11, 6]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"file_name": "./a.png"}, "image 8: the image './a.png' is that of another"),
        ({"file_name": "d.png"}, "image 8: no file 'd.png' in"),
        ({"file_name": "x" * 5000}, "image 8: the image's file name is 'xxx"),
        ({"file_name": "\ud800\0"}, "image 8: no file '\\ud800\\x00'"),
        ({"file_name": "../c.png"}, "image 8: no file '../c.png' in"),
        ({"file_name": "..\\c.png"}, "no file"),
        ({"file_name": os.path.abspath(__file__)}, "no file"),
        ({"file_name": None}, "image 8: the image's file name is None"),
        ({"width": -20}, "image 8: width -20 and height 10 are not numbers of pixels"),
        ({"width": 20.5}, "width 20.5 and height 10 are not"),
        ({"height": 10**7}, "height 10000000 are not"),
        ({"width": 10**400}, "are not numbers of pixels"),
        ({"width": [20]}, "the size is [20], not a number"),
        ({"id": None}, "images[1]: its id is None, neither a whole number nor text"),
        ({"id": 8.5}, "images[1]: its id is 8.5"),
        ({"id": float("inf")}, "images[1]: its id is inf"),
        ({"id": True}, "images[1]: its id is True"),
    ],
)
def test_bad_coco_images_are_named_and_skipped(tmp_path, change, problem):
    first = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    picture(tmp_path / "in" / "b.png")
    picture(tmp_path / "c.png")
    path = coco(tmp_path / "in", [first, {**first, "id": 8, "file_name": "b.png", **change}])
    line, data = only_problem(read_coco, path)
    assert line.startswith(f"{path}, ") and problem in line
    assert [sample.path.name for sample in data.samples] == ["a.png"]


def test_sizes_that_are_not_stated_come_from_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", exif=exif)
    images = [{"id": 7, "file_name": "turned.jpg"}, {"id": 8, "file_name": "a.png", "width": 0, "height": 0}]
    data = read_coco(coco(tmp_path, images))
    assert [sample.size for sample in data.samples] == [(WIDTH, HEIGHT), (HEIGHT, WIDTH)]
    (tmp_path / "turned.jpg").write_bytes(b"no image")
    assert "image 7: no size is stated, and it cannot be read from the image" in error_of(
        read_coco, tmp_path / "boxes.json"
    )


def test_categories_must_be_distinct_and_have_names(tmp_path):
    for name in ("", None, "two\nlines", "\ud800"):
        path = coco(tmp_path, categories=[{"id": 2, "name": "bee"}, {"id": 5, "name": name}])
        line, data = only_problem(read_coco, path)
        assert f"{path}, category 5: " in line and data.class_names == ["bee"]


def test_files_that_are_no_coco_are_explained(tmp_path):
    path = tmp_path / "x.json"
    assert "no such file" in error_of(read_coco, path)
    for text in ("", "{", "[" * 100_000, "9" * 5000, '{"images": "\xff', "[]", '{"images": [], "annotations": 3}'):
        path.write_bytes(text.encode("latin-1"))
        assert error_of(read_coco, path, skip_invalid=True).startswith(f"{path}: no COCO annotations")
    assert "no lists annotations, categories" in error_of(read_coco, path)
    with open(path, "wb") as file:
        file.truncate(2_000_000_001)  # without taking up room
    assert "2,000,000,001 bytes, more than the limit" in error_of(read_coco, path)


def test_the_first_twenty_problems_are_reported_and_the_rest_counted(tmp_path):
    path = coco(tmp_path, annotations=[annotation(i, [0, 0, 0, 0]) for i in range(23)])
    lines = error_of(read_coco, path).splitlines()
    assert lines[0] == f"{path}: 23 problems in the annotations:" and lines[-2:-1] == ["  and 3 more"]
    assert [line.split(":")[0] for line in lines[1:-2]] == [f"  {path}, annotation {i}" for i in range(20)]
    assert "no usable box in 1 images" in error_of(read_coco, path, skip_invalid=True)
    assert "no usable box" in error_of(read_coco, coco(tmp_path, annotations=[]))


@pytest.mark.parametrize("flat", [False, True])
def test_voc_counts_from_one_and_reads_flags(tmp_path, flat):
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    notes, images = (tmp_path, tmp_path) if flat else (tmp_path / "Annotations", tmp_path / "JPEGImages")
    picture(images / "a.png")
    picture(images / "b.jpg")
    hard = voc_object("cow", 2.5, 3, 7, 8.25, extra="<difficult>1</difficult>" + part)
    xml(notes / "1.xml", hard, voc_object("bee", 1, 1, WIDTH, HEIGHT))
    xml(notes / "0.xml", file="b.jpg", size=None)
    (notes / "._1.xml").write_bytes(b"macOS metadata")
    data = read_voc(tmp_path)
    assert data.class_names == ["bee", "cow"]
    assert [sample.path for sample in data.samples] == [images / "b.jpg", images / "a.png"]
    assert data.samples[0].boxes.shape == (0, 4) and data.samples[0].size == (HEIGHT, WIDTH)
    assert data.samples[1].boxes.tolist() == [[1.5, 2, 7, 8.25], [0, 0, 20, 10]]
    assert data.samples[1].labels.tolist() == [1, 0] and data.samples[1].difficult.tolist() == [True, False]
    assert read_annotations(tmp_path).fingerprint == data.fingerprint
    named = read_annotations(tmp_path, class_names=["cow", "ant", "bee"])
    assert named.class_names == ["cow", "ant", "bee"] and named.samples[1].labels.tolist() == [0, 2]
    split = tmp_path / "ImageSets" / "Main" / "val.txt"
    assert f"{split}: no such file; give a split" in error_of(read_voc, tmp_path, "val")
    split.parent.mkdir(parents=True)
    split.write_text("1\n\n")
    assert [sample.path.name for sample in read_annotations(tmp_path, split="val").samples] == ["a.png"]
    split.write_text("1\n2\n")
    assert only_problem(read_voc, tmp_path, "val")[0] == f"{notes / '2.xml'}: no file '2.xml' in {notes}"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (
            voc_object("bee", -2, 1, 5, 5),
            ", line 4: xmin -2, ymin 1, xmax 5, ymax 5 (counted from 1): outside the image",
        ),
        (voc_object("bee", 1, 1, WIDTH + 2, 5), ", line 4: xmin 1, ymin 1, xmax 22, ymax 5 (counted from 1): outside"),
        (voc_object("bee", 0, 1, 0, 5), ", line 4: xmin 0, ymin 1, xmax 0, ymax 5 (counted from 1): outside the image"),
        (voc_object("bee", 5, 1, 4, 5), ", line 4: xmin 5, ymin 1, xmax 4, ymax 5 (counted from 1): no area"),
        (voc_object("bee", 1, 9, 5, 5), "reversed"),
        (voc_object("bee", 1, 1, "nan", 5), "xmax nan, ymax 5 (counted from 1): not finite"),
        (voc_object("bee", 1, 1, "1_0", 5), ", line 4: xmax is '1_0', not a number"),
        (voc_object("bee", "", 1, 5, 5), ", line 4: xmin is '', not a number"),
        (voc_object("", 1, 1, 5, 5), ", line 4: the class name is ''"),
        (voc_object("bee", 1, 1, 2, 2), ", line 4: xmin 1, ymin 1, xmax 2, ymax 2 (counted from 1): the same box"),
        (voc_object("bee", 1, 1, 5, 5, extra="<difficult>2</difficult>"), ", line 4: difficult is '2'"),
        ("<object/>", ", line 4: the class name"),
    ],
)
def test_bad_voc_objects_are_named_and_skipped(tmp_path, bad, problem):
    picture(tmp_path / "a.png")
    xml(tmp_path / "1.xml", voc_object("bee", 1, 1, 2, 2), bad, voc_object("ant", 3, 3, 3, 3))
    line, data = only_problem(read_voc, tmp_path)
    assert line.startswith(f"{tmp_path / '1.xml'}, line 4: ") and problem in line
    assert data.samples[0].boxes.tolist() == [[0, 0, 2, 2], [2, 2, 3, 3]] and data.class_names == ["ant", "bee"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS + "<annotation><filename>&l9;</filename></annotation>", ", line 1: a DOCTYPE"),
        (f"<?xml version='1.0' encoding='utf-16'?>{LAUGHS}<annotation/>".encode("utf-16"), ", line 1: a DOCTYPE"),
        ("<annotation>\n<object>\n</annotation>", ", line 3: not XML (mismatched tag"),
        ("<?xml version='1.0' encoding='rot13'?><annotation/>", ", line 1: not XML"),
        ("<a>" * 100_000 + "</a>" * 100_000, ": the outermost element is 'a'"),
        ("", ", line 1: not XML"),
        ("<?xml version='1.0' encoding='gbk'?><a>\xff</a>", ": the outermost element is 'a'"),
        (" " * 5_000_001, ": 5,000,001 bytes, more than the limit of 5,000,000"),
        ("<annotation/>", ": the image's file name is ''"),
        ("<annotation><filename>/etc/passwd</filename></annotation>", ": no file '/etc/passwd' in"),
        ("<annotation><filename>a.png</filename></annotation>", ": the image 'a.png' is that of another"),
    ],
)
def test_bad_voc_files_are_named_and_skipped(tmp_path, text, problem):
    picture(tmp_path / "a.png")
    xml(tmp_path / "a.xml", voc_object("bee", 1, 1, 2, 2))
    (tmp_path / "2.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    line, data = only_problem(read_voc, tmp_path)
    assert line.startswith(f"{tmp_path / '2.xml'}{problem}") and len(data) == 1


def test_classes_that_are_not_requested_are_problems(tmp_path):
    picture(tmp_path / "a.png")
    xml(tmp_path / "1.xml", voc_object("bee", 1, 1, 2, 2), voc_object("ant", 1, 1, 2, 2))
    message = error_of(read_voc, tmp_path, class_names=["bee", "cow"])
    assert f"{tmp_path / '1.xml'}, line 4: unknown class 'ant'; there are 2: bee, cow" in message
    path = coco(tmp_path / "coco", annotations=[annotation(1), annotation(2, category_id=1)])
    assert "annotation 2: unknown class 'ant'" in error_of(read_annotations, path, class_names=["bee"])
    assert read_coco(path, class_names=["bee"], skip_invalid=True).samples[0].labels.tolist() == [0]


def ilsvrc(tmp_path, numbers):
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    (data / "synsets.txt").write_text("2 n02012849 crane\n1 n02119789 kit fox\n1001 n00001740 entity\n")
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n" * len(numbers))
    for number in numbers:
        picture(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    return tmp_path / "kit"


@pytest.mark.parametrize("folder", ["n02012849", "."])
def test_ilsvrc_training_uses_the_images_with_boxes(tmp_path, folder):
    kit = ilsvrc(tmp_path, [])
    for name in ("n02012849/n02012849_1", "n02012849/n02012849_2", "n02119789/n02119789_1"):
        picture(tmp_path / "train" / f"{name}.JPEG")
    full = voc_object("n02012849", 0, 2, WIDTH, HEIGHT, extra="<difficult>1</difficult>")
    xml(tmp_path / "boxes" / folder / "n02012849_2.xml", full, voc_object("n02119789", 3, 4, 3, 6), file="%s")
    data = read_ilsvrc_boxes(kit, tmp_path / "train", tmp_path / "boxes", "train")
    assert data.class_names == ["n02119789 kit fox", "n02012849 crane"]
    assert [sample.path.name for sample in data.samples] == ["n02012849_2.JPEG"]
    assert data.samples[0].boxes.tolist() == [[0, 2, 20, 10], [3, 4, 4, 7]]
    assert data.samples[0].labels.tolist() == [1, 0] and not data.samples[0].difficult.any()


def test_ilsvrc_validation_needs_boxes_for_every_image(tmp_path):
    kit, boxes = ilsvrc(tmp_path, [1, 2]), tmp_path / "boxes"
    good, beside = voc_object("n02012849", 0, 0, 4, 4), voc_object("n02012849", 20, 0, 20, 4)
    wide, other = voc_object("n02012849", 0, 0, 21, 4), voc_object("n00001740", 0, 0, 4, 4)
    xml(boxes / "ILSVRC2012_val_00000001.xml", good, other, wide, beside)
    message = error_of(read_ilsvrc_boxes, kit, tmp_path / "val", boxes, "validation")
    assert "line 4: unknown class 'n00001740'" in message and "line 5: xmin 0, ymin 0, xmax 21" in message
    assert "line 6: xmin 20, ymin 0, xmax 20, ymax 4 (counted from 0): outside" in message
    xml(boxes / "ILSVRC2012_val_00000001.xml", good)
    line, data = only_problem(read_ilsvrc_boxes, kit, tmp_path / "val", boxes, "validation")
    assert line == f"{boxes / 'ILSVRC2012_val_00000002.xml'}: no such file" and len(data) == 1
    (tmp_path / "ignored.txt").write_text("36\n50 \n\n")
    assert read_ignore_list(tmp_path / "ignored.txt") == {36, 50}
    for text in ("36\nx", "36\n²", "36\n-1"):
        (tmp_path / "ignored.txt").write_text(text)
        assert "ignored.txt, line 2: " in error_of(read_ignore_list, tmp_path / "ignored.txt")
    assert "no such file" in error_of(read_ignore_list, tmp_path / "missing.txt")


def test_align_and_fingerprint(tmp_path):
    def dataset(name, box=(1, 2, 3, 4), label=2, file="a.png", other="ant"):
        path = coco(tmp_path / name, [{"id": 7, "file_name": file}], [annotation(1, box, category_id=label)])
        return read_coco(path, class_names=[other, "bee"] if label == 2 else None)

    data = dataset("x")
    assert data.fingerprint == dataset("y").fingerprint
    picture(tmp_path / "z" / "b.png")
    others = [dataset("z", (1, 2, 3, 5)), dataset("z", label=1), dataset("z", file="b.png"), dataset("z", other="cow")]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5
    aligned = align_boxes(data, ["cow", "bee", "ant", "bee2"])
    assert aligned.class_names == ["cow", "bee", "ant", "bee2"] and aligned.samples[0].labels.tolist() == [1]
    assert align_boxes(data, ["bee", "ant"]).samples[0].labels.tolist() == [0]
    assert align_boxes(data, ["bee"]).samples[0].labels.tolist() == [0], "no box is of an ant"
    assert "does not know: bee;" in error_of(align_boxes, data, ["ant"])


def test_paths_without_annotations_are_explained(tmp_path):
    assert "no such file or folder; give a COCO" in error_of(read_annotations, tmp_path / "x")
    assert "no annotations in it; give a COCO" in error_of(read_annotations, tmp_path)
    (tmp_path / "x.txt").write_text("x")
    assert "no annotations; give a COCO" in error_of(read_annotations, tmp_path / "x.txt")
    assert "leave the split out" in error_of(read_annotations, coco(tmp_path), split="train")


def test_one_voc_file_alone_is_read(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.png")
    for name in ("1", "2"):
        xml(tmp_path / "Annotations" / f"{name}.xml", voc_object("bee", 1, 1, 2, 2))
    data = read_annotations(tmp_path / "Annotations" / "1.xml")
    assert [sample.path for sample in data.samples] == [tmp_path / "JPEGImages" / "a.png"]
    xml(tmp_path / "flat" / "1.xml", voc_object("bee", 1, 1, 2, 2))
    assert f"no file 'a.png' in {tmp_path / 'flat'}" in error_of(read_annotations, tmp_path / "flat" / "1.xml")
    assert len(read_annotations(tmp_path / "flat" / "1.xml", tmp_path / "JPEGImages")) == 1


@pytest.mark.parametrize("kind", ["xml", "json"])
def test_damaged_bytes_give_an_input_error_or_valid_boxes(tmp_path, kind):
    picture(tmp_path / "a.png")
    path = coco(tmp_path, annotations=[annotation(i, [i, 1, 2.5, 3]) for i in range(1, 6)])
    if kind == "xml":
        path = tmp_path / "1.xml"
        xml(path, *(voc_object("bee", i, 1, i + 2, 3, extra="<difficult>0</difficult>") for i in range(1, 6)))
    read = {
        "xml": lambda **options: read_voc(tmp_path, **options),
        "json": lambda **options: read_coco(path, **options),
    }
    good, rng, refused = path.read_bytes(), random.Random(3), 0
    for _ in range(150):
        path.write_bytes(damaged(good, rng, [None, b"", b"-", b"9e999", b"\\ud800", b"NaN"]))
        for skip in (False, True):
            try:
                data = read[kind](skip_invalid=skip)
            except InputError as error:
                refused += 1
                str(error).encode()
                continue
            assert isinstance(data, Annotated) and data.fingerprint
            for sample in data.samples:
                height, width = sample.size
                assert (sample.boxes >= 0).all() and (sample.boxes <= [width, height] * 2).all()
                assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert 100 < refused < 300
