"""Images with boxes in COCO's JSON."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.errors import InputError, shorten
from overfeat.files import existing_dir

MAX_JSON = 2_000_000_000  # bytes
NOUNS = {"images": "image", "annotations": "annotation", "categories": "category"}  # of the lists' entries
COCO_OVERHANG = 0.02  # pixels: x and w are each rounded to hundredths


def read_coco(
    json_path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_invalid: bool = False
) -> Annotated:
    """Read a COCO file of instances.

    Images come in the file's order, those without boxes too. Annotations with iscrowd=1 are ignored.

    Args:
        images: The folder of the images; None: that of the file.
        class_names: The classes; None: the file's categories by id.
        skip_invalid: Skip invalid annotations and images; an image of which only boxes are invalid stays.

    Raises:
        InputError: A file of another structure, no box at all or, unless skip_invalid, invalid annotations or images,
            of which the first 20 are named.
    """
    path = Path(json_path)
    data = _load_coco(path)
    root = path.parent if images is None else existing_dir(images)
    problems = Problems(path, skip_invalid)
    names = _read_categories(data, path, problems)
    by_id = _read_images(data, path, problems, root)
    classes = None if class_names is None else {name: name for name in class_names}
    for location, entry in _entries(data, "annotations", path, problems):
        if entry.get("iscrowd") != 1:
            with problems.at(location):
                _read_annotation(entry, by_id, names, classes)
    order = [names[i] for i in sorted(names)] if class_names is None else class_names
    return problems.finish([image for image in by_id.values() if image], order)


def _read_categories(data: dict[str, list], path: Path, problems: Problems) -> dict[int, str]:
    """The names of the categories by id."""
    names: dict[int, str] = {}
    for location, entry in _entries(data, "categories", path, problems):
        with problems.at(location):
            name = checks.class_name(entry.get("name"), None)
            if entry["id"] in names or name in names.values():
                raise Invalid(f"its id or its name {quoted.repr(name)} is that of an earlier category")
            names[entry["id"]] = name
    return names


def _read_images(data: dict[str, list], path: Path, problems: Problems, root: Path) -> dict[int, ImageBoxes | None]:
    """The images by id, without boxes yet; None for invalid ones."""
    images: dict[int, ImageBoxes | None] = {}
    used: set[Path] = set()
    for location, entry in _entries(data, "images", path, problems):
        with problems.at(location):
            if entry["id"] in images:
                raise Invalid("its id is that of an earlier image")
            images[entry["id"]] = None
            file = checks.image_file(root, entry.get("file_name"), used)
            images[entry["id"]] = ImageBoxes(file, checks.stated_size(entry.get("width"), entry.get("height"), file))
    return images


def _read_annotation(
    entry: dict, images: dict[int, ImageBoxes | None], names: dict[int, str], classes: dict[str, str] | None
) -> None:
    """Add a box to its image."""
    image_id, category, box = (entry.get(key) for key in ("image_id", "category_id", "bbox"))
    if type(image_id) is not int or image_id not in images:
        raise Invalid(f"image_id {quoted.repr(image_id)} is the id of no image")
    if type(category) is not int or category not in names:
        raise Invalid(f"category_id {quoted.repr(category)} is the id of no category")
    if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
        raise Invalid(f"bbox is {quoted.repr(box)}, not the four numbers [x, y, width, height]")
    x, y, width, height = (checks.number(v, "bbox") for v in box)
    name, image = checks.class_name(names[category], classes), images[image_id]
    if image is not None:
        image.add(f"bbox {quoted.repr(box)}", (x, y, x + width, y + height), name, COCO_OVERHANG)


def coco_ids(path: FilePath | None, names: Sequence[str], class_names: Sequence[str]) -> tuple[dict[str, int], ...]:
    """The ids of images, by file name, and of categories, by name, in a COCO file; without a file, numbers from 1.

    Raises InputError for names that it lacks or has several times.
    """
    if path is None:
        images, categories = ({name: i for i, name in enumerate(given, 1)} for given in (names, class_names))
        return images, categories
    path = Path(path)
    data = _load_coco(path)
    return _ids_by_name(data, path, "images", names), _ids_by_name(data, path, "categories", class_names)


def _ids_by_name(data: dict[str, list], path: Path, kind: str, names: Sequence[str]) -> dict[str, int]:
    """The ids of the images or categories of these names."""
    ids: dict[str, set[int]] = {}
    for entry in data[kind]:
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            name = Path(str(entry.get("file_name"))).name if kind == "images" else str(entry.get("name"))
            ids.setdefault(name, set()).add(entry["id"])
    missing = [name for name in names if len(ids.get(name, ())) != 1]
    if missing:
        raise InputError(f"{path}: has none, or several, of these {kind}: {shorten(missing)}; give their annotations")
    return {name: min(ids[name]) for name in names}


def _load_coco(path: Path) -> dict[str, list]:
    try:
        data = json.loads(checks.read_bytes(path, MAX_JSON))
    except (Invalid, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: no COCO annotations ({reason}); give a JSON file of instances") from error
    missing = [kind for kind in NOUNS if not (isinstance(data, dict) and isinstance(data.get(kind), list))]
    if missing:
        raise InputError(f"{path}: no COCO annotations: no lists {', '.join(missing)}; give a JSON file of instances")
    return data


def _entries(data: dict[str, list], kind: str, path: Path, problems: Problems) -> Iterator[tuple[str, dict]]:
    """(location, entry) of the entries of a list that have an id."""
    for i, entry in enumerate(data[kind]):
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            yield f"{path}, {NOUNS[kind]} {quoted.repr(entry['id'])}", entry
        else:
            with problems.at(f"{path}, {kind}[{i}]"):
                raise Invalid("no integer id" if isinstance(entry, dict) else f"{quoted.repr(entry)} is not an object")
