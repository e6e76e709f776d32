"""Images with boxes in COCO's JSON."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.data.readers.locate import ImageLocator, image_roots
from overfeat.errors import InputError, shorten

MAX_JSON = 2_000_000_000  # bytes
NOUNS = {"images": "image", "annotations": "annotation", "categories": "category"}  # of the lists' entries
UNUSED = {"background", "__background__", "_background_", "bg"}  # names of what is no object
Id = int | str


def read_coco(
    json_path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_invalid: bool = False
) -> Annotated:
    """Read a COCO file of instances.

    Images come in the file's order, those without boxes too. Annotations with iscrowd=1 are ignored, and so are
    categories without boxes that are called "background" or are the supercategory of others. Ids may be text.

    Args:
        images: The folder of the images; None: that of the file, or one beside it, as `image_roots` lists them.
        class_names: The classes; None: the file's categories by id.
        skip_invalid: Skip invalid annotations and images; an image of which only boxes are invalid stays.

    Raises:
        InputError: A file of another structure, no box at all or, unless skip_invalid, invalid annotations or images,
            of which the first 20 are named.
    """
    path = Path(json_path)
    data = _load_coco(path)
    problems = Problems(path, skip_invalid)
    locator = ImageLocator(image_roots(path.parent, images, path.stem), problems)
    names = _read_categories(data, path, problems)
    by_id = _read_images(data, path, problems, locator)
    classes = None if class_names is None else {name: name for name in class_names}
    images_by_id, names_by_id = _with_numbers(by_id), _with_numbers(names)
    for location, entry in _entries(data, "annotations", path, problems):
        with problems.at(location):
            if not checks.flag(entry.get("iscrowd"), "iscrowd"):
                _read_annotation(entry, images_by_id, names_by_id, classes, problems)
    read = [image for image in by_id.values() if image]
    return problems.finish(read, _order(data["categories"], names, read, problems) if classes is None else class_names)


def _order(
    categories: list, names: dict[Id, str | None], images: Sequence[ImageBoxes], problems: Problems
) -> list[str]:
    """The categories by id, numbers first, without those of the background and groups that have no boxes."""
    entries = [entry for entry in categories if isinstance(entry, dict)]
    groups = {str(e.get("supercategory")) for e in entries if e.get("supercategory") != e.get("name")}
    used = {name for image in images for _, name in image.objects}
    ordered = (names[i] for i in sorted(names, key=_sort_key))
    order = dict.fromkeys(name for name in ordered if name is not None)
    for name in [name for name in order if (name.lower() in UNUSED or name in groups) and name not in used]:
        problems.adapt("categories without boxes, left out", quoted.repr(name))
        del order[name]
    return list(order)


def _sort_key(number: Id) -> tuple[bool, int, str]:
    is_number = isinstance(number, int) or _is_decimal(number)
    return not is_number, int(number) if is_number else 0, str(number)


def _read_categories(data: dict[str, list], path: Path, problems: Problems) -> dict[Id, str | None]:
    """The names of the categories by id; None for an id of several."""
    names: dict[Id, str | None] = {}
    for location, entry in _entries(data, "categories", path, problems):
        with problems.at(location):
            number, name = _id_of(entry, problems), checks.class_name(entry.get("name"), None)
            if number in names:
                if names[number] == name:
                    problems.adapt("entries that are there twice")
                    continue
                names[number] = None
                raise Invalid("its id is that of another category, so it stands for neither")
            if name in names.values():
                problems.adapt("categories of the same name, read as one class", quoted.repr(name))
            names[number] = name
    return names


def _read_images(
    data: dict[str, list], path: Path, problems: Problems, locator: ImageLocator
) -> dict[Id, ImageBoxes | None]:
    """The images by id, without boxes yet; None for invalid ones and for an id of several."""
    images: dict[Id, ImageBoxes | None] = {}
    files: dict[Id, Any] = {}
    entries: dict[Id, tuple[str, dict]] = {}
    for location, entry in _entries(data, "images", path, problems):
        with problems.at(location):
            number, name = _id_of(entry, problems), entry.get("file_name")
            if number in images:
                if files[number] == name:
                    problems.adapt("entries that are there twice")
                    continue
                entries.pop(number, None)
                raise Invalid("its id is that of another image, so it stands for neither")
            images[number], files[number], entries[number] = None, name, (location, entry)
    for number in entries:
        locator.claim(number, files[number])
    for number, (location, entry) in entries.items():
        with problems.at(location):
            file = locator.image_of(number)
            images[number] = ImageBoxes(file, checks.stated_size(entry.get("width"), entry.get("height"), file))
    return images


def _id_of(entry: dict, problems: Problems) -> Id:
    """The id of an image or category."""
    number = _as_id(entry.get("id"))
    if number is None:
        raise Invalid(f"its id is {quoted.repr(entry.get('id'))}, neither a whole number nor text")
    if type(entry["id"]) is not int:
        problems.adapt("ids that are text or have a decimal point")
    return number


def _as_id(value: object) -> Id | None:
    """An id as a number or, unless it is one, as text; None if it is neither."""
    if isinstance(value, str) and value:
        return int(value) if _is_decimal(value) and (value == "0" or value[0] != "0") else value
    if type(value) is int or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20


def _with_numbers(entries: dict[Id, Any]) -> dict[Id, Any]:
    """The entries by id, and those of an id with leading zeros by its number, unless it is that of another."""
    numbers = Counter(int(number) for number in entries if _is_decimal(number))
    added = {int(n): entry for n, entry in entries.items() if _is_decimal(n) and numbers[int(n)] == 1}
    return added | entries


def _refer(value: object, entries: dict[Id, Any]) -> Id | None:
    """The id of an entry as another entry writes it."""
    number = _as_id(value)
    return int(str(value)) if number not in entries and _is_decimal(value) else number


def _read_annotation(
    entry: dict, images: dict[Id, ImageBoxes | None], names: dict[Id, str | None],
    classes: dict[str, str] | None, problems: Problems,
) -> None:  # fmt: skip
    """Add a box to its image."""
    image_id, category = _refer(entry.get("image_id"), images), _refer(entry.get("category_id"), names)
    box = entry.get("bbox")
    if image_id is None or image_id not in images:
        raise Invalid(f"image_id {quoted.repr(entry.get('image_id'))} is the id of no image")
    label = None if category is None else names.get(category)
    if label is None:
        raise Invalid(f"category_id {quoted.repr(entry.get('category_id'))} is the id of no category, or of several")
    if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float, str) for v in box)):
        raise Invalid(f"bbox is {quoted.repr(box)}, not the four numbers [x, y, width, height]")
    x, y, width, height = (checks.number(v, "bbox") for v in box)
    if any(isinstance(v, str) for v in box):
        problems.adapt("boxes whose numbers are text")
    name, image = checks.class_name(label, classes), images[image_id]
    if image is not None:
        image.add(f"bbox {quoted.repr(box)}", (x, y, x + width, y + height), name, problems)


def coco_ids(path: FilePath | None, names: Sequence[str], class_names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The ids of images, by file name, and of categories, by name, in a COCO file; without a file, numbers from 1.

    Raises InputError for names that it lacks or has several times.
    """
    if path is None:
        images, categories = ({name: i for i, name in enumerate(given, 1)} for given in (names, class_names))
        return images, categories
    path = Path(path)
    data = _load_coco(path)
    return _ids_by_name(data, path, "images", names), _ids_by_name(data, path, "categories", class_names)


def _ids_by_name(data: dict[str, list], path: Path, kind: str, names: Sequence[str]) -> dict[str, Any]:
    """The ids, as they are written, of the images or categories of these names."""
    ids: dict[str, set[Any]] = {}
    for entry in data[kind]:
        if isinstance(entry, dict) and _as_id(entry.get("id")) is not None:
            name = PureWindowsPath(str(entry.get("file_name"))).name if kind == "images" else str(entry.get("name"))
            ids.setdefault(name, set()).add(entry["id"])
    missing = [name for name in names if len(ids.get(name, ())) != 1]
    if missing:
        raise InputError(f"{path}: has none, or several, of these {kind}: {shorten(missing)}; give their annotations")
    return {name: next(iter(ids[name])) for name in names}


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
    """(location, entry) of the entries of a list; the location names the id if there is one."""
    for i, entry in enumerate(data[kind]):
        if not isinstance(entry, dict):
            with problems.at(f"{path}, {kind}[{i}]"):
                raise Invalid(f"{quoted.repr(entry)} is not an object")
            continue
        named = _as_id(entry.get("id")) is not None
        yield f"{path}, " + (f"{NOUNS[kind]} {quoted.repr(entry['id'])}" if named else f"{kind}[{i}]"), entry
