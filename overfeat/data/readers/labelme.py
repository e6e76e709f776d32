"""Images with boxes in the JSON files of LabelMe, one an image."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.data.readers.locate import ImageLocator, files_in, image_roots, walk
from overfeat.errors import InputError

JSON = (".json",)
MAX_JSON = 200_000_000  # bytes; the image is often embedded
MIN_POINTS = {"rectangle": 2, "circle": 2, "mask": 2, "polygon": 3, "rotation": 3, "oriented_rectangle": 3}
NO_BOX = ("point", "points", "line", "linestrip")  # types of shapes that are no regions
SNIFFED_FILES, HEAD = 20, 1 << 16  # files of a folder, and bytes of each, that show what it holds


def read_labelme(
    path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_invalid: bool = False
) -> Annotated:
    """Read a LabelMe file, or those in a folder and below.

    The box of a rectangle, polygon or circle is the smallest around it, that of a circle within the image; points and
    lines are left out. Images come from `imagePath`, or else are those named as their JSON; an embedded one (imageData)
    is not used. Where several files name one image, it is that of the file named as the image.

    Args:
        images: The folder of the images; None: that of the JSON files.
        class_names: The classes; None: the labels that occur, sorted, so splits may differ.
        skip_invalid: Skip invalid shapes and files; otherwise they raise InputError, as in `read_coco`.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    files = labelme_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no JSON files in it; give a folder of LabelMe files")
    problems = Problems(path, skip_invalid)
    locator = ImageLocator(image_roots(root, images), problems)
    classes = None if class_names is None else {name: name for name in class_names}
    annotated: list[ImageBoxes] = []
    contents: dict[Path, dict[str, Any]] = {}

    def names_of(file: Path) -> list[Any]:
        contents[file] = _load(file)
        return [contents[file].get("imagePath")]

    locator.claim_files(files, root, names_of)
    for file in filter(contents.get, files):
        with problems.at(file):
            data = contents[file]
            image = locator.image_of(file)
            size = checks.stated_size(data.get("imageWidth"), data.get("imageHeight"), image)
            annotated.append(boxes := ImageBoxes(image, size))
            _add_shapes(boxes, file, data["shapes"], classes, problems)
    if path.is_dir():
        locator.note_others()
    return problems.finish(annotated, class_names)


def labelme_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, and those of LabelMe in the folders below."""
    return [*json_files(folder), *(file for file in walk(folder, JSON) if file.parent != folder and is_labelme(file))]


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, by name, without hidden ones."""
    return files_in(folder, JSON)


def is_labelme(path: Path) -> bool:
    """Whether a file, or one of the first JSON files in a folder, is LabelMe's, by the keys it must have."""
    if path.is_dir():
        return any(map(is_labelme, json_files(path)[:SNIFFED_FILES]))
    try:
        data = checks.read_bytes(path, MAX_JSON)
    except Invalid:
        return False
    head = data[:HEAD]
    if b'"shapes"' not in head and (b'"images"' in head or b'"annotations"' in head):
        return False  # COCO's, which may be large
    return b'"shapes"' in data and (b'"imagePath"' in data or b'"imageData"' in data)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(checks.read_bytes(path, MAX_JSON))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Invalid(f"no LabelMe file ({reason})") from error
    if not (isinstance(data, dict) and isinstance(data.get("shapes"), list)):
        raise Invalid("no LabelMe file: no list shapes")
    data.pop("imageData", None)
    return data


def _add_shapes(
    image: ImageBoxes, file: Path, shapes: list, classes: Mapping[str, str] | None, problems: Problems
) -> None:  # fmt: skip
    for i, shape in enumerate(shapes):
        with problems.at(f"{file}, shapes[{i}]"):
            _add_shape(image, shape, classes, problems)


def _add_shape(image: ImageBoxes, shape: Any, classes: Mapping[str, str] | None, problems: Problems) -> None:
    if not isinstance(shape, dict):
        raise Invalid(f"{quoted.repr(shape)} is not an object")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind in NO_BOX:
        problems.adapt("points and lines, left out")
        return
    name = checks.class_name(shape.get("label"), classes)
    needed = MIN_POINTS.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise Invalid(f"a shape of type {quoted.repr(kind)} has no box; there are {', '.join(MIN_POINTS)}")
    if not isinstance(points, list) or len(points) < needed or not all(map(_is_point, points)):
        raise Invalid(f"points of a {kind} are {quoted.repr(points)}, not at least {needed} pairs of numbers")
    xs, ys = ([checks.number(point[i], "a point") for point in points] for i in (0, 1))
    if kind == "circle":
        box = _circle_box(xs, ys, image.size)
    else:
        box = checks.bounding_box(xs, ys)
    text = f"{kind} with the box " + ", ".join(f"{edge:.10g}" for edge in box)
    image.add(text, box, name, problems, checks.flag(shape.get("difficult"), "difficult"))


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)


def _circle_box(xs: list[float], ys: list[float], size: tuple[int, int]) -> tuple[float, ...]:
    """The box of what the image shows of a circle: its center, and a point on it."""
    checks.bounding_box(xs, ys)  # checks that they are finite
    radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
    starts = (max(0.0, center - radius) for center in (xs[0], ys[0]))
    ends = (min(float(side), center + radius) for center, side in zip((xs[0], ys[0]), size[::-1], strict=True))
    return *starts, *ends
