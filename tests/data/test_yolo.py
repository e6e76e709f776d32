"""Reading boxes from YOLO's text files, in the folders that people have."""

import random

import pytest
from annotation_files import HEIGHT, WIDTH, damaged, error_of, is_refused, only_problem, picture

from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.data.readers.yaml import read_yaml
from overfeat.data.readers.yolo import read_yolo

LABELS = "0 0.25 0.5 0.1 0.4\n\n1 0.0 0.0 0.5 0.0 0.5 1.0\n"
BOXES = [[4, 3, 6, 7], [0, 0, 10, 10]]


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def ultralytics(root, order="images/{}", names="names:\n  0: ant # small\n  1: 'honey bee'\n"):
    """Two images for training, the second without objects, and one to validate on; returns data.yaml."""
    for split, stems in (("train", "ab"), ("val", "c")):
        for stem in stems:
            picture(root / order.format(split) / f"{stem}.png")
    labels = order.replace("images", "labels")
    write(root / labels.format("train") / "a.txt", LABELS)
    write(root / labels.format("val") / "c.txt", "1 0.5 0.5 1 1")
    text = (
        f"path: ../datasets/bees # of another computer\ntrain: ../{order.format('train')}\nval: {order.format('val')}\n"
    )
    return write(root / "data.yaml", f"{text}test: # none\nnc: 2\n{names}download: |\n  names: x\n\n  for i in y: [\n")


@pytest.mark.parametrize("order", ["images/{}", "{}/images", "{}/images/deep"])
@pytest.mark.parametrize("form", ["folder", "yaml"])
def test_splits_by_data_yaml(tmp_path, order, form):
    path = ultralytics(tmp_path, order) if form == "yaml" else ultralytics(tmp_path, order).parent
    assert available_splits(path) == ["train", "val"]
    data = read_annotations(path, split="train")
    assert data.class_names == ["ant", "honey bee"] and [sample.path.name for sample in data.samples] == [
        "a.png",
        "b.png",
    ]
    assert data.samples[0].boxes.tolist() == BOXES and data.samples[0].labels.tolist() == [0, 1]
    assert data.samples[1].boxes.shape == (0, 4) and data.samples[1].size == (HEIGHT, WIDTH) and data.notes == []
    for name in ("val", "valid", "validation"):
        assert read_annotations(path, split=name).samples[0].boxes.tolist() == [[0, 0, 20, 10]]
    assert len(read_annotations(path)) == 3
    assert "no split 'test' in it; there are: train, val" in error_of(read_annotations, path, split="test")


@pytest.mark.parametrize(
    "names",
    ['names: [ant, "honey bee"]\n', "names:\n- ant\n- honey bee  # x\n", "names: {0: ant,\n 1: 'honey bee',}\n"],
)
def test_names_as_people_write_them(tmp_path, names):
    assert read_annotations(ultralytics(tmp_path, names=names), split="val").class_names == ["ant", "honey bee"]


@pytest.mark.parametrize("order", ["images/{}", "{}/images", "{}/images/deep"])
def test_splits_and_names_without_yaml(tmp_path, order):
    ultralytics(tmp_path, order).unlink()
    write(tmp_path / "classes.txt", "ant\nhoney bee\n", "utf-8-sig")
    assert available_splits(tmp_path) == ["train", "val"]
    assert read_annotations(tmp_path, split="train").samples[0].boxes.tolist() == BOXES
    folder = tmp_path / order.format("val")
    for path in (folder, tmp_path / order.replace("images", "labels").format("val") / "c.txt"):
        data = read_annotations(path)
        assert data.class_names == ["ant", "honey bee"] and data.samples[0].labels.tolist() == [1]
        assert [sample.path for sample in data.samples] == [folder / "c.png"] and data.notes == []
    (tmp_path / "classes.txt").unlink()
    data = read_annotations(tmp_path, split="train")
    assert data.class_names == ["0", "1"] and data.notes == [
        "classes without a name are called by their number: 0 and 1 more"
    ]


def test_labels_beside_images_and_lists_of_images(tmp_path):
    for stem in "abc":
        picture(tmp_path / "obj_train_data" / f"{stem}.png")
    for stem in "ab":
        write(tmp_path / "obj_train_data" / f"{stem}.txt", LABELS)
    write(tmp_path / "obj.names", "ant\nbee\n")
    write(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(tmp_path / "train.txt", "data/obj_train_data/b.png\nC:\\x\\obj_train_data\\A.PNG\n")
    for path, split in ((tmp_path, "train"), (tmp_path / "obj.data", None), (tmp_path / "train.txt", None)):
        data = read_annotations(path, split=split)
        assert [sample.path.name for sample in data.samples] == ["b.png", "a.png"] and data.class_names == [
            "ant",
            "bee",
        ]
        assert data.samples[0].boxes.tolist() == BOXES and data.notes[0].startswith("image names adapted")
    write(tmp_path / "obj_train_data" / "classes.txt", "x\ny\n")
    write(tmp_path / "obj_train_data" / "d.txt", LABELS)
    data = read_annotations(tmp_path / "obj_train_data")
    assert data.class_names == ["x", "y"] and [len(sample.labels) for sample in data.samples] == [2, 2, 0]
    assert data.notes == [f"files of labels without an image, left out: {tmp_path / 'obj_train_data' / 'd.txt'}"]


def test_images_in_another_folder(tmp_path):
    picture(tmp_path / "photos" / "sub" / "a.png")
    write(tmp_path / "txt" / "sub" / "a.txt", LABELS)
    write(tmp_path / "txt" / "a.txt", LABELS)
    write(tmp_path / "txt" / "classes.txt", "ant\nbee\n")
    data = read_annotations(tmp_path / "txt", tmp_path / "photos")
    assert [sample.boxes.tolist() for sample in data.samples] == [BOXES]
    assert "no usable box in 0 images" in error_of(read_annotations, tmp_path / "txt")
    ultralytics(tmp_path / "set")
    photos = tmp_path / "set" / "images" / "train"
    assert "give the split's folder of labels alone" in error_of(read_annotations, tmp_path / "set", photos, "train")
    assert len(read_annotations(tmp_path / "set" / "labels" / "train", photos)) == 2
    listing = write(tmp_path / "list.txt", "x/a.png\n")
    assert [sample.path for sample in read_annotations(listing, photos).samples] == [photos / "a.png"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("0 0.5 0.5 0.2", "3 numbers after the class, not a box's 4"),
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers after the class"),
        ("0 1.2 0.5 0.2 0.2", "box 22, 4, 26, 6: outside the image"),
        ("0 12 5 2 2", "'0 12 5 2 2': not fractions of the image's width and height"),
        ("0 0.5 0.5 0 0.2", "no area"),
        ("0 0.5 0.5 -0.2 0.2", "reversed"),
        ("0 0.5 0.5 nan 0.2", "not finite"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5 0.1 0.5", "a point that is not finite"),
        ("0 0.5 x 0.2 0.2", "a coordinate is 'x', not a number"),
        ("2 0.5 0.5 0.2 0.2", "unknown class 2; there are 2 names"),
        ("-1 0.5 0.5 0.2 0.2", "the class is '-1', not a number from 0"),
        ("0.5 0.5 0.5 0.2 0.2", "the class is '0.5'"),
        ("bee 0.5 0.5 0.2 0.2", "the class is 'bee', not a number"),
        ("0 0.25 0.5 0.1 0.4", "the same box and class 'ant'"),
    ],
)
def test_bad_lines_are_named_and_skipped(tmp_path, bad, problem):
    ultralytics(tmp_path)
    path = write(tmp_path / "labels" / "train" / "a.txt", f"{LABELS}{bad}\n1.0 0.5 0.5 1.02 1.0\n")
    line, data = only_problem(read_yolo, tmp_path, "train")
    assert line.startswith(f"{path}, line 4: ") and problem in line
    assert data.samples[0].boxes.tolist() == [*BOXES, [0, 0, 20, 10]]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {path}, line 5"]


def test_boxes_a_whole_pixel_over_the_edge_are_clipped(tmp_path):
    for stem, size, line in (("a", (100, 80), "0 0.5 0.5 1.02 0.2"), ("b", (640, 640), "0 0.5 0.5 1.003125 0.2")):
        picture(tmp_path / f"{stem}.png", size)
        write(tmp_path / f"{stem}.txt", line)
    data = read_yolo(tmp_path)
    assert [sample.boxes.tolist() for sample in data.samples] == [[[0, 32, 100, 48]], [[0, 256, 640, 384]]]
    write(tmp_path / "a.txt", "0 0.5 0.5 1.021 0.2")
    assert "outside the image" in error_of(read_yolo, tmp_path)


def test_lists_that_name_an_image_twice(tmp_path):
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.5")
    assert len(read_yolo(write(tmp_path / "train.list", "a.png\na.png\n"))) == 1


def test_poses_have_a_box_first(tmp_path):
    ultralytics(tmp_path, names="names: [ant]\nkpt_shape: [2, 2]\n")
    write(tmp_path / "labels" / "val" / "c.txt", "0 0.25 0.5 0.1 0.4 0.9 0.9 0.1 0.1")
    assert read_annotations(tmp_path, split="val").samples[0].boxes.tolist() == [BOXES[0]]


def test_bad_files_are_named_and_skipped(tmp_path):
    ultralytics(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").write_bytes(b"0 0.5 0.5 0.2 0.2\n\xff")
    line, _ = only_problem(read_yolo, tmp_path, "train")
    assert line == f"{tmp_path / 'labels' / 'train' / 'b.txt'}, line 2: the class is '\ufffd', not a number"
    (tmp_path / "images" / "val" / "c.png").write_bytes(b"no image")
    assert "c.txt: no size is stated, and it cannot be read from the image" in error_of(read_yolo, tmp_path, "val")
    for file in (tmp_path / "labels").rglob("*.txt"):
        file.unlink()
    assert "no files of labels for its 2 images" in error_of(read_yolo, tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("names: &x [a]", "line 5: names is not understood ("),
        ("names: [[a]]", "names is not understood ('[ a ]' in it)"),
        ("names: [a", "names is not understood (no ] at its end); write a text, a list [a, b]"),
        ("names: {a}", "names is not understood"),
        ("names: [a, 'b]", "has no closing quote"),
        ("names: |\n  a\n  b", "names is not understood"),
        ("names:\n  0: a\n    1: b", "lines of different indentation"),
        ("names:\n  0:\n    - a", "names is not understood"),
        ("names:\n  bee: 0", "names must be a list, or a mapping from numbers to names"),
        ("names: bees.txt", "no file 'bees.txt' of names; write the names as a list"),
        ("names: [" + "'" * 99_999, "has no closing quote"),
        ("names: [" + "'a'," * 50_000, "no ] at its end"),
        ("names: " + "[" * 100_000, "no ] at its end"),
        ("names: [a]\n" + "x" * 1_000_001, "bytes, more than the limit of 1,000,000"),
        ("names: ['\xff']", "not text in UTF-8 (line 5)"),
    ],
)
def test_names_in_other_yaml_are_refused(tmp_path, names, problem):
    path = ultralytics(tmp_path, names="")
    path.write_bytes(f"path: .\ntrain: images/train\nval: images/val\nnc: 2\n{names}\n".encode("latin-1"))
    assert problem in error_of(read_annotations, path, split="train")
    assert problem in error_of(read_annotations, tmp_path, split="train")


def test_the_yaml_that_is_read(tmp_path):
    text = """\ufeff---
# comment
"quoted": 'it''s' # comment
plain: a b#c # d
empty:
nothing: ~
flow: [a:b, "c\\u00e9", 'd, e',
  f g # comment
]
map: {x: 1,
 'y z': 2}
block:
  'k: l' : v # c
  m n: o: p
items:
- q
- 'r #s'
other: &anchor
"""
    keys = ("quoted", "plain", "empty", "nothing", "flow", "map", "block", "items", "missing")
    assert read_yaml(write(tmp_path / "a.yaml", text), keys) == {
        "quoted": "it's", "plain": "a b#c", "flow": ["a:b", "cé", "d, e", "f g"], "map": {"x": "1", "y z": "2"},
        "block": {"k: l": "v", "m n": "o: p"}, "items": ["q", "r #s"],
    }  # fmt: skip


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    ultralytics(tmp_path).unlink()
    write(tmp_path / "mkdocs.yml", "names: [[x]]\ntrain: {")
    write(tmp_path / "notes.json", "{}")
    write(tmp_path / "classes.txt", "ant\nbee\n")
    (tmp_path / "blob.data").write_bytes(b"\xff\0")
    assert len(read_annotations(tmp_path, split="val")) == 1


def test_linked_folders_are_followed_once(tmp_path):
    ultralytics(tmp_path / "real", "{}/images")
    write(tmp_path / "data" / "classes.txt", "ant\nbee\n")
    for name in ("images", "labels"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / "train" / name)
    (tmp_path / "real" / "train" / "images" / "loop").symlink_to(tmp_path / "data")
    data = read_annotations(tmp_path / "data")
    assert [sample.path.name for sample in data.samples] == ["a.png", "b.png"] and data.class_names == ["ant", "bee"]


@pytest.mark.parametrize("kind", ["yaml", "label", "list"])
def test_damaged_files_give_an_input_error_or_valid_boxes(tmp_path, kind):
    config = ultralytics(tmp_path)
    listing = write(tmp_path / "train.txt", "images/train/a.png\nC:\\x\\b.png\n./images/val/c.png\n")
    config.write_text(config.read_text().replace("train: ../images/train", "train: train.txt"))
    path = {"yaml": config, "label": tmp_path / "labels" / "train" / "a.txt", "list": listing}[kind]
    good, rng, refused = path.read_bytes(), random.Random(7), 0
    pieces = [b"", b"-", b"9e999", b"nan", b"'", b"[", b"{", b": ", b"../", b"/", b"\0", b"\n", b"&", b"\xff\xfe"]
    for _ in range(60):
        path.write_bytes(damaged(good, rng, pieces))
        for source, split in ((tmp_path, "train"), (config, None), (path, None)):
            refused += is_refused(tmp_path, read_annotations, source, split=split, skip_invalid=True)
    assert 5 < refused < 150
