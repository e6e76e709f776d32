"""Images with boxes, as the readers of annotations return them, and what prepares them for use.

Boxes are x1, y1, x2, y2 in pixels, continuous and half-open: the whole image is (0, 0, width, height).
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.errors import ArgumentError, InputError, printable, shorten, with_path


@dataclass(frozen=True)
class Sample:
    """An image file and its boxes float64 [n, 4], labels int64 [n] and VOC's flag difficult, bool [n].

    size: (height, width) that the boxes refer to, as the annotation states it; if it states none, that of the image as
    `read_image` returns it.
    """

    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    size: tuple[int, int]

    def read(self, max_pixels: int = MAX_PIXELS) -> Tensor:
        """The image: uint8 [3, H, W]. Raises InputError as `read_image`, and if its size is not the stated one."""
        image = read_image(self.path, max_pixels)
        self.check(image)
        return image

    def check(self, image: Tensor) -> None:
        """Raises InputError for an image of another size than stated: the boxes would be wrong."""
        (height, width), (stated_height, stated_width) = image.shape[1:], self.size
        if (height, width) != self.size:
            sizes = f"{height}x{width} px, but its annotation is for {stated_height}x{stated_width}"
            raise InputError(f"{self.path}: {sizes}; give the image that was annotated")


@dataclass(frozen=True)
class Annotated:
    """Images with boxes whose labels are indices into class_names.

    problems: what skip_invalid skipped, a line each; notes: what was read otherwise than written, and what
    `select_classes` did.
    """

    class_names: list[str]
    samples: list[Sample]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def boxes(self) -> np.ndarray:
        """The boxes of all samples, float64 [n, 4], each in pixels of its image."""
        return np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in self.samples)])

    @property
    def labels(self) -> np.ndarray:
        """The labels of all boxes, int64 [n]."""
        return np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in self.samples)])

    @property
    def difficult(self) -> np.ndarray:
        """VOC's flag of all boxes, bool [n]."""
        return np.concatenate([np.zeros(0, bool), *(sample.difficult for sample in self.samples)])

    @property
    def fingerprint(self) -> str:
        """A hash of classes, file names, boxes and labels in order, without the folders they lie in."""
        digest = hashlib.sha256("\n".join(self.class_names).encode(errors="surrogatepass"))
        for sample in self.samples:
            digest.update(f"\n{len(sample.labels)}/{sample.path.name}\n".encode(errors="surrogatepass"))
            digest.update(sample.labels.astype("<i8").tobytes() + sample.boxes.astype("<f8").tobytes())
            if sample.difficult.any():
                digest.update(sample.difficult.tobytes())
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """The number of images, boxes and classes, and the fingerprint, in words."""
        return (
            f"{len(self)} images with {len(self.labels)} boxes of {len(self.class_names)} classes ({self.fingerprint})"
        )


def align_boxes(annotated: Annotated, names: Sequence[str], owner: str = "the net") -> Annotated:
    """The same data, with labels that are indices into `names`, such as a net's class_names.

    Raises InputError that lists the classes of boxes that `names` lacks; owner: of the names, for the message.
    """
    label_of = {name: label for label, name in enumerate(names)}
    used = set().union(*(sample.labels.tolist() for sample in annotated.samples))
    unknown = [name for label, name in enumerate(annotated.class_names) if label in used and name not in label_of]
    if unknown:
        remedy = "rename them in the annotations" + (", or the net's classes" if owner == "the net" else "")
        raise InputError(f"classes of the boxes that {owner} does not know: {shorten(unknown)}; {remedy}")
    new = np.array([label_of.get(name, -1) for name in annotated.class_names], dtype=np.int64)
    samples = [replace(sample, labels=new[sample.labels]) for sample in annotated.samples]
    return replace(annotated, class_names=list(names), samples=samples)


def select_classes(annotated: Annotated, mapping: Mapping[str, str]) -> Annotated:
    """The same images with the boxes of some classes, under new names: several with one name are merged.

    Boxes of other classes are left out; images without boxes stay. Equal boxes of merged classes become one. The notes
    of the result say what was merged and left out.

    Args:
        mapping: The new name of each class that is kept, in the order of the new classes.

    Raises:
        InputError: A class that the data do not have, or no box that is left.
    """
    counts = np.bincount(annotated.labels, minlength=len(annotated.class_names))
    unknown = [name for name in mapping if name not in annotated.class_names]
    if unknown or not mapping:
        there = f"there are {len(annotated.class_names)}: {', '.join(annotated.class_names)}"
        raise InputError(f"classes that the data do not have: {shorten(unknown)}; {there}")
    names = list(dict.fromkeys(mapping.values()))
    new = np.array([names.index(mapping[name]) if name in mapping else -1 for name in annotated.class_names])
    samples = [_relabeled(sample, new[sample.labels]) for sample in annotated.samples]
    if not any(len(sample.labels) for sample in samples):
        raise InputError(f"no box of the classes {shorten(list(mapping))}; choose classes that have boxes")
    notes = [*annotated.notes, *_selection(dict(zip(annotated.class_names, counts.tolist(), strict=True)), mapping)]
    return replace(annotated, class_names=names, samples=samples, notes=notes)


def _relabeled(sample: Sample, labels: np.ndarray) -> Sample:
    """The sample with new labels, without boxes of label -1 and without repetitions of a box and label."""
    first: dict[tuple[tuple[float, ...], int], int] = {}
    for i, (box, label) in enumerate(zip(sample.boxes.tolist(), labels.tolist(), strict=True)):
        if label >= 0:
            first.setdefault((tuple(box), label), i)
    kept = np.array(list(first.values()), dtype=np.int64)
    return replace(sample, boxes=sample.boxes[kept], labels=labels[kept], difficult=sample.difficult[kept])


def _selection(counts: Mapping[str, int], mapping: Mapping[str, str]) -> list[str]:
    """What a mapping of classes does, in words; counts: the boxes of each class."""

    def boxes(name: str) -> str:
        return f"{name} ({counts[name]} {'box' if counts[name] == 1 else 'boxes'})"

    notes = []
    for target in dict.fromkeys(mapping.values()):
        sources = [name for name in mapping if mapping[name] == target]
        if sources != [target]:
            notes.append(f"class {target}: {' + '.join(map(boxes, sources))}")
    dropped = [boxes(name) for name in counts if name not in mapping and counts[name]]
    return notes + ([f"classes left out: {shorten(dropped)}"] if dropped else [])


def readable(annotated: Annotated, max_pixels: int = MAX_PIXELS, skip_invalid: bool = False) -> Annotated:
    """The same data, after every image was read once; with progress.

    Images that cannot be read or have another size than stated raise InputError that names the first 20 of them; with
    skip_invalid they are skipped, and `problems` lists them alone.
    """

    def problem(sample: Sample) -> str | None:
        try:
            sample.read(max_pixels)
        except InputError as error:
            return with_path(sample.path, error)
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # each holds an image
        problems = pool.map(problem, annotated.samples)
        bar = tqdm(problems, "reading", len(annotated), unit="image", leave=False, disable=None, file=sys.stderr)
        lines = list(bar)
    samples = [sample for sample, line in zip(annotated.samples, lines, strict=True) if line is None]
    lines = [line for line in lines if line is not None]
    if lines and not (skip_invalid and any(len(sample.labels) for sample in samples)):
        report = f"{len(lines)} of {len(annotated)} images cannot be used:{first_lines(lines)}\n"
        if not any(len(sample.labels) for sample in samples):
            raise InputError(f"{report}the others have no box; correct these, or give other images")
        raise ArgumentError("skip_invalid", "skips them", report)
    return replace(annotated, samples=samples, problems=lines)


def first_lines(lines: list[str]) -> str:
    """The first 20, each on a line of its own."""
    more = [f"and {len(lines) - 20} more"] if lines[20:] else []
    return "".join(f"\n  {printable(line)}" for line in lines[:20] + more)
