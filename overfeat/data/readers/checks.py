"""What the readers of annotations check alike, and how they collect what is bad."""

import math
import os
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from overfeat.data.annotated import Annotated, Sample, first_lines
from overfeat.data.images import MAX_PIXELS, opened
from overfeat.errors import InputError, shorten

MAX_LIST = 100_000_000  # bytes
MAX_SIDE = 1_000_000  # pixels that an annotation may state
ORIENTATION = 0x0112  # the EXIF tag; 5 and above turn the image by 90 degrees
FilePath = str | os.PathLike
Names = Sequence[str] | None
short = reprlib.Repr()
short.maxstring = 100


class Bad(Exception):
    """What is wrong, and the line where the place does not tell it."""

    def __init__(self, what: str, line: int | None = None):
        super().__init__(what)
        self.line = line


@dataclass
class ImageBoxes:
    """An image file, its size, and its good boxes as they are found."""

    path: Path
    size: tuple[int, int]
    objects: dict[tuple[tuple[float, ...], str], bool] = field(default_factory=dict)  # (box, class): difficult

    def add(self, said: str, box: tuple[float, ...], name: str, overhang: float, difficult: bool = False) -> None:
        """Check a box and keep it, clipped; overhang: pixels it may reach past the right and lower edges."""
        x1, y1, x2, y2 = box
        height, width = self.size
        if not all(map(math.isfinite, box)):
            raise Bad(f"{said}: not finite")
        if x2 < x1 or y2 < y1:
            raise Bad(f"{said}: reversed; the right and lower edges come second")
        if x2 == x1 or y2 == y1:
            raise Bad(f"{said}: no area")
        inside = 0 <= x1 < width and 0 <= y1 < height
        if not inside or x2 > width + overhang or y2 > height + overhang:
            raise Bad(f"{said}: outside the image, which is {width} pixels wide and {height} high")
        key = (x1, y1, min(x2, float(width)), min(y2, float(height))), name
        if key in self.objects:
            raise Bad(f"{said}: the same box and class {short.repr(name)} as an earlier one of the image")
        self.objects[key] = difficult


class Problems:
    """Collects what is bad in one data set, and makes the data set of what is left."""

    def __init__(self, source: Path, skip: bool):
        self.source, self.skip, self.lines = source, skip, []

    @contextmanager
    def at(self, place: object) -> Iterator[None]:
        """What is bad in the block belongs to this place and ends the block."""
        try:
            yield
        except Bad as bad:
            self.lines.append(f"{place}{f', line {bad.line}' if bad.line else ''}: {bad}")

    def finish(self, images: list[ImageBoxes], class_names: Names) -> Annotated:
        """class_names None: the names of the boxes, sorted."""
        found = {name for image in images for _, name in image.objects}
        count = f"{len(self.lines)} problem{'s' if len(self.lines) != 1 else ''} in the annotations"
        shown = first_lines(self.lines)
        if self.lines and not self.skip:
            remedy = "put these right, or leave the bad boxes and images out: --skip-invalid, or skip_invalid=True"
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


def class_name(name: Any, classes: Mapping[str, str] | None) -> str:
    """The class of a name in a file; classes None: any text of one line that can be written to a file."""
    if not isinstance(name, str) or not name or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise Bad(f"the name of the class is {short.repr(name)}; a line of text is needed")
    if classes is not None and name not in classes:
        raise Bad(f"unknown class {short.repr(name)}; there are {len(classes)}: {shorten(list(classes.values()))}")
    return name if classes is None else classes[name]


def number(value: Any, what: str) -> float:
    """A number in JSON, or text of XML; infinite where float64 does not reach."""
    try:
        if type(value) in (int, float) or (isinstance(value, str) and "_" not in value):
            return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    raise Bad(f"{what} is {short.repr(value)}, no number")


def read_bytes(path: Path, limit: int) -> bytes:
    """What is in a file. Raises Bad for none, and for one of more bytes than the limit."""
    if not os.path.isfile(path):
        raise Bad("no such file")
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise Bad(f"{size:,} bytes, more than the limit of {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise Bad(f"may not be read ({error.strerror})") from error


def text_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file. Raises InputError, which ends with the remedy."""
    try:
        return [line.strip() for line in read_bytes(path, MAX_LIST).decode(errors="replace").splitlines()]
    except Bad as error:
        raise InputError(f"{path}: {error}; {remedy}") from error


def inside(root: Path, name: Any) -> Path:
    """root/name, which exists and lies below root; Windows' ways out of it are refused everywhere."""
    if not isinstance(name, str) or not name:
        raise Bad(f"the file name is {short.repr(name)}; text is needed")
    if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise Bad(f"the file name {short.repr(name)} leaves the folder {root}; names must stay inside it")
    if not os.path.isfile(root / name):
        raise Bad(f"no file {short.repr(name)} in {root}")
    return root / name


def image_file(root: Path, name: Any, taken: set[Path]) -> Path:
    """root/name as `inside`, which nothing in `taken` is, and from now on is there."""
    path = inside(root, name)
    if path in taken:
        raise Bad(f"the image {short.repr(name)} is that of an earlier annotation")
    taken.add(path)
    return path


def stated_size(width: Any, height: Any, image: Path) -> tuple[int, int]:
    """(height, width) as stated; where missing, empty or 0, that of the image, upright."""
    sides = [0.0 if side in (None, "") else number(side, "the size") for side in (height, width)]
    if 0.0 in sides:
        try:
            with open(image, "rb") as file, opened(file, image, MAX_PIXELS) as header:
                return header.size if header.getexif().get(ORIENTATION, 1) >= 5 else header.size[::-1]
        except Exception as error:  # Pillow's decoders raise many kinds for broken data
            raise Bad(f"no size is stated, and the image does not tell it ({' '.join(str(error).split())})") from error
    if not all(side.is_integer() and 1 <= side <= MAX_SIDE for side in sides):
        raise Bad(f"width {short.repr(width)} and height {short.repr(height)} are no numbers of pixels")
    return int(sides[0]), int(sides[1])
