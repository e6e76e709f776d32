"""Reading COCO's JSON as people's tools write it."""

import codecs
import json

import pytest
from annotation_files import HEIGHT, WIDTH, annotation, coco, error_of, only_problem, picture

from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.data.readers.coco import coco_ids, read_coco

IMAGE = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    "name",
    [
        "x\\a.png",
        "..\\..\\x\\a.png",
        "../a.png",
        "C:\\bees\\a.PNG",
        "/home/bees/a.png",
        "a",
        "A.jpeg",
        "./sub/../a.png",
    ],
)
def test_names_of_images(tmp_path, name):
    data = read_coco(coco(tmp_path, [{**IMAGE, "file_name": name}]))
    assert [sample.path for sample in data.samples] == [tmp_path / "a.png"]
    assert data.notes == [f"image names adapted: {name!r} is read as {tmp_path / 'a.png'}"]


@pytest.mark.parametrize(("first", "second"), [("val/a.png", "a.png"), ("b/a.jpg", "a.png"), ("A.PNG", "x/../a.png")])
@pytest.mark.parametrize("swapped", [False, True])
def test_an_image_is_that_of_its_exact_name_in_any_order(tmp_path, first, second, swapped):
    """If there is one; that of two names which both must be adapted is of neither."""
    picture(tmp_path / "c.png")
    images = [{**IMAGE, "id": number, "file_name": name} for number, name in ((8, first), (7, second), (9, "c"))]
    entries = [annotation(1, [1, 2, 3, 4]), annotation(2, [2, 2, 3, 4], image_id=8), annotation(3, image_id=9)]
    path = coco(tmp_path, images[::-1] if swapped else images, entries)
    data = read_coco(path, skip_invalid=True)
    problems = [
        f"{path}, image {i}: the image {n!r} is that of another annotation" for i, n in ((8, first), (7, second))
    ]
    exact = second == "a.png"
    boxes_read = {sample.path.name: sample.boxes.tolist() for sample in data.samples}
    assert boxes_read == {"c.png": [[1, 2, 4, 6]]} | ({"a.png": [[1, 2, 4, 6]]} if exact else {})
    assert sorted(data.problems) == sorted(problems[: 1 if exact else 2])


def test_boxes_over_the_edge_are_clipped_and_counted(tmp_path):
    boxes = [[-1e-6, 2, 3, 4], [5, -0.5, 3, 4], [0, 0, WIDTH + 0.5, HEIGHT + 1], [5, 5, 15 + 1e-6, 5.01], [15, 3, 7, 4]]
    path = coco(tmp_path, annotations=[annotation(i, box) for i, box in enumerate(boxes)])
    line, data = only_problem(read_coco, path)
    assert line == f"{path}, annotation 4: bbox [15, 3, 7, 4]: outside the image, which is 20 pixels wide and 10 high"
    assert data.samples[0].boxes.tolist() == [[0, 2, 3 - 1e-6, 6], [5, 0, 8, 3.5], [0, 0, 20, 10], [5, 5, 20, 10]]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {path}, annotation 1 and 1 more"]


@pytest.mark.parametrize(
    ("written", "referred"),
    [("7", "7"), ("7", 7), (7, "7"), (7.0, 7), (7, 7.0), ("x_1", "x_1"), ("07", 7), ("07", "7"), ("7", "07")],
)
def test_ids_that_are_text_or_floats(tmp_path, written, referred):
    path = coco(
        tmp_path,
        [{**IMAGE, "id": written}],
        [annotation(box=[1, 2, 3, 4], image_id=referred, category_id=referred)],
        [{"id": written, "name": "bee"}, {"id": 900, "name": "ant"}],
    )
    data = read_coco(path)
    assert data.samples[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert data.class_names == (["ant", "bee"] if written == "x_1" else ["bee", "ant"])
    assert data.class_names[data.samples[0].labels[0]] == "bee"
    assert bool(data.notes) == (type(written) is not int)
    assert coco_ids(path, ["a.png"], ["bee"]) == ({"a.png": written}, {"bee": written}), "as COCO's tools compare them"


@pytest.mark.parametrize("second", [7, "7", 7.0])
def test_boxes_of_an_id_of_two_images_are_of_neither(tmp_path, second):
    for name in ("b.png", "c.png"):
        picture(tmp_path / name)
    images = [IMAGE, {**IMAGE, "id": second, "file_name": "b.png"}, {**IMAGE, "id": 8, "file_name": "c.png"}]
    path = coco(tmp_path, images, [annotation(1), annotation(2, image_id=8)])
    line, data = only_problem(read_coco, path)
    assert line == f"{path}, image {second!r}: its id is that of another image, so it stands for neither"
    assert [sample.path.name for sample in data.samples] == ["c.png"]


def test_ids_that_differ_in_zeros_are_several(tmp_path):
    picture(tmp_path / "b.png")
    images = [{**IMAGE, "id": "001"}, {**IMAGE, "id": "1", "file_name": "b.png"}]
    entries = [annotation(1, [1, 2, 3, 4], image_id="001"), annotation(2, [2, 2, 3, 4], image_id="1")]
    data = read_coco(coco(tmp_path, images, [*entries, annotation(3, [3, 2, 3, 4], image_id=1)]))
    assert [sample.boxes.tolist() for sample in data.samples] == [[[1, 2, 4, 6]], [[2, 2, 5, 6], [3, 2, 6, 6]]]
    path = coco(tmp_path, [{**IMAGE, "id": "01"}, {**images[1], "id": "001"}], [annotation(image_id=1)])
    assert "image_id 1 is the id of no image" in error_of(read_coco, path)


def test_boxes_whose_numbers_are_text(tmp_path):
    path = coco(tmp_path, annotations=[annotation(1, ["1", "2.5", "3", 4]), annotation(2)])
    data = read_coco(path)
    assert data.samples[0].boxes.tolist() == [[1, 2.5, 4, 6.5], [1, 2, 4, 6]]
    assert data.notes == [f"boxes whose numbers are text: {path}, annotation 1"]


def test_annotations_without_ids(tmp_path):
    entries = [annotation(None, [i, 2, 3, 4]) for i in (1, 2)]
    del entries[1]["id"]
    path = coco(tmp_path, annotations=[*entries, annotation("x", [3, 2, 3, 4]), annotation(None, [4, 2, 0, 4])])
    line, data = only_problem(read_coco, path)
    assert line == f"{path}, annotations[3]: bbox [4, 2, 0, 4]: no area"
    assert data.samples[0].boxes.tolist() == [[1, 2, 4, 6], [2, 2, 5, 6], [3, 2, 6, 6]] and data.notes == []


def test_a_category_of_the_background_counts_if_it_has_boxes(tmp_path):
    categories = [{"id": 0, "name": "background"}, {"id": 2, "name": "bee"}, {"id": 3, "name": "ant"}]
    data = read_coco(coco(tmp_path, categories=categories))
    assert data.class_names == ["bee", "ant"] and data.samples[0].labels.tolist() == [0]
    assert data.notes == ["categories without boxes, left out: 'background'"]
    path = coco(tmp_path, annotations=[annotation(category_id=0)], categories=categories)
    assert read_coco(path).class_names == ["background", "bee", "ant"]


def test_a_group_of_categories_without_boxes_is_no_class(tmp_path):
    groups = {"insects": "none", "bee": "insects", "ant": "insects", "person": "person"}
    categories = [{"id": i, "name": name, "supercategory": group} for i, (name, group) in enumerate(groups.items(), 1)]
    data = read_coco(coco(tmp_path, categories=categories))
    assert data.class_names == ["bee", "ant", "person"]
    assert data.notes == ["categories without boxes, left out: 'insects'"]
    data = read_coco(coco(tmp_path, annotations=[annotation(category_id=1)], categories=categories))
    assert data.class_names == list(groups) and data.notes == []


def test_categories_of_one_name_are_one_class(tmp_path):
    path = coco(
        tmp_path,
        annotations=[annotation(1), annotation(2, [5, 2, 3, 4], category_id=5)],
        categories=[{"id": 2, "name": "bee"}, {"id": 5, "name": "bee"}],
    )
    data = read_coco(path)
    assert data.class_names == ["bee"] and data.samples[0].labels.tolist() == [0, 0]
    assert data.notes == ["categories of the same name, read as one class: 'bee'"]


def test_entries_that_are_there_twice_and_ids_of_two_categories(tmp_path):
    categories = [{"id": i, "name": name} for i, name in ((2, "bee"), (2, "bee"), (5, "ant"))]
    path = coco(tmp_path, [IMAGE, IMAGE], categories=categories)
    data = read_coco(path)
    assert data.class_names == ["bee", "ant"] and data.samples[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert data.notes == [f"entries that are there twice: {path}, category 2 and 1 more"]
    boxes = [annotation(1), annotation(2, category_id=5), annotation(3, [5, 5, 2, 2])]
    path = coco(tmp_path, annotations=boxes, categories=[*categories, {"id": 5, "name": "fly"}])
    data = read_coco(path, skip_invalid=True)
    assert data.class_names == ["bee"] and data.samples[0].boxes.tolist() == [[1, 2, 4, 6], [5, 5, 7, 7]]
    assert data.problems == [
        f"{path}, category 5: its id is that of another category, so it stands for neither",
        f"{path}, annotation 2: category_id 5 is the id of no category, or of several",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark(tmp_path, encoding):
    path = coco(tmp_path)
    path.write_bytes(path.read_text().encode(encoding))
    assert path.read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16)) and len(read_annotations(path)) == 1


def folders(root, *files, images="{}", captions=True):
    """The folders of COCO: annotations/FILE.json with one image each, which lies in a folder of its own."""
    for file in files:
        name = file.rpartition("_")[2]
        picture(root / images.format(name) / "a.png")
        source = coco(root / "made", [IMAGE], [annotation(box=[len(name), 0, 2, 2])])
        (root / "annotations").mkdir(exist_ok=True)
        source.rename(root / "annotations" / f"{file}.json")
        if captions:
            (root / "annotations" / f"captions_{name}.json").write_text(json.dumps({"images": [], "annotations": []}))


@pytest.mark.parametrize("images", ["{}", "images/{}"])
def test_the_folders_of_coco(tmp_path, images):
    folders(tmp_path, "instances_train2017", "instances_val2017", images=images)
    for path in (tmp_path, tmp_path / "annotations"):
        assert available_splits(path)[:2] == ["train", "val"] or set(available_splits(path)) >= {"train", "val"}
        for split in ("train", "val"):
            data = read_annotations(path, split=split)
            file = tmp_path / "annotations" / f"instances_{split}2017.json"
            assert [sample.path for sample in data.samples] == [tmp_path / images.format(f"{split}2017") / "a.png"]
            assert data.samples[0].boxes.tolist() == [[len(split) + 4, 0, len(split) + 6, 2]]
            assert data.notes == [f"annotations read: {file}"]
    message = error_of(read_annotations, tmp_path)
    assert "it has several splits; give one of" in message and "train" in message and "val" in message
    assert "no split 'test' in it" in error_of(read_annotations, tmp_path, split="test")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_split_for_validation(tmp_path, name):
    folders(tmp_path, "instances_train2017", "instances_val2017")
    assert read_annotations(tmp_path, split=name).samples[0].path == tmp_path / "val2017" / "a.png"
    for split in ("train", "valid"):
        picture(tmp_path / "folders" / split / "a.png")
        coco(tmp_path / "folders" / split)
    assert (
        read_annotations(tmp_path / "folders", split=name).samples[0].path == tmp_path / "folders" / "valid" / "a.png"
    )


def test_one_file_in_a_folder_of_annotations(tmp_path):
    folders(tmp_path, "boxes", captions=False)
    (tmp_path / "boxes").rename(tmp_path / "images")
    data = read_annotations(tmp_path)
    assert [sample.path for sample in data.samples] == [tmp_path / "images" / "a.png"]
    assert data.notes == [f"annotations read: {tmp_path / 'annotations' / 'boxes.json'}"]


def test_several_files_for_a_split_are_not_guessed(tmp_path):
    folders(tmp_path, "a_train", "b_train", captions=False)
    assert available_splits(tmp_path) == ["a_train", "b_train"]
    assert "no split 'train' in it; give one of a_train, b_train" in error_of(read_annotations, tmp_path, split="train")
    assert len(read_annotations(tmp_path, split="a_train")) == 1
