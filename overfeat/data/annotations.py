"""Images with boxes on disk: COCO JSON, PASCAL VOC XML, and the XML of ILSVRC's localization task.

Boxes are x1, y1, x2, y2 in pixels, continuous and half-open: the whole image is (0, 0, width, height).
"""

import json
import math
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from overfeat.data.annotated import Annotated, Sample, first_lines
from overfeat.data.folder import existing_folder, read_ilsvrc, some
from overfeat.data.images import MAX_PIXELS, opened
from overfeat.files import InputError

MAX_XML = 5_000_000  # bytes
MAX_LIST = 100_000_000  # bytes
MAX_JSON = 2_000_000_000  # bytes
MAX_SIDE = 1_000_000  # pixels that an annotation may state
COCO_OVERHANG = 0.02  # pixels: x and w are each rounded to hundredths
ORIENTATION = 0x0112  # the EXIF tag; 5 and above turn the image by 90 degrees
EDGES = ("xmin", "ymin", "xmax", "ymax")
LAYOUTS = (
    "give a COCO .json file, a folder with SPLIT.json and its split's name, a PASCAL VOC folder with Annotations/ "
    "and JPEGImages/, or a folder with VOC's XML files beside the images"
)
FilePath = str | os.PathLike
Names = Sequence[str] | None
_short = reprlib.Repr()
_short.maxstring = 100


def read_annotations(
    path: FilePath,
    images: FilePath | None = None,
    split: str | None = None,
    class_names: Names = None,
    *,
    skip_bad: bool = False,
) -> Annotated:
    """Read a .json file or a folder with SPLIT.json by read_coco, a folder with Annotations/ or XML by read_voc.

    The other arguments are those of the two. InputError for anything else, and for a split of a .json file.
    """
    path, given = Path(path), {"class_names": class_names, "skip_bad": skip_bad}
    if path.suffix.lower() == ".json" and not path.is_dir():
        if split is not None:
            raise InputError(f"{path}: a file has no split {split!r}; leave the split out, or give the file's folder")
        return read_coco(path, images, **given)
    if not path.is_dir():
        raise InputError(f"{path}: {'no annotations' if path.exists() else 'no such file or folder'}; {LAYOUTS}")
    if split is not None and os.path.isfile(path / f"{split}.json"):
        return read_coco(path / f"{split}.json", images, **given)
    if (path / "Annotations").is_dir() or _xml_files(path):
        return read_voc(path, split, images=images, **given)
    splits = sorted(file.stem for file in path.glob("*.json"))
    if splits:
        raise InputError(f"{path}: no split {split!r} in it; give one of {some(splits)}")
    raise InputError(f"{path}: no annotations in it; {LAYOUTS}")


def read_coco(
    json_path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_bad: bool = False
) -> Annotated:
    """Read a COCO file of instances; its images lie in `images` or else in the folder of the file itself.

    Classes are the categories by id, or class_names. Images come in the file's order, those without boxes
    too. Annotations with iscrowd=1 are left out. Bad annotations and images raise InputError with all of
    them counted and the first 20 named; with skip_bad they are left out, and an image stays when only its
    boxes were bad. InputError too for no box at all and for a file of another structure.
    """
    path = Path(json_path)
    data = _load_coco(path)
    root = path.parent if images is None else existing_folder(images)
    problems, taken, named = _Problems(path, skip_bad), set(), set()
    names: dict[int, str] = {}  # of the categories
    for where, entry in _entries(data, "categories", path, problems):
        with problems.at(where):
            name = _class_name(entry.get("name"), None)
            if entry["id"] in names or name in named:
                raise _Bad(f"its id or its name {_short.repr(name)} is that of an earlier category")
            names[entry["id"]] = name
            named.add(name)
    found: dict[int, _Image | None] = {}  # None: known, but bad
    for where, entry in _entries(data, "images", path, problems):
        with problems.at(where):
            if entry["id"] in found:
                raise _Bad("its id is that of an earlier image")
            found[entry["id"]] = None
            file = _image_file(root, entry.get("file_name"), taken)
            found[entry["id"]] = _Image(file, _size(entry.get("width"), entry.get("height"), file))
    classes = None if class_names is None else {name: name for name in class_names}
    for where, entry in _entries(data, "annotations", path, problems):
        if entry.get("iscrowd") == 1:
            continue
        with problems.at(where):
            image_id, category, box = (entry.get(key) for key in ("image_id", "category_id", "bbox"))
            if type(image_id) is not int or image_id not in found:
                raise _Bad(f"image_id {_short.repr(image_id)} is the id of no image")
            if type(category) is not int or category not in names:
                raise _Bad(f"category_id {_short.repr(category)} is the id of no category")
            if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
                raise _Bad(f"bbox is {_short.repr(box)}, not the four numbers [x, y, width, height]")
            x, y, wide, tall = (_number(v, "bbox") for v in box)
            name, image = _class_name(names[category], classes), found[image_id]
            if image is not None:
                image.add(f"bbox {_short.repr(box)}", (x, y, x + wide, y + tall), name, COCO_OVERHANG)
    order = [names[i] for i in sorted(names)] if class_names is None else class_names
    return problems.finish([image for image in found.values() if image], order)


def coco_ids(
    path: FilePath | None, names: Sequence[str], class_names: Sequence[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """The ids that a COCO file gives images, by file name, and categories, by name; without one, numbers from 1.

    Raises InputError for those that it lacks.
    """
    if path is None:
        return tuple({name: i for i, name in enumerate(given, 1)} for given in (names, class_names))
    path, found = Path(path), []
    data = _load_coco(path)
    for kind, key, wanted in (("images", "file_name", names), ("categories", "name", class_names)):
        entries = [entry for entry in data[kind] if isinstance(entry, dict) and type(entry.get("id")) is int]
        ids: dict[str, set[int]] = {}
        for entry in entries:
            name = Path(str(entry.get(key))).name if kind == "images" else str(entry.get(key))
            ids.setdefault(name, set()).add(entry["id"])
        lacking = [name for name in wanted if len(ids.get(name, ())) != 1]
        if lacking:
            raise InputError(
                f"{path}: has none, or several, of these {kind}: {some(lacking)}; give the annotations they are of"
            )
        found.append({name: min(ids[name]) for name in wanted})
    return found[0], found[1]


def read_voc(
    folder: FilePath,
    split: str | None = None,
    *,
    images: FilePath | None = None,
    class_names: Names = None,
    skip_bad: bool = False,
) -> Annotated:
    """Read PASCAL VOC: Annotations/*.xml with JPEGImages/, or a flat folder of XML files and images.

    split: the files that ImageSets/Main/SPLIT.txt names, in its order. images: another folder for the
    images, which are found by <filename>. Classes are the names found, sorted (so splits may differ), or
    class_names. Coordinates are counted from 1 and inclusive. Boxes of <part> are ignored. Bad boxes and
    files, skip_bad and InputError as for read_coco.
    """
    folder = existing_folder(folder)
    whole = (folder / "Annotations").is_dir()
    xmls = folder / "Annotations" if whole else folder
    root = existing_folder(images if images is not None else folder / "JPEGImages" if whole else folder)
    problems, taken, found = _Problems(folder, skip_bad), set(), []
    classes = None if class_names is None else {name: name for name in class_names}
    if split is None:
        names = _xml_files(xmls)
    else:
        lines = _lines(folder / "ImageSets" / "Main" / f"{split}.txt", "give a split with a list there, or none")
        names = [f"{line}.xml" for line in lines if line]
    for name in names:
        with problems.at(xmls / name):
            xml = _inside(xmls, name)
            tree = _parse(xml)
            image = _image_file(root, _text(tree, "filename"), taken)
            found.append(_boxes(xml, tree, image, classes, problems))
    return problems.finish(found, class_names)


def read_ilsvrc_boxes(
    devkit: FilePath, images: FilePath, annotations: FilePath, split: str, *, skip_bad: bool = False
) -> Annotated:
    """Read ILSVRC's images as read_ilsvrc does, and their boxes from XML files of the same stem.

    split "train": annotations/WNID/STEM.xml or annotations/STEM.xml; images without one are left out.
    split "validation": annotations/STEM.xml for every image. Coordinates are counted from 0 and inclusive;
    boxes that overhang the stated size by one pixel are clipped. Classes are those of read_ilsvrc, whatever
    images there are; <name> is the WNID. Bad boxes and files, skip_bad and InputError as for read_coco.
    """
    folder = read_ilsvrc(devkit, images, split)
    annotations = existing_folder(annotations)
    classes = {name.split()[0]: name for name in folder.class_names}
    xmls = {(xml.parent.name, xml.stem): xml for xml in annotations.glob("*/*.xml")} if split == "train" else {}
    xmls |= {("", xml.stem): xml for xml in annotations.glob("*.xml")}
    problems, found = _Problems(annotations, skip_bad), []
    for path, _ in folder.samples:
        xml = xmls.get((path.parent.name, path.stem)) or xmls.get(("", path.stem))
        if xml or split == "validation":
            xml = xml or annotations / f"{path.stem}.xml"
            with problems.at(xml):
                found.append(_boxes(xml, _parse(xml), path, classes, problems, ilsvrc=True))
    return problems.finish(found, folder.class_names)


def read_blacklist(path: FilePath) -> set[int]:
    """The numbers of ILSVRC's blacklisted validation images: one a line. InputError names a bad line."""
    lines = _lines(Path(path), "give the development kit's list of blacklisted images")
    for number, line in enumerate(lines, 1):
        if not re.fullmatch("([0-9]{1,9})?", line):
            raise InputError(f"{path}, line {number}: the number of an image is needed, not {_short.repr(line)}")
    return {int(line) for line in lines if line}


def read_pairs(path: FilePath) -> set[tuple[int, str]]:
    """ILSVRC detection's blacklist: (number of an image from 1, class), one a line. InputError names a bad line."""
    pairs = set()
    for number, line in enumerate(_lines(Path(path), "give the development kit's list"), 1):
        image, _, name = line.partition(" ")
        if not line:
            continue
        if not re.fullmatch("[0-9]{1,9}", image) or not name.strip():
            raise InputError(
                f"{path}, line {number}: the number of an image and a class are needed, not {_short.repr(line)}"
            )
        pairs.add((int(image), name.strip()))
    return pairs


class _Bad(Exception):
    """What is wrong, and the line where the place does not tell it."""

    def __init__(self, what: str, line: int | None = None):
        super().__init__(what)
        self.line = line


@dataclass
class _Image:
    path: Path
    size: tuple[int, int]
    objects: dict[tuple[tuple[float, ...], str], bool] = field(default_factory=dict)  # (box, class): difficult

    def add(self, said: str, box: tuple[float, ...], name: str, overhang: float, difficult: bool = False) -> None:
        """Check a box and keep it, clipped; overhang: pixels it may reach past the right and lower edges."""
        x1, y1, x2, y2 = box
        height, width = self.size
        if not all(map(math.isfinite, box)):
            raise _Bad(f"{said}: not finite")
        if x2 < x1 or y2 < y1:
            raise _Bad(f"{said}: reversed; the right and lower edges come second")
        if x2 == x1 or y2 == y1:
            raise _Bad(f"{said}: no area")
        inside = 0 <= x1 < width and 0 <= y1 < height
        if not inside or x2 > width + overhang or y2 > height + overhang:
            raise _Bad(f"{said}: outside the image, which is {width} pixels wide and {height} high")
        key = (x1, y1, min(x2, float(width)), min(y2, float(height))), name
        if key in self.objects:
            raise _Bad(f"{said}: the same box and class {_short.repr(name)} as an earlier one of the image")
        self.objects[key] = difficult


class _Problems:
    """Collects what is bad in one data set, and makes the data set of what is left."""

    def __init__(self, source: Path, skip: bool):
        self.source, self.skip, self.lines = source, skip, []

    @contextmanager
    def at(self, place: object) -> Iterator[None]:
        """What is bad in the block belongs to this place and ends the block."""
        try:
            yield
        except _Bad as bad:
            self.lines.append(f"{place}{f', line {bad.line}' if bad.line else ''}: {bad}")

    def finish(self, images: list[_Image], class_names: Names) -> Annotated:
        """class_names None: the names of the boxes, sorted."""
        found = {name for image in images for _, name in image.objects}
        count = f"{len(self.lines)} problem{'s' if len(self.lines) != 1 else ''} in the annotations"
        shown = first_lines(self.lines)
        if self.lines and not self.skip:
            remedy = "put these right, or leave the bad boxes and images out: --skip-bad, or skip_bad=True"
            raise InputError(f"{self.source}: {count}:{shown}\n{remedy}")
        if not found:
            told = f"{count}:{shown}\n" if self.lines else ""
            what = f"no usable box in {len(images)} images; "
            raise InputError(f"{self.source}: {what}{told}give annotations with at least one good box")
        names = sorted(found) if class_names is None else list(class_names)
        label_of = {name: label for label, name in enumerate(names)}
        samples = []
        for image in images:
            boxes = np.array([box for box, _ in image.objects], dtype=np.float64).reshape(-1, 4)
            labels = np.array([label_of[name] for _, name in image.objects], dtype=np.int64)
            difficult = np.array(list(image.objects.values()), dtype=bool)
            samples.append(Sample(image.path, boxes, labels, difficult, image.size))
        return Annotated(names, samples, self.lines)


def _class_name(name: Any, classes: Mapping[str, str] | None) -> str:
    """The class of a name in a file; classes None: any text of one line that can be written to a file."""
    if not isinstance(name, str) or not name or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise _Bad(f"the name of the class is {_short.repr(name)}; a line of text is needed")
    if classes is not None and name not in classes:
        raise _Bad(f"unknown class {_short.repr(name)}; there are {len(classes)}: {some(list(classes.values()))}")
    return name if classes is None else classes[name]


def _number(value: Any, what: str) -> float:
    """A number in JSON, or text of XML; infinite where float64 does not reach."""
    try:
        if type(value) in (int, float) or (isinstance(value, str) and "_" not in value):
            return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    raise _Bad(f"{what} is {_short.repr(value)}, no number")


def _read_bytes(path: Path, limit: int) -> bytes:
    if not os.path.isfile(path):
        raise _Bad("no such file")
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise _Bad(f"{size:,} bytes, more than the limit of {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise _Bad(f"may not be read ({error.strerror})") from error


def _lines(path: Path, remedy: str) -> list[str]:
    try:
        return [line.strip() for line in _read_bytes(path, MAX_LIST).decode(errors="replace").splitlines()]
    except _Bad as error:
        raise InputError(f"{path}: {error}; {remedy}") from error


def _inside(root: Path, name: Any) -> Path:
    """root/name, which exists and lies below root; Windows' ways out of it are refused everywhere."""
    if not isinstance(name, str) or not name:
        raise _Bad(f"the file name is {_short.repr(name)}; text is needed")
    if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise _Bad(f"the file name {_short.repr(name)} leaves the folder {root}; names must stay inside it")
    if not os.path.isfile(root / name):
        raise _Bad(f"no file {_short.repr(name)} in {root}")
    return root / name


def _image_file(root: Path, name: Any, taken: set[Path]) -> Path:
    path = _inside(root, name)
    if path in taken:
        raise _Bad(f"the image {_short.repr(name)} is that of an earlier annotation")
    taken.add(path)
    return path


def _size(width: Any, height: Any, image: Path) -> tuple[int, int]:
    """(height, width) as stated; where missing, empty or 0, that of the image, upright."""
    sides = [0.0 if side in (None, "") else _number(side, "the size") for side in (height, width)]
    if 0.0 in sides:
        try:
            with open(image, "rb") as file, opened(file, image, MAX_PIXELS) as header:
                return header.size if header.getexif().get(ORIENTATION, 1) >= 5 else header.size[::-1]
        except Exception as error:  # Pillow's decoders raise many kinds for broken data
            raise _Bad(f"no size is stated, and the image does not tell it ({' '.join(str(error).split())})") from error
    if not all(side.is_integer() and 1 <= side <= MAX_SIDE for side in sides):
        raise _Bad(f"width {_short.repr(width)} and height {_short.repr(height)} are no numbers of pixels")
    return int(sides[0]), int(sides[1])


def _load_coco(path: Path) -> dict[str, list]:
    try:
        data = json.loads(_read_bytes(path, MAX_JSON))
    except (_Bad, ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: no COCO annotations ({what}); give a JSON file of instances") from error
    lists = ("images", "annotations", "categories")
    missing = [kind for kind in lists if not (isinstance(data, dict) and isinstance(data.get(kind), list))]
    if missing:
        raise InputError(f"{path}: no COCO annotations: no lists {', '.join(missing)}; give a JSON file of instances")
    return data


def _entries(data: dict[str, list], kind: str, path: Path, problems: _Problems) -> Iterator[tuple[str, dict]]:
    """(place, entry) of the entries of a list that have an id."""
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    for i, entry in enumerate(data[kind]):
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            yield f"{path}, {noun} {_short.repr(entry['id'])}", entry
        else:
            with problems.at(f"{path}, {kind}[{i}]"):
                raise _Bad("no integer id" if isinstance(entry, dict) else f"{_short.repr(entry)} is no object")


def _xml_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*.xml") if entry.name[0] != ".")


def _parse(path: Path) -> Element:
    """The root of an XML file; attributes are left out, but an <object> has its line, an int.

    A DOCTYPE is refused where it starts, in any encoding: before an entity can be declared, let alone expanded.
    """
    data, builder, parser = _read_bytes(path, MAX_XML), TreeBuilder(), expat.ParserCreate()

    def refuse(*_) -> None:
        raise _Bad("a DOCTYPE, which may declare entities; remove it", parser.CurrentLineNumber)

    def start(tag: str, _: dict) -> None:
        builder.start(tag, {"line": parser.CurrentLineNumber} if tag == "object" else {})

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    parser.EndElementHandler, parser.CharacterDataHandler = builder.end, builder.data
    try:
        parser.Parse(data, True)
        root = builder.close()
    except _Bad:
        raise
    except Exception as error:  # besides expat's own, what codecs raise for a false encoding
        raise _Bad(f"not XML ({error})", parser.CurrentLineNumber) from error
    if root.tag != "annotation":
        raise _Bad(f"the outermost element is {_short.repr(root.tag)}, not 'annotation'")
    return root


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _boxes(
    xml: Path, tree: Element, path: Path, classes: Mapping[str, str] | None, problems: _Problems, ilsvrc: bool = False
) -> _Image:
    """The image of one XML file, with its good boxes; VOC counts pixels from 1, ILSVRC from 0."""
    image = _Image(path, _size(_text(tree, "size/width"), _text(tree, "size/height"), path))
    first, overhang = (0, 1.0) if ilsvrc else (1, 0.0)
    for node in tree.iterfind("object"):
        with problems.at(f"{xml}, line {node.get('line')}"):
            name = _class_name(_text(node, "name"), classes)
            values = [_number(_text(node, f"bndbox/{edge}"), edge) for edge in EDGES]
            flag = "" if ilsvrc else _text(node, "difficult")
            if flag not in ("", "0", "1"):
                raise _Bad(f"difficult is {_short.repr(flag)}, neither 0 nor 1")
            said = ", ".join(f"{edge} {value:.10g}" for edge, value in zip(EDGES, values, strict=True))
            x1, y1, x2, y2 = (value - first for value in values)
            image.add(f"{said} (counted from {first})", (x1, y1, x2 + 1, y2 + 1), name, overhang, flag == "1")
    return image
