"""Reading boxes from LabelMe's JSON files."""

import json
import random

import pytest
from annotation_files import HEIGHT, WIDTH, damaged, error_of, is_refused, only_problem, picture

from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.data.readers.labelme import read_labelme


def shape(label="bee", points=((1, 2), (3, 4)), kind="rectangle", **other):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **other}


def labelme(path, *shapes, image="a.png", **other):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": "no base64 at all!"}
    path.write_text(json.dumps(data | {"imageHeight": HEIGHT, "imageWidth": WIDTH} | other))
    return path


def test_shapes_become_boxes(tmp_path):
    picture(tmp_path / "a.png")
    shapes = [
        shape(points=[[3, 4], [1, 2]]),
        shape("ant", [[0, 5], [4, 1.5], [2, 9]], "polygon"),
        shape("ant", [[18, 5], [18, 8]], "circle", difficult=True),
        shape(points=[[2, 2], [9, 2], [9, 4], [2, 4]]),
        {"label": "bee", "points": [[-0.5, 0], [6, 0], [6, 10.9]]},  # as early versions write a polygon
        shape(points=[[5, 5], [8, 7]], kind="mask", mask="iVBORw0KGgo="),
    ]
    data = read_annotations(labelme(tmp_path / "1.json", *shapes))
    assert data.class_names == ["ant", "bee"]
    boxes = [[1, 2, 3, 4], [0, 1.5, 4, 9], [15, 2, 20, 8], [2, 2, 9, 4], [0, 0, 6, 10], [5, 5, 8, 7]]
    assert data.samples[0].boxes.tolist() == boxes and data.samples[0].labels.tolist() == [1, 0, 0, 1, 1, 1]
    assert data.samples[0].difficult.tolist() == [False, False, True, False, False, False]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {tmp_path / '1.json'}, shapes[4]"]


def test_a_folder_and_its_splits(tmp_path):
    for name in ("a.png", "b.JPG", "c d.png"):
        picture(tmp_path / "train" / name)
    labelme(tmp_path / "train" / "1.json", shape(), image="C:\\bees\\a.png")
    labelme(tmp_path / "train" / "2.JSON", image="../b.jpg", imageHeight=None, imageWidth=None)
    labelme(tmp_path / "train" / "c d.json", shape("ant"), image="before-it-was-renamed.png")
    (tmp_path / "train" / "._1.json").write_bytes(b"macOS metadata")
    for data in (read_annotations(tmp_path / "train"), read_annotations(tmp_path, split="train")):
        assert [sample.path.name for sample in data.samples] == ["a.png", "b.JPG", "c d.png"]
        assert [len(sample.labels) for sample in data.samples] == [1, 0, 1] and data.samples[1].size == (HEIGHT, WIDTH)
        assert data.notes[0].startswith("image names adapted: 'C:\\\\bees\\\\a.png' is read as ")
    assert available_splits(tmp_path) == ["train"] and available_splits(tmp_path / "train") == []
    labelme(tmp_path / "json" / "1.json", shape(), image="../train/a.png")
    message = error_of(read_annotations, tmp_path / "json")
    assert f"no file '../train/a.png' in {tmp_path / 'json'}; give the folder of the images" in message
    assert len(read_annotations(tmp_path / "json", tmp_path / "train")) == 1
    (tmp_path / "empty").mkdir()
    assert "no JSON files" in error_of(read_labelme, tmp_path / "empty")


def test_folders_below(tmp_path):
    for folder in ("mon", "tue"):
        picture(tmp_path / folder / "a.png")
        labelme(tmp_path / folder / "a.json", shape())
    (tmp_path / "mon" / "boxes.json").write_text('{"images": [], "annotations": [], "categories": []}')
    paths = [tmp_path / folder / "a.png" for folder in ("mon", "tue")]
    assert [sample.path for sample in read_annotations(tmp_path).samples] == paths
    picture(tmp_path / "b.png")
    labelme(tmp_path / "b.json", shape(), image="b.png")
    assert [sample.path for sample in read_annotations(tmp_path).samples] == [tmp_path / "b.png", *paths]


def test_points_and_lines_are_left_out(tmp_path):
    picture(tmp_path / "a.png")
    others = [shape("eye", [[1, 2]], "point"), shape("edge", [[1, 2], [3, 4]], "line"), shape("x", [], "linestrip")]
    data = read_annotations(labelme(tmp_path / "a.json", *others, shape()))
    assert data.class_names == ["bee"] and data.samples[0].boxes.tolist() == [[1, 2, 3, 4]]
    assert data.notes == [f"points and lines, left out: {tmp_path / 'a.json'}, shapes[0] and 2 more"]


def test_an_image_of_two_files_is_that_of_its_own(tmp_path):
    for stem, x in (("a", 1), ("b", 2)):
        picture(tmp_path / f"{stem}.png")
        labelme(tmp_path / f"{stem}.json", shape(points=[[x, 2], [9, 4]]), image="b.png")
    data = read_annotations(tmp_path)
    boxes = {"a.png": [[1, 2, 9, 4]], "b.png": [[2, 2, 9, 4]]}
    assert {sample.path.name: sample.boxes.tolist() for sample in data.samples} == boxes
    assert data.notes == [f"image names adapted: 'b.png' is read as {tmp_path / 'a.png'}"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (shape(points=[[1, 2], [22, 4]]), "shapes[1]: rectangle with the box 1, 2, 22, 4: outside the image"),
        (shape(points=[[1, 2], [1, 4]]), "no area"),
        (shape(points=[[30, 5], [30, 8]], kind="circle"), "reversed"),
        (shape(points=[[1, 2], [3, float("nan")]]), "not finite"),
        (shape(points=[[1, 2], [3, 10**400]]), "not finite"),
        (shape(points=[[1, 2], [3, float("nan")]], kind="circle"), "not finite"),
        (shape(points=[[1, 2], [5, 2], [float("nan"), 9], [1, 9]], kind="polygon"), "not finite"),
        (shape(points=[[1, 2]]), "points of a rectangle are [[1, 2]], not at least 2 pairs of numbers"),
        (shape(points=[[1, 2], [3, "4"]]), "not at least 2 pairs"),
        (shape(points=None), "points of a rectangle are None"),
        (shape(points=[[1, 2], [3, 4]], kind="polygon"), "not at least 3 pairs"),
        (shape(kind="star"), "a shape of type 'star' has no box; there are rectangle, circle"),
        (shape(kind=["x"]), "a shape of type ['x'] has no box"),
        (shape(label=None), "the class name is None"),
        (shape(label="two\nlines"), "the class name is 'two"),
        (shape(), "the same box and class 'bee'"),
        (3, "shapes[1]: 3 is not an object"),
    ],
)
def test_bad_shapes_are_named_and_skipped(tmp_path, bad, problem):
    picture(tmp_path / "a.png")
    path = labelme(tmp_path / "1.json", shape(), bad, shape("ant", [[5, 5], [6, 6]]))
    line, data = only_problem(read_labelme, path)
    assert line.startswith(f"{path}, shapes[1]: ") and problem in line
    assert data.samples[0].boxes.tolist() == [[1, 2, 3, 4], [5, 5, 6, 6]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "no LabelMe file (Expecting property"),
        ("[" * 100_000, "no LabelMe file (nested too deeply)"),
        ('{"shapes": 3}', "no LabelMe file: no list shapes"),
        ("[]", "no list shapes"),
        ('{"shapes": [], "imagePath": null}', "the image's file name is None"),
        ('{"shapes": [], "imagePath": "/etc/passwd"}', "no file '/etc/passwd' in"),
        ('{"shapes": [], "imagePath": "a.png"}', "the image 'a.png' is that of another annotation"),
        ('{"shapes": [], "imagePath": "b.png", "imageWidth": -1, "imageHeight": 3}', "not numbers of pixels"),
    ],
)
def test_bad_files_are_named_and_skipped(tmp_path, text, problem):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    labelme(tmp_path / "a.json", shape())
    (tmp_path / "2.json").write_text(text)
    line, data = only_problem(read_annotations, tmp_path)
    assert line.startswith(f"{tmp_path / '2.json'}: ") and problem in line and len(data) == 1


def test_damaged_files_give_an_input_error_or_valid_boxes(tmp_path):
    picture(tmp_path / "a.png")
    path = labelme(tmp_path / "a.json", *(shape(points=[[i, 1], [i + 2.5, 3]]) for i in range(9)))
    good, rng, refused = path.read_bytes(), random.Random(4), 0
    for _ in range(200):
        path.write_bytes(damaged(good, rng, [b"", b"-", b"9e999", b"NaN", b"\\ud800", b"[", b"\xff"]))
        refused += is_refused(tmp_path, read_labelme, path, skip_invalid=True)
    assert 50 < refused < 180
