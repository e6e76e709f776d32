"""Checks that the readers of annotations share, and the collection of what is invalid."""

import codecs
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
from overfeat.data.images import ImageFile, open_header
from overfeat.data.limits import MAX_PIXELS
from overfeat.data.pixels import upright_size
from overfeat.errors import ArgumentError, InputError, shorten

MAX_LIST = 100_000_000  # bytes
OVERHANG = 1.0  # pixels that boxes of CSV, YOLO and LabelMe may extend beyond the image
ROUNDING = 0.02  # pixels of it that are not worth a note
MAX_SIDE = 1_000_000  # pixels that an annotation may state
FilePath = str | os.PathLike
Names = Sequence[str] | None
quoted = reprlib.Repr()
quoted.maxstring = 100


class Invalid(Exception):
    """What is wrong with an entry of an annotation file, and its line if the enclosing block does not name it."""

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.line = line


@dataclass
class ImageBoxes:
    """An image file, its size, and its valid boxes so far."""

    path: Path
    size: tuple[int, int]
    objects: dict[tuple[tuple[float, ...], str], bool] = field(default_factory=dict)  # (box, class): difficult

    def add(self, text: str, box: tuple[float, ...], name: str, overhang: float, difficult: bool = False) -> None:
        """Check a box (x1, y1, x2, y2) of class `name`, clip it and keep it.

        text: the box as the file writes it; overhang: pixels it may extend beyond the right and lower edges.
        """
        x1, y1, x2, y2 = box
        height, width = self.size
        if not all(map(math.isfinite, box)):
            raise Invalid(f"{text}: not finite")
        if x2 < x1 or y2 < y1:
            raise Invalid(f"{text}: reversed; the right and lower edges come second")
        if x2 == x1 or y2 == y1:
            raise Invalid(f"{text}: no area")
        inside = 0 <= x1 < width and 0 <= y1 < height
        if not inside or x2 > width + overhang or y2 > height + overhang:
            raise Invalid(f"{text}: outside the image, which is {width} pixels wide and {height} high")
        key = (x1, y1, min(x2, float(width)), min(y2, float(height))), name
        if key in self.objects:
            raise Invalid(f"{text}: the same box and class {quoted.repr(name)} as an earlier one of the image")
        self.objects[key] = difficult


class Problems:
    """Collects the invalid entries of a data set, and makes the data set of the valid ones."""

    def __init__(self, source: Path, skip: bool):
        self.source, self.skip = source, skip
        self.lines: list[str] = []
        self.adapted: dict[str, tuple[str, int]] = {}  # what was done: to what first, and how often

    def adapt(self, kind: str, example: str) -> None:
        """Record that something was read otherwise than written; the data set's notes say so, once for each kind."""
        first, count = self.adapted.get(kind, (example, 0))
        self.adapted[kind] = first, count + 1

    @contextmanager
    def at(self, location: object) -> Iterator[None]:
        """Invalid in the block ends the block, and is recorded with this location."""
        try:
            yield
        except Invalid as invalid:
            self.lines.append(f"{location}{f', line {invalid.line}' if invalid.line else ''}: {invalid}")

    def finish(self, images: list[ImageBoxes], class_names: Names) -> Annotated:
        """The data set; class_names None: the names of the boxes, sorted. Raises InputError."""
        used = {name for image in images for _, name in image.objects}
        count = f"{len(self.lines)} problem{'s' if len(self.lines) != 1 else ''} in the annotations"
        report = first_lines(self.lines)
        if self.lines and not self.skip:
            raise ArgumentError("skip_invalid", "skips these boxes and images", f"{self.source}: {count}:{report}\n")
        if not used:
            details = f"no usable box in {len(images)} images; " + (f"{count}:{report}\n" if self.lines else "")
            raise InputError(f"{self.source}: {details}give annotations with at least one valid box")
        names = sorted(used) if class_names is None else list(class_names)
        label_of = {name: label for label, name in enumerate(names)}
        samples = []
        for image in images:
            boxes = np.array([box for box, _ in image.objects], dtype=np.float64).reshape(-1, 4)
            labels = np.array([label_of[name] for _, name in image.objects], dtype=np.int64)
            difficult = np.array(list(image.objects.values()), dtype=bool)
            samples.append(Sample(image.path, boxes, labels, difficult, image.size))
        notes = [
            f"{kind}: {first}" + (f" and {count - 1} more" if count > 1 else "")
            for kind, (first, count) in self.adapted.items()
        ]
        return Annotated(names, samples, self.lines, notes)


def bounding_box(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    """The smallest box around points, which must be finite."""
    if not all(map(math.isfinite, (*xs, *ys))):
        raise Invalid("a point that is not finite")
    return min(xs), min(ys), max(xs), max(ys)


def clip_start(box: tuple[float, ...], size: tuple[int, int], problems: Problems, location: str) -> tuple[float, ...]:
    """The box without what is at most OVERHANG pixels to the left of the image or above it; notes any overhang."""
    x1, y1, x2, y2 = box
    beyond = max(-x1, -y1, x2 - size[1], y2 - size[0])
    if ROUNDING < beyond <= OVERHANG:
        problems.adapt("boxes up to a pixel over the edge, clipped", location)
    x1, y1 = (0.0 if -OVERHANG <= edge < 0 else edge for edge in (x1, y1))
    return x1, y1, x2, y2


def class_name(name: Any, classes: Mapping[str, str] | None) -> str:
    """The class of a name in a file; classes None: any text of one line that can be written to a file."""
    if not isinstance(name, str) or not name or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise Invalid(f"the class name is {quoted.repr(name)}; it must be one line of text")
    if classes is not None and name not in classes:
        raise Invalid(f"unknown class {quoted.repr(name)}; there are {len(classes)}: {shorten(list(classes.values()))}")
    return name if classes is None else classes[name]


def number(value: Any, name: str) -> float:
    """A number in JSON, or text of XML; infinite beyond float64's range."""
    try:
        if type(value) in (int, float) or (isinstance(value, str) and "_" not in value):
            return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    raise Invalid(f"{name} is {quoted.repr(value)}, not a number")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file. Raises Invalid if there is none, or it has more bytes than the limit."""
    if not os.path.isfile(path):
        raise Invalid("no such file")
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise Invalid(f"{size:,} bytes, more than the limit of {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot be read ({error.strerror})") from error


def read_text(path: Path, limit: int = MAX_LIST) -> str:
    """The text of a file in UTF-8, or in the encoding of its byte order mark. Raises Invalid."""
    data = read_bytes(path, limit)
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(f"not text in UTF-8 (line {line}); save it as UTF-8") from error


def text_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file. Raises InputError, which ends with the remedy."""
    try:
        return [line.strip() for line in read_bytes(path, MAX_LIST).decode(errors="replace").splitlines()]
    except Invalid as error:
        raise InputError(f"{path}: {error}; {remedy}") from error


def file_below(root: Path, name: Any) -> Path:
    """root/name, which must exist and lie below root; on every system, Windows' ways out of it are refused too."""
    if not isinstance(name, str) or not name:
        raise Invalid(f"the file name is {quoted.repr(name)}; it must be text")
    if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise Invalid(f"the file name {quoted.repr(name)} leaves the folder {root}; names must stay inside it")
    if not os.path.isfile(root / name):
        raise Invalid(f"no file {quoted.repr(name)} in {root}")
    return root / name


def image_file(root: Path, name: Any, used: set[Path]) -> Path:
    """root/name as `file_below`, once: it must not be in `used`, to which it is added."""
    path = file_below(root, name)
    if path in used:
        raise Invalid(f"the image {quoted.repr(name)} is that of an earlier annotation")
    used.add(path)
    return path


def stated_size(width: Any, height: Any, image: Path) -> tuple[int, int]:
    """(height, width) as stated; if missing, empty or 0, those of the image, upright."""
    sides = [0.0 if side in (None, "") else number(side, "the size") for side in (height, width)]
    if 0.0 in sides:
        try:
            with ImageFile(image) as file, open_header(file, image, MAX_PIXELS) as header:
                return upright_size(header)
        except Exception as error:  # Pillow's decoders raise many kinds for broken data
            reason = " ".join(str(error).split())
            raise Invalid(f"no size is stated, and it cannot be read from the image ({reason})") from error
    if not all(side.is_integer() and 1 <= side <= MAX_SIDE for side in sides):
        raise Invalid(f"width {quoted.repr(width)} and height {quoted.repr(height)} are not numbers of pixels")
    return int(sides[0]), int(sides[1])
