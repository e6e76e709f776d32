"""Reading VOC's XML files as people's tools write them."""

import codecs
import errno
import json
import os

import pytest
from annotation_files import HEIGHT, WIDTH, error_of, only_problem, picture, voc_object, xml

from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.data.readers.ilsvrc import read_ignore_list, read_ilsvrc, read_ilsvrc_boxes, read_pairs
from overfeat.data.readers.voc import read_voc
from overfeat.errors import InputError

BEE = voc_object("bee", 1, 1, 2, 2)


@pytest.mark.parametrize(
    "name",
    [
        "b 1",
        "B 1.PNG",
        "b 1.jpg",
        "JPEGImages/b 1.png",
        "C:\\bees\\JPEGImages\\b 1.png",
        "..\\x\\b 1.png",
        "gone.png",
        "",
    ],
)
@pytest.mark.parametrize("standard", [False, True])
def test_names_of_images(tmp_path, name, standard):
    xmls, images = (tmp_path / "Annotations", tmp_path / "JPEGImages") if standard else (tmp_path, tmp_path)
    picture(images / "b 1.png")
    xml(xmls / "b 1.xml", BEE, file=name)
    data = read_annotations(tmp_path)
    assert [sample.path for sample in data.samples] == [images / "b 1.png"]
    assert data.samples[0].boxes.tolist() == [[0, 0, 2, 2]]
    expected = [] if standard and name.startswith("JPEGImages/") else [f"{name!r} is read as {images / 'b 1.png'}"]
    assert data.notes == [f"image names adapted: {text}" for text in expected]


def test_names_of_files_cannot_break_lines(tmp_path):
    picture(tmp_path / "a\nb.png")
    xml(tmp_path / "a\nb.xml", BEE, voc_object("bee", 5, 1, 4, 2), file="c.png")
    problem, data = only_problem(read_voc, tmp_path)
    assert problem.startswith(f"{tmp_path}/a\\nb.xml, line 4: xmin 5")
    assert data.notes == [f"image names adapted: 'c.png' is read as {tmp_path}/a\\nb.png"]


def test_names_do_not_leave_the_data_folder(tmp_path):
    picture(tmp_path / "secret.png")
    xml(tmp_path / "data" / "1.xml", BEE, file="../secret.png")
    assert f"1.xml: no file '../secret.png' in {tmp_path / 'data'}" in error_of(read_annotations, tmp_path / "data")
    data = read_annotations(tmp_path / "data", tmp_path)
    assert [sample.path for sample in data.samples] == [tmp_path / "secret.png"], "the caller gave this folder"


def test_files_of_one_name_are_found_by_their_own(tmp_path):
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"{stem}.png")
        xml(tmp_path / f"{stem}.xml", BEE, file="a.png")
    data = read_voc(tmp_path)
    assert [sample.path.name for sample in data.samples] == ["a.png", "b.png", "c.png"]
    assert data.notes == [f"image names adapted: 'a.png' is read as {tmp_path / 'b.png'} and 1 more"]


@pytest.mark.parametrize(
    "files",
    [
        {"aug_b": "b.png", "b": "b.png", "aug2_b": "b.png"},
        {"1": "2.png", "2": "3.png", "3": "4.png"},
        {"1": "3.png", "2": "3.png", "3": "gone/3.jpg"},
    ],
)
def test_an_image_of_several_names_is_that_of_its_own_file(tmp_path, files):
    """Augmented copies, renamed and shifted files whose <filename> is an earlier one, in whatever order."""
    for i, (stem, file) in enumerate(files.items(), 1):
        picture(tmp_path / f"{stem}.png")
        xml(tmp_path / f"{stem}.xml", voc_object("bee", 1, 1, i, 2), file=file)
    data = read_voc(tmp_path)
    boxes_read = {sample.path.name: sample.boxes.tolist() for sample in data.samples}
    assert boxes_read == {f"{stem}.png": [[0, 0, i, 2]] for i, stem in enumerate(files, 1)}
    assert data.notes[0].startswith("image names adapted: ") and data.problems == []


def test_names_that_fit_are_right_whatever_the_names_of_the_files(tmp_path):
    for stem, file in (("1", "0.png"), ("2", "1.png"), ("3", "2.png")):
        picture(tmp_path / file)
        xml(tmp_path / f"{stem}.xml", BEE, file=file)
    data = read_voc(tmp_path)
    assert [sample.path.name for sample in data.samples] == ["0.png", "1.png", "2.png"] and data.notes == []


def test_a_file_that_is_not_read_keeps_its_image(tmp_path):
    for stem in ("aug_b", "b"):
        picture(tmp_path / "JPEGImages" / f"{stem}.png")
        xml(tmp_path / "Annotations" / f"{stem}.xml", BEE, file="b.png")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("aug_b\n")
    for data in (
        read_voc(tmp_path, "train"),
        read_annotations(tmp_path / "Annotations" / "aug_b.xml", tmp_path / "JPEGImages"),
    ):
        assert [sample.path for sample in data.samples] == [tmp_path / "JPEGImages" / "aug_b.png"]


def test_an_image_that_two_other_files_name_is_of_neither(tmp_path):
    for file in ("a.png", "b.png"):
        picture(tmp_path / file)
    for stem, file in (("1", "a.png"), ("2", "a.png"), ("3", "b.png")):
        xml(tmp_path / f"{stem}.xml", BEE, file=file)
    data = read_voc(tmp_path, skip_invalid=True)
    assert [sample.path.name for sample in data.samples] == ["b.png"]
    problem = "the image 'a.png' is that of another annotation"
    assert data.problems == [f"{tmp_path / name}: {problem}" for name in ("1.xml", "2.xml")]


def test_images_without_annotations_are_counted(tmp_path):
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"{stem}.png")
    xml(tmp_path / "a.xml", BEE)
    (tmp_path / "notes.txt").write_text("x")
    note = f"images that no annotation names, left out: {tmp_path / 'b.png'} and 1 more"
    assert read_annotations(tmp_path).notes == [note]
    (tmp_path / "a.xml").unlink()
    content = {
        "shapes": [{"label": "bee", "points": [[1, 1], [2, 2]], "shape_type": "rectangle"}],
        "imagePath": "a.png",
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_annotations(tmp_path).notes == [note] and read_annotations(tmp_path / "a.json").notes == []


def test_xml_in_folders_below_and_with_other_suffixes(tmp_path):
    for folder in ("2020", "2021"):
        picture(tmp_path / "JPEGImages" / folder / "a.png")
        xml(tmp_path / "Annotations" / folder / "a.XML", BEE)
    data = read_annotations(tmp_path)
    images = [tmp_path / "JPEGImages" / folder / "a.png" for folder in ("2020", "2021")]
    assert [sample.path for sample in data.samples] == images and data.notes == []
    assert [sample.path for sample in read_annotations(tmp_path / "Annotations").samples] == images
    picture(tmp_path / "flat" / "below" / "b.png")
    xml(tmp_path / "flat" / "below" / "b.xml", BEE, file="b.png")
    assert [sample.path.name for sample in read_annotations(tmp_path / "flat").samples] == ["b.png"]


@pytest.mark.parametrize("function", ["listdir", "scandir"])
def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, function):
    picture(tmp_path / "JPEGImages" / "a.png")
    xml(tmp_path / "Annotations" / "below" / "a.xml", BEE)
    read = getattr(os, function)

    def refuse(path):
        if str(path).endswith("below" if function == "scandir" else tmp_path.name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, function, refuse)  # root may read every folder
    folder = tmp_path / "Annotations" / "below" if function == "scandir" else tmp_path
    message = f"{folder}: cannot be read (Permission denied); check the folder's permissions"
    assert error_of(read_annotations, tmp_path) == message


def test_folders_in_lower_case_and_splits_in_folders(tmp_path):
    picture(tmp_path / "images" / "a.png")
    xml(tmp_path / "annotations" / "xmls" / "a.xml", BEE)
    data = read_annotations(tmp_path)
    assert [sample.path for sample in data.samples] == [tmp_path / "images" / "a.png"] and data.notes == []
    for split in ("train", "val"):
        picture(tmp_path / "parts" / split / "a.png")
        xml(tmp_path / "parts" / split / "a.XML", BEE)
    assert available_splits(tmp_path / "parts") == ["train", "val"]
    assert read_annotations(tmp_path / "parts", split="val").samples[0].path == tmp_path / "parts" / "val" / "a.png"
    assert "give one of train, val" in error_of(read_annotations, tmp_path / "parts")


def test_boxes_over_the_edge_are_clipped_and_counted(tmp_path):
    picture(tmp_path / "a.png")
    xml(
        tmp_path / "1.xml",
        voc_object("bee", 0, 0, WIDTH - 1, HEIGHT - 1),
        voc_object("bee", 3, 1, WIDTH + 1, HEIGHT + 0.5),
        voc_object("bee", 1 - 1e-6, 4, 5, 5),
        voc_object("bee", -3, 4, 5, 5),
        voc_object("ant", 4, 4, 5, 5),
    )
    line, data = only_problem(read_voc, tmp_path)
    assert line == (
        f"{tmp_path / '1.xml'}, line 6: xmin -3, ymin 4, xmax 5, ymax 5 (counted from 1): "
        "outside the image, which is 20 pixels wide and 10 high"
    )
    assert data.samples[0].boxes.tolist() == [[0, 0, 19, 9], [2, 0, 20, 10], [0, 3, 5, 5], [3, 3, 5, 5]]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {tmp_path / '1.xml'}, line 3 and 1 more"]


def test_boxes_that_count_from_0_may_be_a_pixel_over_the_edge(tmp_path):
    picture(tmp_path / "a.png")
    edges = [(-0.0000001, 1, 5), (-0.4, 1, 6), (-1, 1, 7), (3, 1, WIDTH + 1.00001), (-1.1, 1, 8)]
    xml(tmp_path / "a.xml", *(voc_object("bee", x1, y1, x2, 2) for x1, y1, x2 in edges))
    line, data = only_problem(read_voc, tmp_path)
    assert line.startswith(f"{tmp_path / 'a.xml'}, line 7: xmin -1.1, ymin 1, xmax 8, ymax 2 (counted from 1): outside")
    assert data.samples[0].boxes.tolist() == [[0, 0, 5, 2], [0, 0, 6, 2], [0, 0, 7, 2], [2, 0, 20, 2]]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {tmp_path / 'a.xml'}, line 3 and 3 more"]


@pytest.mark.parametrize("shape", ["robndbox", "polygon"])
def test_other_shapes_are_named_and_files_of_gdal_left_out(tmp_path, shape):
    picture(tmp_path / "a.png")
    (tmp_path / "a.png.aux.xml").write_text("<PAMDataset></PAMDataset>")
    rotated = f"<object><name>bee</name><{shape}><cx>5</cx></{shape}></object>\n"
    xml(tmp_path / "a.xml", BEE, rotated, voc_object("bee", 2, 2, 3, 3, extra=f"<{shape}/>"))
    line, data = only_problem(read_voc, tmp_path)
    assert line == f"{tmp_path / 'a.xml'}, line 4: it has a {shape} and no bndbox; convert it to the box around it"
    assert data.samples[0].boxes.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]] and data.notes == []


def test_difficult_in_words(tmp_path):
    picture(tmp_path / "a.png")
    words = {"True": True, "false": False, "YES": True, "no": False, "1.0": True, "": False, "Unspecified": False}
    objects = [voc_object("bee", i, 1, i, 2, extra=f"<difficult>{word}</difficult>") for i, word in enumerate(words, 1)]
    xml(tmp_path / "1.xml", *objects, voc_object("bee", 19, 1, 19, 2, extra="<difficult>perhaps</difficult>"))
    line, data = only_problem(read_voc, tmp_path)
    assert line == f"{tmp_path / '1.xml'}, line 10: difficult is 'perhaps', not 0 or 1"
    assert data.samples[0].difficult.tolist() == list(words.values()) and data.notes == []


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gbk", "苹果"), ("GB2312", "苹果"), ("gb18030", "苹果"), ("gb2312", "喆镕"), ("big5", "蘋果"),
        ("Shift-JIS", "表りんご"), ("shift_jis", "①髙"), ("EUC-JP", "りんご"), ("euc-kr", "사과"), ("euc-kr", "햏"),
        ("utf-8", "Äpfel"), ("iso-8859-1", "Äpfel"), ("windows-1251", "яблоко"), ("utf-16", "苹果"),
    ],
)  # fmt: skip
def test_encodings(tmp_path, encoding, name):
    """Declared encodings are read as their common extensions, as browsers do."""
    picture(tmp_path / f"{name}.png")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation><filename>{name}.png</filename>\n\n'
    written = {"gb2312": "gbk", "shift_jis": "cp932", "euc-kr": "cp949"}.get(encoding, encoding)
    (tmp_path / "1.xml").write_bytes(f"{text}{voc_object(name, 1, 1, 2, 2)}<object/></annotation>".encode(written))
    line, data = only_problem(read_voc, tmp_path)
    assert data.class_names == [name] and data.samples[0].path == tmp_path / f"{name}.png" and data.notes == []
    assert line.startswith(f"{tmp_path / '1.xml'}, line 5: the class name is ''")


@pytest.mark.parametrize(
    "declared", ["", "<?xml version='1.0' encoding='gbk'?>", "<?xml version='1.0' encoding='utf-16'?>"]
)
def test_a_byte_order_mark_and_bytes_are_stronger_than_a_declaration(tmp_path, declared):
    picture(tmp_path / "a.png")
    text = f"{declared}<annotation><filename>a.png</filename>{voc_object('Äpfel', 1, 1, 2, 2)}</annotation>"
    (tmp_path / "1.xml").write_bytes((b"" if "16" in declared else codecs.BOM_UTF8) + text.encode())
    assert read_voc(tmp_path).class_names == ["Äpfel"]


def test_undecodable_bytes_matter_only_where_they_are_read(tmp_path):
    picture(tmp_path / "a.png")
    text = f"<annotation><filename>a.png</filename><path>C:\\B\xe4r</path>\n{BEE}{voc_object('Bär', 2, 2, 4, 4)}"
    (tmp_path / "1.xml").write_bytes(f"{text}</annotation>".encode("latin-1"))
    line, data = only_problem(read_voc, tmp_path)
    assert line == (
        f"{tmp_path / '1.xml'}, line 3: the class name 'B\ufffdr' is in another encoding; save the file as UTF-8"
    )
    assert data.class_names == ["bee"]


@pytest.mark.parametrize("text", ["a\nb c\n", "a.jpg\r\nJPEGImages/b c.png\r\n", "a  1\nb c -1\n", "A.XML\nx\\b c.xml"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists(tmp_path, text, encoding):
    for stem in ("a", "b c", "d"):
        picture(tmp_path / "JPEGImages" / f"{stem}.png")
        xml(tmp_path / "Annotations" / f"{stem}.xml", BEE, file=f"{stem}.png")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(text.encode(encoding))
    data = read_annotations(tmp_path, split="train")
    assert [sample.path.stem for sample in data.samples] == ["a", "b c"] and data.notes == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_ilsvrc_with_a_byte_order_mark(tmp_path, encoding):
    def write(name, text):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    assert read_ignore_list(write("ignored.txt", "36\r\n50\r\n")) == {36, 50}
    assert read_pairs(write("pairs.txt", "12 kit fox\n")) == {(12, "kit fox")}
    write("synsets.txt", "1 n02119789 kit fox\n2 n02012849 crane\n")
    write("ILSVRC2012_validation_ground_truth.txt", "2\n")
    picture(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    data = read_ilsvrc(tmp_path, tmp_path / "val", "validation")
    assert data.class_names == ["n02119789 kit fox", "n02012849 crane"] and data.samples[0].label == 1
    xml(tmp_path / "boxes" / "val" / "ILSVRC2012_val_00000001.XML", voc_object("n02119789", 0, 0, WIDTH, 4))
    boxes = read_ilsvrc_boxes(tmp_path, tmp_path / "val", tmp_path / "boxes", "validation")
    assert boxes.samples[0].boxes.tolist() == [[0, 0, 20, 5]] and boxes.notes[0].startswith("boxes up to a pixel over")
    with pytest.raises(InputError, match="line 1: 'ILSVRC2012_ID WNID names' is needed"):
        read_ilsvrc(write("synsets.txt", "² n02119789 kit fox\n").parent, tmp_path / "val", "validation")
