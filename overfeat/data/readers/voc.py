"""Images with boxes in PASCAL VOC's XML, and in that of ILSVRC's localization task.

Boxes are x1, y1, x2, y2 in pixels, continuous and half-open: the whole image is (0, 0, width, height).
"""

from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from overfeat.data.annotated import Annotated
from overfeat.data.readers.checks import (
    Bad,
    FilePath,
    ImageBoxes,
    Names,
    Problems,
    class_name,
    image_file,
    inside,
    number,
    read_bytes,
    short,
    stated_size,
    text_lines,
)
from overfeat.files import existing_dir

MAX_XML = 5_000_000  # bytes
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    folder: FilePath,
    split: str | None = None,
    *,
    images: FilePath | None = None,
    class_names: Names = None,
    skip_invalid: bool = False,
) -> Annotated:
    """Read PASCAL VOC: Annotations/*.xml with JPEGImages/, or a flat folder of XML files and images.

    split: the files that ImageSets/Main/SPLIT.txt names, in its order. images: another folder for the
    images, which are found by <filename>. Classes are the names found, sorted (so splits may differ), or
    class_names. Coordinates are counted from 1 and inclusive. Boxes of <part> are ignored. Bad boxes and
    files, skip_invalid and InputError as for read_coco.
    """
    folder = existing_dir(folder)
    whole = (folder / "Annotations").is_dir()
    xmls = folder / "Annotations" if whole else folder
    root = existing_dir(images if images is not None else folder / "JPEGImages" if whole else folder)
    problems, taken, found = Problems(folder, skip_invalid), set(), []
    classes = None if class_names is None else {name: name for name in class_names}
    if split is None:
        names = xml_files(xmls)
    else:
        lines = text_lines(folder / "ImageSets" / "Main" / f"{split}.txt", "give a split with a list there, or none")
        names = [f"{line}.xml" for line in lines if line]
    for name in names:
        with problems.at(xmls / name):
            xml = inside(xmls, name)
            tree = parse_xml(xml)
            image = image_file(root, _text(tree, "filename"), taken)
            found.append(image_boxes(xml, tree, image, classes, problems))
    return problems.finish(found, class_names)


def xml_files(folder: Path) -> list[str]:
    """Names of the XML files in a folder, sorted."""
    return sorted(entry.name for entry in folder.glob("*.xml") if entry.name[0] != ".")


def parse_xml(path: Path) -> Element:
    """The root of an XML file; attributes are left out, but an <object> has its line, an int.

    A DOCTYPE is refused where it starts, in any encoding: before an entity can be declared, let alone expanded.
    """
    data, builder, parser = read_bytes(path, MAX_XML), TreeBuilder(), expat.ParserCreate()

    def refuse(*_) -> None:
        raise Bad("a DOCTYPE, which may declare entities; remove it", parser.CurrentLineNumber)

    def start(tag: str, _: dict) -> None:
        builder.start(tag, {"line": parser.CurrentLineNumber} if tag == "object" else {})

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    parser.EndElementHandler, parser.CharacterDataHandler = builder.end, builder.data
    try:
        parser.Parse(data, True)
        root = builder.close()
    except Bad:
        raise
    except Exception as error:  # besides expat's own, what codecs raise for a false encoding
        raise Bad(f"not XML ({error})", parser.CurrentLineNumber) from error
    if root.tag != "annotation":
        raise Bad(f"the outermost element is {short.repr(root.tag)}, not 'annotation'")
    return root


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def image_boxes(
    xml: Path, tree: Element, path: Path, classes: Mapping[str, str] | None, problems: Problems, ilsvrc: bool = False
) -> ImageBoxes:
    """The image of one XML file, with its good boxes; VOC counts pixels from 1, ILSVRC from 0."""
    image = ImageBoxes(path, stated_size(_text(tree, "size/width"), _text(tree, "size/height"), path))
    first, overhang = (0, 1.0) if ilsvrc else (1, 0.0)
    for node in tree.iterfind("object"):
        with problems.at(f"{xml}, line {node.get('line')}"):
            name = class_name(_text(node, "name"), classes)
            values = [number(_text(node, f"bndbox/{edge}"), edge) for edge in EDGES]
            flag = "" if ilsvrc else _text(node, "difficult")
            if flag not in ("", "0", "1"):
                raise Bad(f"difficult is {short.repr(flag)}, neither 0 nor 1")
            said = ", ".join(f"{edge} {value:.10g}" for edge, value in zip(EDGES, values, strict=True))
            x1, y1, x2, y2 = (value - first for value in values)
            image.add(f"{said} (counted from {first})", (x1, y1, x2 + 1, y2 + 1), name, overhang, flag == "1")
    return image
