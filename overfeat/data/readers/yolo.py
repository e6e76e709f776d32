"""Images with boxes in YOLO's format: a text file an image, with a line an object."""

from collections.abc import Mapping
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.readers import checks
from overfeat.data.readers.checks import FilePath, ImageBoxes, Invalid, Names, Problems, quoted
from overfeat.data.readers.locate import ImageLocator, image_roots, walk
from overfeat.data.readers.yolo_layout import (
    NAME_FILES,
    Layout,
    image_folders,
    image_root,
    images_of,
    is_label,
    label_file,
    read_layout,
)
from overfeat.errors import InputError, shorten
from overfeat.files import existing_dir

MAX_LABELS = 20_000_000  # bytes
FAR_OUTSIDE = 2.0  # a coordinate beyond this is in pixels


def read_yolo(
    path: FilePath, split: str | None = None, *, images: FilePath | None = None, class_names: Names = None,
    skip_invalid: bool = False,
) -> Annotated:  # fmt: skip
    """Read YOLO's text files: a line has a class's number and a box's center, width and height, as fractions.

    Polygons of the segmentation format become the smallest boxes around them. Labels lie below "labels" for images
    below "images", or beside the images; an image without a file of labels has no objects. Names of classes are those
    of data.yaml, obj.names or classes.txt, else the numbers.

    Args:
        path: A folder, a data.yaml or obj.data, a list of images, or a single file of labels.
        split: The images of this split, as data.yaml or the folders' names have it; None: all.
        images: Another folder of the images: `path` holds the labels.
        class_names: The classes; None: the data set's, by number.
        skip_invalid: Skip invalid lines and files; otherwise they raise InputError, as in `read_coco`.
    """
    path = Path(path)
    problems = Problems(path, skip_invalid)
    layout = read_layout(path)
    pairs = _pairs(path, layout, split, images, problems)
    if pairs and not any(label for _, label in pairs):
        raise InputError(f"{path}: no files of labels for its {len(pairs)} images; give YOLO's labels/ beside images/")
    classes = None if class_names is None else {name: name for name in class_names}
    annotated: list[ImageBoxes] = []
    names: dict[int, str] = {}
    for number, name in layout.names.items():
        with problems.at(f"{path}, class {number}"):
            names[number] = checks.class_name(name, None)
    for image, label in pairs:
        with problems.at(image if label is None else label):
            boxes = ImageBoxes(image, checks.stated_size(None, None, image))
            if label is not None:
                _read_labels(label, boxes, names, layout, classes, problems)
            annotated.append(boxes)
    order = list(dict.fromkeys(names[number] for number in sorted(names))) if class_names is None else class_names
    return problems.finish(annotated, order)


def _pairs(
    path: Path, layout: Layout, split: str | None, images: FilePath | None, problems: Problems
) -> list[tuple[Path, Path | None]]:
    """The images with their files of labels, or None."""
    if path.is_file() and is_label(path):
        roots = image_folders(path) if images is None else [existing_dir(images)]
        with problems.at(path):
            return [(ImageLocator(roots, problems).locate(path.stem)[0], path)]
        return []
    if split is not None:
        sources = layout.split(split)
        if sources is None:
            raise InputError(f"{path}: no split {split!r} in it; there are: {shorten(list(layout.splits)) or 'none'}")
    elif path.is_file() and not layout.splits:
        sources = [path]
    else:
        sources = [source for sources in layout.splits.values() for source in sources] or [image_root(layout.root)]
    if images is not None and all(source.is_dir() for source in sources):
        if split is not None:
            raise InputError(
                f"{path}: images elsewhere have no split {split!r}; give the split's folder of labels alone"
            )
        pairs = _pairs_apart(path, existing_dir(images))
    else:
        locator = ImageLocator(image_roots(layout.root, images), problems)
        pairs = [(image, label_file(image)) for image in images_of(sources, locator, problems)]
    if all(source.is_dir() for source in sources):
        _note_orphans({label for _, label in pairs if label}, problems)
    return pairs


def _pairs_apart(labels: Path, images: Path) -> list[tuple[Path, Path | None]]:
    """The images in a folder with the files of labels at the same paths in another."""
    root = labels if labels.is_dir() else labels.parent
    pairs: list[tuple[Path, Path | None]] = []
    for image in walk(images):
        below = image.relative_to(images).with_suffix(".txt")
        files = [folder / below for folder in (root, root / "labels", root / images.name)]
        pairs.append((image, next((file for file in files if file.is_file()), None)))
    return pairs


def _note_orphans(used: set[Path], problems: Problems) -> None:
    """Note files of labels beside used ones that no image has."""
    for folder in sorted({label.parent for label in used}):
        for file in sorted(folder.glob("*.txt")):
            if file not in used and file.name not in NAME_FILES and is_label(file):
                problems.adapt("files of labels without an image, left out", str(file))


def _read_labels(
    path: Path, image: ImageBoxes, names: dict[int, str], layout: Layout, classes: Mapping[str, str] | None,
    problems: Problems,
) -> None:  # fmt: skip
    """Add the boxes of a file; a data set without names gets the numbers as names."""
    for number, line in enumerate(checks.read_text(path, MAX_LABELS, "replace").splitlines(), 1):
        with problems.at(f"{path}, line {number}"):
            if not line.strip():
                continue
            fields = line.split()
            index = checks.number(fields[0], "the class")
            if not index.is_integer() or not 0 <= index < 1e6:
                raise Invalid(f"the class is {quoted.repr(fields[0])}, not a number from 0")
            if not layout.names and int(index) not in names:
                problems.adapt("classes without a name are called by their number", fields[0])
                names[int(index)] = str(int(index))
            if int(index) not in names:
                raise Invalid(f"unknown class {int(index)}; there are {len(names)} names")
            box = _box([checks.number(field, "a coordinate") for field in fields[1:]], line, image, layout.keypoints)
            text = "box " + ", ".join(f"{edge:.6g}" for edge in box)
            image.add(text, box, checks.class_name(names[int(index)], classes), problems)


def _box(values: list[float], line: str, image: ImageBoxes, keypoints: bool) -> tuple[float, ...]:
    """The box in pixels of a line's numbers after the class."""
    height, width = image.size
    if max(values, default=0) > FAR_OUTSIDE:
        raise Invalid(f"{quoted.repr(line)}: not fractions of the image's width and height")
    if len(values) == 4 or (keypoints and len(values) > 4):
        x, y, w, h = values[:4]
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    if len(values) < 6 or len(values) % 2:
        needed = "center, width and height, or the points of a polygon; a score is not expected"
        raise Invalid(f"{len(values)} numbers after the class, not a box's 4 ({needed})")
    x1, y1, x2, y2 = checks.bounding_box(values[::2], values[1::2])
    return x1 * width, y1 * height, x2 * width, y2 * height
