"""Images with boxes in a table: one box a line, as CSV."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.data.readers.locate import ImageLocator, image_roots
from overfeat.errors import InputError

# Names of the columns, reduced to lower-case letters and digits; of several in a table the first here counts.
IMAGE = ("imagepath", "imagefile", "imagefilename", "filename", "filepath", "image", "imagename", "img", "imgpath",
         "file", "path", "imageid")  # fmt: skip
LABEL = ("label", "class", "classname", "labelname", "labels", "category", "categoryname", "celltype", "object",
         "objectclass", "species", "type", "name")  # fmt: skip
EDGES = (
    ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"), ("minx", "miny", "maxx", "maxy"), ("xtl", "ytl", "xbr", "ybr"),
)  # fmt: skip
SIZES = (("width", "height"), ("imagewidth", "imageheight"), ("imgwidth", "imgheight"))
FORM = "give a header that names the columns image, xmin, ymin, xmax, ymax, label, or lines of these six without one"


@dataclass(frozen=True)
class Columns:
    """The indices of the columns: image, four edges, label, and width and height of the image where they are stated."""

    image: int
    edges: tuple[int, ...]
    label: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Row:
    """One line; box None: the image has no objects."""

    location: str
    image: str
    box: tuple[float, ...] | None
    label: str
    size: tuple[str, str]  # (width, height) as stated, else empty


def read_csv(
    csv_path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_invalid: bool = False
) -> Annotated:
    """Read a table with a line for each box: image, xmin, ymin, xmax, ymax, label, separated by commas, ; or tabs.

    A header names the columns, in any case and order: filename, x1, class and other common names are known, and other
    columns are ignored. Without a header there are these six in this order. Empty or zero edges stand for an image
    without objects. Coordinates are in pixels, from 0 to the image's width and height; if all lie in 0..1, they are
    fractions of these. Images come in the order of their first line.

    Args:
        images: The folder of the images; None: that of the file, or its folder "images" and the like.
        class_names: The classes; None: the names that occur, sorted, so splits may differ.
        skip_invalid: Skip invalid boxes and images; otherwise they raise InputError, as in `read_coco`.
    """
    path = Path(csv_path)
    problems = Problems(path, skip_invalid)
    locator = ImageLocator(image_roots(path.parent, images), problems)
    classes = None if class_names is None else {name: name for name in class_names}
    rows = list(_rows(path, problems))
    edges = [edge for row in rows if row.box for edge in row.box]
    fractions = bool(edges) and all(0 <= edge <= 1 for edge in edges) and not all(map(float.is_integer, edges))
    if fractions:
        problems.adapt("coordinates in 0..1 read as fractions of the image's width and height", str(path))
    for row in rows:
        locator.claim(row.image, row.image)
    by_name: dict[str, ImageBoxes | None] = {}
    for row in rows:
        with problems.at(row.location):
            if row.image not in by_name:
                by_name[row.image] = None  # an invalid image is one problem, however many boxes it has
                file = locator.image_of(row.image)
                by_name[row.image] = ImageBoxes(file, checks.stated_size(*row.size, file))
            image = by_name[row.image]
            if image is not None and row.box is not None:
                _add_box(image, row, classes, fractions, problems)
    return problems.finish([image for image in by_name.values() if image], class_names)


def _add_box(
    image: ImageBoxes, row: Row, classes: Mapping[str, str] | None, fractions: bool, problems: Problems
) -> None:
    assert row.box is not None
    name, (height, width) = checks.class_name(row.label, classes), image.size
    if row.size != ("", "") and checks.stated_size(*row.size, image.path) != image.size:
        raise Invalid(f"width {row.size[0]} and height {row.size[1]}, but {width} and {height} in an earlier line")
    box = tuple(v * s for v, s in zip(row.box, (width, height) * 2, strict=True)) if fractions else row.box
    text = "box " + ", ".join(f"{edge:.10g}" for edge in row.box)
    image.add(text, box, name, problems)


def _rows(path: Path, problems: Problems) -> Iterator[Row]:
    """The lines of the table; invalid ones are recorded."""
    try:
        text = checks.read_text(path)
    except Invalid as error:
        raise InputError(f"{path}: no table of boxes ({error}); {FORM}") from error
    delimiter = delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: no table ({error}); {FORM}") from error
        if fields is None:
            return
        fields = [field.strip() for field in fields]
        if not any(fields):
            continue
        location = f"{path}, line {reader.line_num}"
        if columns is None:
            columns, header = _columns(fields, location)
            if header:
                continue
        with problems.at(location):
            yield _row(fields, columns, location, decimal_comma=delimiter == ";")


def delimiter_of(text: str) -> str:
    """The one of comma, semicolon and tab that occurs most often in the first line that is not empty."""
    line = text[: 1 << 16].strip().partition("\n")[0]
    return max(",;\t", key=line.count)


def _columns(fields: Sequence[str], location: str) -> tuple[Columns, bool]:
    """The columns, and whether this first line is a header."""
    names = [re.sub("[^a-z0-9]", "", field.lower()) for field in fields]
    index = {name: i for i, name in reversed([*enumerate(names)])}
    # x1, y1, x2, y2, x3, ... are the corners of a polygon.
    quads = (edges for edges in EDGES if all(edge in index for edge in edges) and not ("x3" in index and "x2" in edges))
    edges = next(quads, None)
    if edges is None and len(fields) == 6 and (not any(fields[1:5]) or all(map(_is_number, fields[1:5]))):
        return Columns(0, (1, 2, 3, 4), 5), False
    image, label = (next((name for name in known if name in index), None) for known in (IMAGE, LABEL))
    if edges is None or image is None or label is None:
        missing = [name for name, there in (("image", image), ("xmin", edges), ("label", label)) if there is None]
        raise InputError(f"{location}: no column for {', '.join(missing)} in {quoted.repr(','.join(fields))}; {FORM}")
    size = next((pair for pair in SIZES if all(name in index for name in pair)), None)
    stated = (index[size[0]], index[size[1]]) if size else None
    return Columns(index[image], tuple(index[edge] for edge in edges), index[label], stated), True


def _is_number(text: str) -> bool:
    try:
        checks.number(text, "")
    except Invalid:
        return False
    return True


def _row(fields: Sequence[str], columns: Columns, location: str, decimal_comma: bool) -> Row:
    needed = max(columns.image, columns.label, *columns.edges, *(columns.size or ()))
    if len(fields) <= needed:
        raise Invalid(f"{len(fields)} fields, not the {needed + 1} that are needed")
    texts = [fields[i].replace(",", ".") if decimal_comma else fields[i] for i in columns.edges]
    box = None
    if any(texts):
        box = tuple(checks.number(text, edge) for text, edge in zip(texts, EDGES[0], strict=True))
    size = (fields[columns.size[0]], fields[columns.size[1]]) if columns.size else ("", "")
    return Row(location, fields[columns.image], box if box and any(box) else None, fields[columns.label], size)
