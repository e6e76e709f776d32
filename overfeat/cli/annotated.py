"""Annotated images that a command works on: their options, and reading them."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.data.formats import IMAGE_FORMATS
from overfeat.errors import InputError, printable, shorten

if TYPE_CHECKING:
    from overfeat.data.annotated import Annotated
    from overfeat.models.net import Net

# Names of a split in a folder; the first that exists is read.
TRAINING, VALIDATION = ("train", "trainval"), ("validation", "val", "valid")
TESTING = ("test", *VALIDATION)


def add_annotated_options(group: argparse._ActionsContainer, splits: Sequence[str]) -> None:
    """The options that name annotated images; `read_annotated` reads them."""
    text = "a file or folder of COCO (.json), PASCAL VOC (.xml), LabelMe (.json), YOLO (data.yaml, or labels/ beside "
    text += "images/), or a .csv table of image, xmin, ymin, xmax, ymax, label; with --devkit the ILSVRC images. "
    text += f"Images are {IMAGE_FORMATS} files"
    group.add_argument("--data", type=Path, required=True, metavar="PATH", help=text)
    group.add_argument("--split", metavar="NAME", help=f"of a folder (default: {' or '.join(splits)})")
    group.add_argument("--images", type=Path, metavar="DIR", help="the images, if they do not lie beside --data")
    group.add_argument("--devkit", type=Path, metavar="DIR", help="the ILSVRC2012 development kit")
    group.add_argument("--boxes", type=Path, metavar="DIR", help="with --devkit: the folder of XML files")
    help = "keep only the boxes of these classes; OLD=NEW renames, and merges classes with one new name"
    group.add_argument("--classes", type=parse_classes, metavar="NAME[=NEW],...", help=help)
    group.add_argument("--skip-invalid", action="store_true", help="leave invalid annotations out, do not stop")


def parse_classes(text: str) -> dict[str, str]:
    """The new name of each class in "Dead=Tree,Alive=Tree,Bush"; names with commas are in double quotes."""
    mapping: dict[str, str] = {}
    try:
        entries = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names ({error})") from error
    for entry in entries:
        old, equals, new = (part.strip() for part in entry.partition("="))
        if not old or (equals and not new):
            raise argparse.ArgumentTypeError(f"{entry!r} is neither NAME nor OLD=NEW")
        if old in mapping:
            raise argparse.ArgumentTypeError(f"class {old!r} twice")
        mapping[old] = new or old
    if not mapping:
        raise argparse.ArgumentTypeError("no names of classes")
    return mapping


def read_annotated(
    args: argparse.Namespace, path: Path, splits: Sequence[str], split: str | None = None,
    images: Path | None = None, boxes: Path | None = None,
) -> "Annotated":  # fmt: skip
    """Read the annotations at `path`, of a folder the given split or the first of `splits` that it has.

    `images` and `boxes` stand in for --images and --boxes. Annotations that are left out are listed on stderr, and so
    is what was read otherwise than written. --classes selects from the classes there are.
    """
    from overfeat.data.annotated import select_classes
    from overfeat.data.readers.annotations import available_splits, read_annotations
    from overfeat.data.readers.ilsvrc import read_ilsvrc_boxes

    if args.devkit:
        if not args.boxes:
            raise InputError("--devkit needs --boxes, the folder of ILSVRC's XML files")
        if args.classes:
            raise InputError("--classes does not apply with --devkit, whose classes are those of the kit; leave it out")
        kind = "train" if splits == TRAINING else "validation"
        data = read_ilsvrc_boxes(args.devkit, path, boxes or args.boxes, kind, skip_invalid=args.skip_invalid)
    else:
        existing = available_splits(path)
        split = split or next((name for name in splits if name in existing), None)
        if split is None and existing:
            others = f"has none of the splits {', '.join(splits)}, but {shorten(existing)}"
            raise InputError(f"{path}: {others}; name the file, or the split with --split")
        data = read_annotations(path, images or args.images, split, skip_invalid=args.skip_invalid)
    report_problems(data, "invalid annotations")
    notes = data.notes
    if args.classes and splits == VALIDATION:
        # Beside training data, with which names were checked and the notes given; it may lack some of the classes.
        present = {old: new for old, new in args.classes.items() if old in data.class_names}
        data = select_classes(data, present or args.classes)
    elif args.classes:
        data = select_classes(data, args.classes)
        notes = data.notes
    if notes:
        print(*(printable(f"{path}: {note}") for note in notes), sep="\n", file=sys.stderr)
    return data


def report_problems(data: "Annotated", kind: str) -> None:
    """List on stderr what was left out, if anything was."""
    if data.problems:
        print(f"left out: {len(data.problems)} {kind}", *map(printable, data.problems), sep="\n  ", file=sys.stderr)


def adopt_class_names(net: "Net", names: Sequence[str]) -> None:
    """Give a net without class names, such as a released one, those of the data, which are in the same order."""
    if net.class_names == [f"class {i}" for i in range(net.num_classes)]:
        net.class_names = list(names[: net.num_classes])
