"""Images with boxes in COCO's JSON.

Boxes are x1, y1, x2, y2 in pixels, continuous and half-open: the whole image is (0, 0, width, height).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.readers.checks import (
    Bad,
    FilePath,
    ImageBoxes,
    Names,
    Problems,
    class_name,
    image_file,
    number,
    read_bytes,
    short,
    stated_size,
)
from overfeat.errors import InputError, shorten
from overfeat.files import existing_dir

MAX_JSON = 2_000_000_000  # bytes
COCO_OVERHANG = 0.02  # pixels: x and w are each rounded to hundredths


def read_coco(
    json_path: FilePath, images: FilePath | None = None, *, class_names: Names = None, skip_invalid: bool = False
) -> Annotated:
    """Read a COCO file of instances; its images lie in `images` or else in the folder of the file itself.

    Classes are the categories by id, or class_names. Images come in the file's order, those without boxes
    too. Annotations with iscrowd=1 are left out. Bad annotations and images raise InputError with all of
    them counted and the first 20 named; with skip_invalid they are left out, and an image stays when only its
    boxes were bad. InputError too for no box at all and for a file of another structure.
    """
    path = Path(json_path)
    data = _load_coco(path)
    root = path.parent if images is None else existing_dir(images)
    problems, taken, named = Problems(path, skip_invalid), set(), set()
    names: dict[int, str] = {}  # of the categories
    for where, entry in _entries(data, "categories", path, problems):
        with problems.at(where):
            name = class_name(entry.get("name"), None)
            if entry["id"] in names or name in named:
                raise Bad(f"its id or its name {short.repr(name)} is that of an earlier category")
            names[entry["id"]] = name
            named.add(name)
    found: dict[int, ImageBoxes | None] = {}  # None: known, but bad
    for where, entry in _entries(data, "images", path, problems):
        with problems.at(where):
            if entry["id"] in found:
                raise Bad("its id is that of an earlier image")
            found[entry["id"]] = None
            file = image_file(root, entry.get("file_name"), taken)
            found[entry["id"]] = ImageBoxes(file, stated_size(entry.get("width"), entry.get("height"), file))
    classes = None if class_names is None else {name: name for name in class_names}
    for where, entry in _entries(data, "annotations", path, problems):
        if entry.get("iscrowd") == 1:
            continue
        with problems.at(where):
            image_id, category, box = (entry.get(key) for key in ("image_id", "category_id", "bbox"))
            if type(image_id) is not int or image_id not in found:
                raise Bad(f"image_id {short.repr(image_id)} is the id of no image")
            if type(category) is not int or category not in names:
                raise Bad(f"category_id {short.repr(category)} is the id of no category")
            if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
                raise Bad(f"bbox is {short.repr(box)}, not the four numbers [x, y, width, height]")
            x, y, wide, tall = (number(v, "bbox") for v in box)
            name, image = class_name(names[category], classes), found[image_id]
            if image is not None:
                image.add(f"bbox {short.repr(box)}", (x, y, x + wide, y + tall), name, COCO_OVERHANG)
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
                f"{path}: has none, or several, of these {kind}: {shorten(lacking)}; give the annotations they are of"
            )
        found.append({name: min(ids[name]) for name in wanted})
    return found[0], found[1]


def _load_coco(path: Path) -> dict[str, list]:
    try:
        data = json.loads(read_bytes(path, MAX_JSON))
    except (Bad, ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: no COCO annotations ({what}); give a JSON file of instances") from error
    lists = ("images", "annotations", "categories")
    missing = [kind for kind in lists if not (isinstance(data, dict) and isinstance(data.get(kind), list))]
    if missing:
        raise InputError(f"{path}: no COCO annotations: no lists {', '.join(missing)}; give a JSON file of instances")
    return data


def _entries(data: dict[str, list], kind: str, path: Path, problems: Problems) -> Iterator[tuple[str, dict]]:
    """(place, entry) of the entries of a list that have an id."""
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    for i, entry in enumerate(data[kind]):
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            yield f"{path}, {noun} {short.repr(entry['id'])}", entry
        else:
            with problems.at(f"{path}, {kind}[{i}]"):
                raise Bad("no integer id" if isinstance(entry, dict) else f"{short.repr(entry)} is no object")
