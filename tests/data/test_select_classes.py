"""Choosing, merging and renaming classes of annotated images."""

from argparse import ArgumentTypeError

import numpy as np
import pytest
from annotation_files import error_of, picture

from overfeat.cli.annotated import TESTING, VALIDATION, parse_classes, read_annotated
from overfeat.cli.main import build_parser
from overfeat.data.annotated import select_classes
from overfeat.data.readers.csv import read_csv

BOXES = "a.png,1,1,3,3,Dead\na.png,1,1,3,3,Alive\na.png,2,2,3,3,Alive\nb.png,1,1,3,3,Bush\n"


@pytest.fixture
def trees(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "test.csv").write_text(BOXES)
    return tmp_path / "test.csv"


def test_classes_are_merged_renamed_and_left_out(trees):
    data = read_csv(trees)
    merged = select_classes(data, {"Dead": "Tree", "Alive": "Tree"})
    assert merged.class_names == ["Tree"] and len(merged) == 2
    assert merged.samples[0].boxes.tolist() == [[1, 1, 3, 3], [2, 2, 3, 3]], "a box of both classes is one box"
    assert merged.samples[0].labels.tolist() == [0, 0] and merged.samples[0].labels.dtype == np.int64
    assert merged.samples[1].boxes.shape == (0, 4) and merged.samples[1].difficult.shape == (0,)
    assert merged.notes == ["class Tree: Dead (1 box) + Alive (2 boxes)", "classes left out: Bush (1 box)"]
    chosen = select_classes(data, {"Bush": "Bush", "Alive": "Tree"})
    assert chosen.class_names == ["Bush", "Tree"] and [s.labels.tolist() for s in chosen.samples] == [[1, 1], [0]]
    assert chosen.notes == ["class Tree: Alive (2 boxes)", "classes left out: Dead (1 box)"]
    swapped = select_classes(data, {"Dead": "Alive", "Alive": "Dead", "Bush": "Bush"})
    assert swapped.class_names == ["Alive", "Dead", "Bush"] and swapped.samples[0].labels.tolist() == [0, 1, 1]
    same = select_classes(data, {name: name for name in data.class_names})
    assert same.fingerprint == data.fingerprint and same.notes == []


def test_unknown_classes_are_refused(trees):
    data = read_csv(trees)
    message = error_of(select_classes, data, {"Dead": "Tree", "alive": "Tree"})
    assert message == "classes that the data do not have: alive; there are 3: Alive, Bush, Dead"
    unused = read_csv(trees, class_names=["Dead", "Alive", "Bush", "Palm"])
    assert "no box of the classes Palm" in error_of(select_classes, unused, {"Palm": "Palm"})


def test_the_text_of_the_option():
    assert parse_classes("Dead=Tree, Alive = Tree ,Bush") == {"Dead": "Tree", "Alive": "Tree", "Bush": "Bush"}
    assert parse_classes('"kit fox, Vulpes"=fox,a b') == {"kit fox, Vulpes": "fox", "a b": "a b"}
    for text in ("", ",", "a=", "=b", "a,a", "a\rb"):
        with pytest.raises(ArgumentTypeError):
            parse_classes(text)


def test_the_command_line_says_once_what_was_done(trees, capsys):
    def read(classes, splits=TESTING):
        args = ["evaluate", "detector", "--weights", "x", "--data", str(trees), "--classes", classes]
        return read_annotated(build_parser().parse_args(args), trees, splits)

    assert read("Dead=Tree,Alive=Tree").class_names == ["Tree"]
    notes = ["class Tree: Dead (1 box) + Alive (2 boxes)", "classes left out: Bush (1 box)"]
    assert capsys.readouterr().err.splitlines() == [f"{trees}: {note}" for note in notes]
    assert "classes that the data do not have: Oak; there are 3: Alive, Bush, Dead" in error_of(read, "Bush,Oak")
    assert read("Bush,Oak", VALIDATION).class_names == ["Bush"], "the names were checked on the training data"
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        read("a=,b")
    assert "argument --classes: 'a=' is neither NAME nor OLD=NEW" in capsys.readouterr().err
