"""Reading boxes from tables, as people's tools write them."""

import random

import pytest
from annotation_files import HEIGHT, WIDTH, damaged, error_of, is_refused, only_problem, picture

from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.data.readers.csv import read_csv

HEADER = "image,xmin,ymin,xmax,ymax,label\n"


def table(folder, text, name="boxes.csv", **options):
    for image in ("a.png", "b.png"):
        if not (folder / image).exists():
            picture(folder / image)
    (folder / name).write_bytes(text.encode(**options))
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "a.png,1,2,3,4,bee\nb.png,,,,,\na.png,0,0,20,10,ant\n",
        "a.png,1,2,3,4,bee\nb.png,,,,,\na.png,0,0,20,10,ant",
        "Image_Path, X1, Y1, X2, Y2, Class\n./a.png, 1.0, 2e0, 3, 4, bee\nb.png,0,0,0,0,ant\n./a.png,0,0,20,10,ant",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,20,10,bee,1,2,3,4\nb.png,20,10,,,,,\n"
        "a.png,20,10,ant,0,0,20,10\n",
        "path;label;left;top;right;bottom;score\r\na.png;bee;1,0;2;3;4;x\r\nb.png;;;;;;\r\na.png;ant;0;0;20;10;\r\n",
        "x0\ty0\tx1\ty1\tname\timage\n1\t2\t3\t4\tbee\ta.png\n\t\t\t\t\tb.png\n0\t0\t20\t10\tant\ta.png\n",
        "\n\n" + HEADER + '"a.png",1,2,3,4,"bee"\n\n"b.png",,,,,\n,,,,,\n"a.png",0,0,20,10,ant\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_headers_separators_and_encodings(tmp_path, text, encoding):
    data = read_annotations(table(tmp_path, text, encoding=encoding))
    assert data.class_names == ["ant", "bee"] and data.notes == []
    assert [sample.path for sample in data.samples] == [tmp_path / "a.png", tmp_path / "b.png"]
    full, empty = data.samples
    assert full.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 20, 10]] and full.labels.tolist() == [1, 0]
    assert full.size == (HEIGHT, WIDTH) and empty.boxes.shape == (0, 4)
    assert read_csv(tmp_path / "boxes.csv", class_names=["cow", "bee", "ant"]).samples[0].labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    "name", ["C:\\data\\Bees\\A.PNG", "/home/x/a.png", "..\\a.png", "A", "a.jpeg", "sub/a", "images/a.png"]
)
def test_names_that_other_computers_wrote(tmp_path, name):
    path = table(tmp_path, f"{HEADER}{name},1,2,3,4,bee\n")
    data = read_csv(path)
    assert [sample.path for sample in data.samples] == [tmp_path / "a.png"]
    assert data.notes == [f"image names adapted: {name!r} is read as {tmp_path / 'a.png'}"]


def test_images_lie_in_a_folder_of_their_own(tmp_path):
    picture(tmp_path / "Images" / "deep" / "Ä.png")
    path = table(tmp_path, HEADER + "x\\DEEP\\A\u0308.png,1,2,3,4,bee\n")
    assert read_csv(path).samples[0].path == tmp_path / "Images" / "deep" / "Ä.png"
    picture(tmp_path / "other" / "c.png")
    path = table(tmp_path, HEADER + "c.png,1,2,3,4,bee\n")
    assert f"no file 'c.png' in {tmp_path} or {tmp_path / 'Images'}" in error_of(read_csv, path)
    assert read_csv(path, tmp_path / "other").samples[0].path == tmp_path / "other" / "c.png"
    assert "no such folder" in error_of(read_csv, path, tmp_path / "missing")


def test_names_that_fit_several_files_are_refused(tmp_path):
    for name in ("x.png", "x.jpg", "d/y.png", "D/Y.png"):
        picture(tmp_path / name)
    assert "'x' may be x.jpg or x.png" in error_of(read_csv, table(tmp_path, HEADER + "x,1,2,3,4,bee\n"))
    for name, path in (("x.jpg", "x.jpg"), ("d\\y", "d/y.png")):
        assert read_csv(table(tmp_path, f"{HEADER}{name},1,2,3,4,bee\n")).samples[0].path == tmp_path / path
    two = f"{HEADER}a.png,1,2,3,4,bee\n{tmp_path}/a.png,2,2,3,4,bee\n{tmp_path}/a.png,3,2,4,4,bee\n"
    line, data = only_problem(read_csv, table(tmp_path, two))
    assert "boxes.csv, line 3: the image '" in line and "is that of another annotation" in line
    assert data.samples[0].boxes.tolist() == [[1, 2, 3, 4]]


def test_fractions_and_edges_are_adapted_and_said(tmp_path):
    fractions = table(tmp_path, "ImageID,XMin,XMax,YMin,YMax,LabelName\na,0.25,0.5,0,1,bee\nb,0,1,0,1,bee\n")
    data = read_csv(fractions)
    assert data.samples[0].boxes.tolist() == [[5, 0, 10, 10]]
    assert "coordinates in 0..1 read as fractions of the image's width and height" in data.notes[0]
    assert read_csv(table(tmp_path, HEADER + "a.png,0,0,1,1,bee\n")).samples[0].boxes.tolist() == [[0, 0, 1, 1]]
    data = read_csv(table(tmp_path, HEADER + "a.png,-1,-0.5,21,10.5,bee\nb.png,-0.01,0,5,5,bee\n"))
    assert [sample.boxes.tolist() for sample in data.samples] == [[[0, 0, 20, 10]], [[0, 0, 5, 5]]]
    assert data.notes == [f"boxes up to a pixel over the edge, clipped: {tmp_path / 'boxes.csv'}, line 2"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("a.png,1,2,22,4,bee", "line 3: box 1, 2, 22, 4: outside the image, which is 20 pixels wide"),
        ("a.png,-1.5,2,22,4,bee", "line 3: box -1.5, 2, 22, 4: outside"),
        ("a.png,3,2,1,4,bee", "line 3: box 3, 2, 1, 4: reversed"),
        ("a.png,3,2,3,4,bee", "line 3: box 3, 2, 3, 4: no area"),
        ("a.png,nan,2,3,4,bee", "line 3: box nan, 2, 3, 4: not finite"),
        ("a.png,1,2,3,9e999,bee", "not finite"),
        ("a.png,1,,3,4,bee", "line 3: ymin is '', not a number"),
        ("a.png,1,2,x,4,bee", "line 3: xmax is 'x', not a number"),
        ("a.png,1,2,3,4,", "line 3: the class name is ''"),
        ("a.png,1,2,3", "line 3: 4 fields, not the 6"),
        ("a.png,1,2,3,4,bee", "line 3: box 1, 2, 3, 4: the same box and class 'bee'"),
        ("c.png,1,2,3,4,bee\nc.png,2,2,3,4,bee", "line 3: no file 'c.png' in"),
        (",1,2,3,4,bee", "line 3: the image's file name is ''"),
        ("../../etc/passwd,1,2,3,4,bee", "line 3: no file '../../etc/passwd' in"),
        ("x" * 5000 + ",1,2,3,4,bee", "line 3: the image's file name is 'xxx"),
    ],
)
def test_bad_lines_are_named_and_skipped(tmp_path, bad, problem):
    path = table(tmp_path, f"{HEADER}a.png,1,2,3,4,bee\n{bad}\nb.png,0,0,2,2,ant\n")
    line, data = only_problem(read_csv, path)
    assert line.startswith(f"{path}, ") and problem in line
    assert [sample.boxes.tolist() for sample in data.samples] == [[[1, 2, 3, 4]], [[0, 0, 2, 2]]]


def test_stated_sizes_must_agree(tmp_path):
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    path = table(tmp_path, header + "a.png,20,10,bee,1,2,3,4\na.png,10,20,bee,1,2,4,4\nb.png,0,,bee,1,2,3,4\n")
    line, data = only_problem(read_csv, path)
    assert "line 3: width 10 and height 20, but 20 and 10 in an earlier line" in line
    assert [sample.size for sample in data.samples] == [(HEIGHT, WIDTH)] * 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "no usable box in 0 images"),
        (b"image,x,y,w,h,label\n", "line 1: no column for xmin in 'image,x,y,w,h,label'; give a header"),
        (b"xmin,ymin,xmax,ymax\n", "no column for image, label in"),
        (b"image,x1,y1,x2,y2,x3,y3,x4,y4,label\n", "no column for xmin in"),
        (b"a.png,1,2,3,4\n", "no column for image, xmin, label in"),
        (b"image,xmin,ymin,xmax,ymax,label\na.png,1,2,3,4,B\xe4r\n", "no table of boxes (not text in UTF-8 (line 2)"),
        (b'image,xmin,ymin,xmax,ymax,label\n"' + b"x" * 200_000, "line 2: no table (field larger than"),
    ],
)
def test_files_that_are_no_tables_are_explained(tmp_path, text, problem):
    picture(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_bytes(text)
    assert problem in error_of(read_csv, tmp_path / "boxes.csv", skip_invalid=True)
    assert "no such file" in error_of(read_csv, tmp_path / "missing.csv")


def test_splits_are_tables_of_a_folder(tmp_path):
    table(tmp_path, HEADER + "a.png,1,2,3,4,bee\n", "annotations.csv")
    assert available_splits(tmp_path) == [] and len(read_annotations(tmp_path)) == 1
    table(tmp_path, HEADER + "a.png,1,2,3,4,bee\nb.png,1,2,3,4,bee\n", "val.csv")
    assert available_splits(tmp_path) == ["annotations", "val"]
    assert len(read_annotations(tmp_path, split="val")) == 2
    assert "it has several splits; give one of annotations, val" in error_of(read_annotations, tmp_path)
    assert "leave the split out" in error_of(read_annotations, tmp_path / "val.csv", split="val")
    (tmp_path / "list.dat").write_text("a.png,1,2,3,4,bee\n")
    assert len(read_annotations(tmp_path / "list.dat")) == 1, "the content counts"


def test_damaged_tables_give_an_input_error_or_valid_boxes(tmp_path):
    good = (HEADER + "".join(f"a.png,{i},1,{i + 2},3,bee\n" for i in range(9))).encode()
    path, rng, refused = table(tmp_path, ""), random.Random(5), 0
    for _ in range(200):
        path.write_bytes(damaged(good, rng, [None, b"", b"-", b"9e999", b'"', b"\0", b",", b"\n"]))
        refused += is_refused(tmp_path, read_csv, path, skip_invalid=True)
    assert 5 < refused < 150
