"""Checks that the readers of annotations share, and the collection of what is invalid."""

import codecs
import math
import os
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from overfeat.data.annotated import Annotated, Sample, first_lines
from overfeat.data.images import ImageFile, open_header
from overfeat.data.limits import MAX_PIXELS
from overfeat.data.pixels import upright_size
from overfeat.errors import ArgumentError, InputError, printable, reason_of, shorten

MAX_LIST = 100_000_000  # bytes
OVERHANG = 1.0  # pixels that a box may extend beyond the image: it is clipped
ROUNDING = 0.02  # pixels that rounded numbers make: they are not worth a note, nor an error beyond OVERHANG
MAX_SIDE = 1_000_000  # pixels that an annotation may state
FilePath = str | os.PathLike
Names = Sequence[str] | None
YES, NO = ("1", "1.0", "true", "yes", "t", "y"), ("", "0", "0.0", "false", "no", "f", "n", "none", "unspecified")
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

    def add(
        self, text: str, box: tuple[float, ...], name: str, problems: "Problems", difficult: bool = False,
        first: int = 0,
    ) -> None:  # fmt: skip
        """Check a box (x1, y1, x2, y2) of class `name`, clip up to OVERHANG pixels of it, and keep it.

        text: the box as the file writes it.
        first: the number of the first pixel in the file, already subtracted; boxes that count from 0 are allowed for.
        """
        x1, y1, x2, y2 = box
        height, width = self.size
        if not all(map(math.isfinite, box)):
            raise Invalid(f"{text}: not finite")
        if x2 < x1 or y2 < y1:
            raise Invalid(f"{text}: reversed; the right and lower edges come second")
        if x2 == x1 or y2 == y1:
            raise Invalid(f"{text}: no area")
        before, after = max(-x1, -y1), max(x2 - width, y2 - height)
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if max(before - first, after) > OVERHANG + ROUNDING or x1 >= x2 or y1 >= y2:
            raise Invalid(f"{text}: outside the image, which is {width} pixels wide and {height} high")
        key = (x1, y1, x2, y2), name
        if key in self.objects:
            raise Invalid(f"{text}: the same box and class {quoted.repr(name)} as an earlier one of the image")
        if max(before, after) > ROUNDING:
            problems.adapt("boxes up to a pixel over the edge, clipped")
        self.objects[key] = difficult


class Problems:
    """Collects the invalid entries of a data set, and makes the data set of the valid ones."""

    def __init__(self, source: Path, skip: bool):
        self.source, self.skip = source, skip
        self.lines: list[str] = []
        self.location: object = source
        self.adapted: dict[str, tuple[str, int]] = {}  # what was done: to what first, and how often

    def adapt(self, kind: str, example: str | None = None) -> None:
        """Record that something was read otherwise than written; the data set's notes say so, once for each kind.

        example: what was adapted; None: the location of the enclosing block.
        """
        first, count = self.adapted.get(kind, (example or str(self.location), 0))
        self.adapted[kind] = first, count + 1

    @contextmanager
    def at(self, location: object) -> Iterator[None]:
        """Invalid in the block ends the block, and is recorded with this location."""
        outer, self.location = self.location, location
        try:
            yield
        except Invalid as invalid:
            line = f", line {invalid.line}" if invalid.line else ""
            self.lines.append(printable(f"{location}{line}: {invalid}"))
        finally:
            self.location = outer

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
            f"{kind}: {printable(first)}" + (f" and {count - 1} more" if count > 1 else "")
            for kind, (first, count) in self.adapted.items()
        ]
        return Annotated(names, samples, self.lines, notes)


def bounding_box(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    """The smallest box around points, which must be finite."""
    if not all(map(math.isfinite, (*xs, *ys))):
        raise Invalid("a point that is not finite")
    return min(xs), min(ys), max(xs), max(ys)


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


def flag(value: Any, name: str) -> bool:
    """A flag as tools write it: a number, true or false, or a word; missing ones are false."""
    text = "" if value is None else str(value).strip().lower()
    if text not in YES + NO:
        raise Invalid(f"{name} is {quoted.repr(value)}, not 0 or 1")
    return text in YES


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


def read_text(path: Path, limit: int = MAX_LIST, errors: str = "strict") -> str:
    """The text of a file in UTF-8, or in the encoding of its byte order mark. Raises Invalid.

    errors: "strict" or "replace", as for `bytes.decode`.
    """
    data = read_bytes(path, limit)
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(f"not text in UTF-8 (line {line}); save it as UTF-8") from error


def text_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file. Raises InputError, which ends with the remedy."""
    try:
        return [line.strip() for line in read_text(path, errors="replace").splitlines()]
    except Invalid as error:
        raise InputError(f"{path}: {error}; {remedy}") from error


def stated_size(width: Any, height: Any, image: Path) -> tuple[int, int]:
    """(height, width) as stated; if missing, empty or 0, those of the image, upright."""
    sides = [0.0 if side in (None, "") else number(side, "the size") for side in (height, width)]
    if 0.0 in sides:
        try:
            with ImageFile(image) as file, open_header(file, image, MAX_PIXELS) as header:
                return upright_size(header)
        except Exception as error:  # Pillow's decoders raise many kinds for broken data
            raise Invalid(f"no size is stated, and it cannot be read from the image ({reason_of(error)})") from error
    if not all(side.is_integer() and 1 <= side <= MAX_SIDE for side in sides):
        raise Invalid(f"width {quoted.repr(width)} and height {quoted.repr(height)} are not numbers of pixels")
    return int(sides[0]), int(sides[1])
