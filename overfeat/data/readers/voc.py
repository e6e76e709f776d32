"""Images with boxes in PASCAL VOC's XML, and in that of ILSVRC's localization task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.files import existing_dir

MAX_XML = 5_000_000  # bytes
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    folder: FilePath, split: str | None = None, *, images: FilePath | None = None, class_names: Names = None,
    skip_invalid: bool = False,
) -> Annotated:  # fmt: skip
    """Read PASCAL VOC: Annotations/*.xml with JPEGImages/, a flat folder of XML files and images, or one XML file.

    Coordinates count from 1 and are inclusive. Boxes of <part> are ignored.

    Args:
        split: The files that ImageSets/Main/SPLIT.txt lists, in its order; None: all, by name.
        images: Another folder of the images, which are those of <filename>.
        class_names: The classes; None: the names that occur, sorted, so splits may differ.
        skip_invalid: Skip invalid boxes and files; otherwise they raise InputError, as in `read_coco`.
    """
    source = Path(folder)
    single = source.suffix.lower() == ".xml" and not source.is_dir()
    xmls = source.parent if single else existing_dir(source)
    folder = xmls.parent if single and xmls.name == "Annotations" else xmls
    flat = not (folder / "Annotations").is_dir()
    xmls = folder if flat else folder / "Annotations"
    root = existing_dir(images if images is not None else folder if flat else folder / "JPEGImages")
    problems, used = Problems(source, skip_invalid), set[Path]()
    annotated: list[ImageBoxes] = []
    classes = None if class_names is None else {name: name for name in class_names}
    if single:
        names = [source.name]
    elif split is None:
        names = xml_files(xmls)
    else:
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        lines = checks.text_lines(listing, "give a split with a list there, or none")
        names = [f"{line}.xml" for line in lines if line]
    for name in names:
        with problems.at(xmls / name):
            xml = checks.file_below(xmls, name)
            tree = parse_xml(xml)
            image = checks.image_file(root, _text(tree, "filename"), used)
            annotated.append(image_boxes(xml, tree, image, classes, problems))
    return problems.finish(annotated, class_names)


def xml_files(folder: Path) -> list[str]:
    """Names of the XML files in a folder, sorted."""
    return sorted(entry.name for entry in folder.glob("*.xml") if entry.name[0] != ".")


def parse_xml(path: Path) -> Element:
    """The root of an XML file, without attributes, except that an <object> has its line, an int.

    A DOCTYPE is refused at its start, in any encoding: before an entity can be declared, let alone expanded.
    """
    data, builder, parser = checks.read_bytes(path, MAX_XML), TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise Invalid("a DOCTYPE, which may declare entities; remove it", parser.CurrentLineNumber)

    def start(tag: str, _: dict) -> None:
        builder.start(tag, {"line": parser.CurrentLineNumber} if tag == "object" else {})

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    parser.EndElementHandler, parser.CharacterDataHandler = builder.end, builder.data
    try:
        parser.Parse(data, True)
        root = builder.close()
    except Invalid:
        raise
    except Exception as error:  # expat's own, and what codecs raise for a false encoding
        raise Invalid(f"not XML ({error})", parser.CurrentLineNumber) from error
    if root.tag != "annotation":
        raise Invalid(f"the outermost element is {quoted.repr(root.tag)}, not 'annotation'")
    return root


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def image_boxes(
    xml: Path, tree: Element, path: Path, classes: Mapping[str, str] | None, problems: Problems, ilsvrc: bool = False
) -> ImageBoxes:
    """The image of one XML file, with its valid boxes; VOC counts pixels from 1, ILSVRC from 0."""
    image = ImageBoxes(path, checks.stated_size(_text(tree, "size/width"), _text(tree, "size/height"), path))
    first, overhang = (0, 1.0) if ilsvrc else (1, 0.0)
    for node in tree.iterfind("object"):
        with problems.at(f"{xml}, line {node.get('line')}"):
            name = checks.class_name(_text(node, "name"), classes)
            values = [checks.number(_text(node, f"bndbox/{edge}"), edge) for edge in EDGES]
            flag = "" if ilsvrc else _text(node, "difficult")
            if flag not in ("", "0", "1"):
                raise Invalid(f"difficult is {quoted.repr(flag)}, not 0 or 1")
            text = ", ".join(f"{edge} {value:.10g}" for edge, value in zip(EDGES, values, strict=True))
            x1, y1, x2, y2 = (value - first for value in values)
            image.add(f"{text} (counted from {first})", (x1, y1, x2 + 1, y2 + 1), name, overhang, flag == "1")
    return image
