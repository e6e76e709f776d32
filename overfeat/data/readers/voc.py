"""Images with boxes in PASCAL VOC's XML, and in that of ILSVRC's localization task."""

import codecs
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from overfeat.data.annotated import Annotated
from overfeat.data.images import SUFFIXES
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.data.readers.locate import ANNOTATIONS, ImageLocator, image_roots, subfolders, walk
from overfeat.files import existing_dir

MAX_XML = 5_000_000  # bytes
XML = (".xml",)
SHAPES = ("robndbox", "polygon", "segm")  # what tools write for a box that is rotated, or an outline
EDGES = ("xmin", "ymin", "xmax", "ymax")
# The codec for a declared encoding, by Python's name for it: of those that extend each other the largest. A declaration
# of UTF-16 that can be read as bytes is false.
CODECS = {
    "utf-8": "utf-8", "utf-16": "utf-8", "gb2312": "gb18030", "gbk": "gb18030", "gb18030": "gb18030", "big5": "cp950",
    "cp950": "cp950", "shift_jis": "cp932", "cp932": "cp932", "euc_jp": "euc_jp", "euc_kr": "cp949", "cp949": "cp949",
}  # fmt: skip


def read_voc(
    folder: FilePath, split: str | None = None, *, images: FilePath | None = None, class_names: Names = None,
    skip_invalid: bool = False,
) -> Annotated:  # fmt: skip
    """Read PASCAL VOC: XML files in Annotations/ with JPEGImages/, XML files beside images, or one XML file.

    Folders below are read, too. Coordinates count from 1 and are inclusive; boxes that count from 0 are clipped. Boxes
    of <part> are ignored.

    Args:
        split: The files that ImageSets/Main/SPLIT.txt lists, in its order; None: all, by name.
        images: Another folder of the images, which are those of <filename>, else those named as their XML. Where
            several files name one image, it is that of the file named as the image.
        class_names: The classes; None: the names that occur, sorted, so splits may differ.
        skip_invalid: Skip invalid boxes and files; otherwise they raise InputError, as in `read_coco`.
    """
    source = Path(folder)
    single = source.is_file() or (source.suffix.lower() in XML and not source.is_dir())
    xmls = source.parent if single else existing_dir(source)
    below = [] if single else subfolders(xmls, ANNOTATIONS)
    xmls = next((path for path in below if any(walk(path, XML))), xmls)
    problems = Problems(source, skip_invalid)
    locator = ImageLocator(image_roots(xmls, images), problems)
    classes = None if class_names is None else {name: name for name in class_names}
    if split is None or single:
        files = [source] if single else list(walk(xmls, XML))
    else:
        files = _listed(source / "ImageSets" / "Main" / f"{split}.txt", xmls, problems)
    annotated: list[ImageBoxes] = []
    locator.claim_files(files, xmls, _names_of_image)
    for file in filter(locator.claims.get, files):
        with problems.at(file):  # a second reading takes less memory than to keep what all files hold
            image = locator.image_of(file)
            annotated.append(image_boxes(file, parse_xml(file), image, classes, problems))
    if split is None and not single:
        locator.note_others()
    return problems.finish(annotated, class_names)


def _names_of_image(xml: Path) -> tuple[str, str]:
    tree = parse_xml(xml)
    name = _text(tree, "filename")
    return name, f"{_text(tree, 'folder')}/{name}"


def _listed(listing: Path, xmls: Path, problems: Problems) -> list[Path]:
    """The XML files that a list names by stem, with the suffix of the image or their own, or with a flag -1, 0 or 1."""
    locator, files = ImageLocator([xmls], problems, remedy=""), list[Path]()
    for line in dict.fromkeys(checks.text_lines(listing, "give a split with a list there, or none")):
        with problems.at(xmls / _xml_name(line)):
            try:
                files += [locator.locate(_xml_name(line))[0]] if line else []
            except Invalid:
                flagged = re.fullmatch(r"(.*\S)\s+-?[01]", line)
                if not flagged:
                    raise
                files.append(locator.locate(_xml_name(flagged[1]))[0])
    return files


def _xml_name(line: str) -> str:
    stem, suffix = os.path.splitext(line)
    return f"{stem if suffix.lower() in SUFFIXES + XML else line}.xml"


def parse_xml(path: Path) -> Element:
    """The root of an XML file, without attributes, except that an <object> has its line, an int.

    A DOCTYPE is refused at its start, in any encoding: before an entity can be declared, let alone expanded.
    """
    data, builder = checks.read_bytes(path, MAX_XML), TreeBuilder()
    codec = _codec(data)
    parser = expat.ParserCreate("utf-8" if codec else None)

    def refuse(*_: Any) -> None:
        raise Invalid("a DOCTYPE, which may declare entities; remove it", parser.CurrentLineNumber)

    def start(tag: str, _: dict) -> None:
        builder.start(tag, {"line": parser.CurrentLineNumber} if tag == "object" else {})

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    parser.EndElementHandler, parser.CharacterDataHandler = builder.end, builder.data
    try:
        parser.Parse(data.decode(codec, "replace").encode() if codec else data, True)
        root = builder.close()
    except Invalid:
        raise
    except Exception as error:  # expat's own, and what codecs raise for a false encoding
        raise Invalid(f"not XML ({error})", parser.CurrentLineNumber) from error
    if root.tag != "annotation":
        raise Invalid(f"the outermost element is {quoted.repr(root.tag)}, not 'annotation'")
    return root


def _codec(data: bytes) -> str | None:
    """Python's codec for an encoding that expat lacks, and for UTF-8; None: expat reads it, or refuses it.

    Undecodable bytes are harmless in elements that are not used; `image_boxes` refuses them in names.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"<\0", b"\0<")):
        return None
    declared = re.match(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]{1,40})["']""", data[:400])
    try:
        name = codecs.lookup(declared[1].decode()).name if declared else "utf-8"
    except LookupError:
        return None
    return "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else CODECS.get(name)


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def image_boxes(
    xml: Path, tree: Element, path: Path, classes: Mapping[str, str] | None, problems: Problems, ilsvrc: bool = False
) -> ImageBoxes:
    """The image of one XML file, with its valid boxes; VOC counts pixels from 1, ILSVRC from 0."""
    image = ImageBoxes(path, checks.stated_size(_text(tree, "size/width"), _text(tree, "size/height"), path))
    first = 0 if ilsvrc else 1
    for node in tree.iterfind("object"):
        with problems.at(f"{xml}, line {node.get('line')}"):
            name = checks.class_name(_text(node, "name"), classes)
            if "\ufffd" in name:
                raise Invalid(f"the class name {quoted.repr(name)} is in another encoding; save the file as UTF-8")
            shape = next((child.tag for child in node if child.tag in SHAPES), None)
            if shape and node.find("bndbox") is None:
                raise Invalid(f"it has a {shape} and no bndbox; convert it to the box around it")
            values = [checks.number(_text(node, f"bndbox/{edge}"), edge) for edge in EDGES]
            difficult = not ilsvrc and checks.flag(_text(node, "difficult"), "difficult")
            text = ", ".join(f"{edge} {value:.10g}" for edge, value in zip(EDGES, values, strict=True))
            x1, y1, x2, y2 = (value - first for value in values)
            box = x1, y1, x2 + 1, y2 + 1
            image.add(f"{text} (counted from {first})", box, name, problems, difficult, first)
    return image
