"""ILSVRC: images, boxes, and lists of images that are ignored."""

import os
import re
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.image_folder import ImageFolder, LabeledImage
from overfeat.data.images import list_images
from overfeat.data.readers.checks import FilePath, ImageBoxes, Problems, quoted, text_lines
from overfeat.data.readers.image_folder import gather_images
from overfeat.data.readers.locate import walk
from overfeat.data.readers.voc import XML, image_boxes, parse_xml
from overfeat.errors import ArgumentError, InputError
from overfeat.files import existing_dir
from overfeat.packages import package


def read_ignore_list(path: FilePath) -> set[int]:
    """The numbers of ILSVRC's ignored validation images: one a line. InputError names a bad line."""
    lines = text_lines(Path(path), "give the development kit's list of ignored images")
    for number, line in enumerate(lines, 1):
        if not re.fullmatch("([0-9]{1,9})?", line):
            raise InputError(f"{path}, line {number}: the number of an image is needed, not {quoted.repr(line)}")
    return {int(line) for line in lines if line}


def read_pairs(path: FilePath) -> set[tuple[int, str]]:
    """ILSVRC detection's ignore_list: (number of an image from 1, class), one a line. InputError names a bad line."""
    pairs = set()
    for number, line in enumerate(text_lines(Path(path), "give the development kit's list"), 1):
        image, _, name = line.partition(" ")
        if not line:
            continue
        if not re.fullmatch("[0-9]{1,9}", image) or not name.strip():
            needed = "the number of an image and a class are needed"
            raise InputError(f"{path}, line {number}: {needed}, not {quoted.repr(line)}")
        pairs.add((int(image), name.strip()))
    return pairs


def read_ilsvrc_boxes(
    devkit: FilePath, images: FilePath, annotations: FilePath, split: str, *, skip_invalid: bool = False
) -> Annotated:
    """Read ILSVRC's images as `read_ilsvrc`, and their boxes from XML files of the same stem.

    Coordinates count from 0 and are inclusive; boxes that exceed the stated size by one pixel are clipped. Classes are
    those of `read_ilsvrc`, whichever images there are; <name> is the WNID.

    Args:
        devkit, images, split: As in `read_ilsvrc`.
        annotations: For "train" WNID/STEM.xml or STEM.xml, and images without one are not used; for "validation"
            STEM.xml for every image.
        skip_invalid: Skip invalid boxes and files; otherwise they raise InputError, as in `read_coco`.
    """
    folder = read_ilsvrc(devkit, images, split)
    annotations = existing_dir(annotations)
    classes = {name.split()[0]: name for name in folder.class_names}
    xmls = list(walk(annotations, XML))
    by_class = {(xml.parent.name, xml.stem): xml for xml in xmls}
    by_stem = {xml.stem: xml for xml in xmls if split == "validation" or xml.parent == annotations}
    problems = Problems(annotations, skip_invalid)
    annotated: list[ImageBoxes] = []
    for path, _ in folder.samples:
        xml = by_class.get((path.parent.name, path.stem)) or by_stem.get(path.stem)
        if xml or split == "validation":
            xml = xml or annotations / f"{path.stem}.xml"
            with problems.at(xml):
                annotated.append(image_boxes(xml, parse_xml(xml), path, classes, problems, ilsvrc=True))
    return problems.finish(annotated, folder.class_names)


GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "synsets.txt"


def read_ilsvrc(devkit: str | os.PathLike, images: str | os.PathLike, split: str) -> ImageFolder:
    """Read ILSVRC2012 images; the classes are in the order of the development kit's ILSVRC2012_ID.

    Class names are "WNID names", since names alone repeat.

    Args:
        devkit: The unpacked development kit or its data folder, with the synsets in synsets.txt (lines of
            "ILSVRC2012_ID WNID names") or in meta.mat.
        images: For "train" a folder of images per WNID; for "validation" a flat folder of
            ILSVRC2012_val_00000001.JPEG and so on, whose classes are in the kit's ground truth file.
        split: "train" or "validation".
    """
    devkit = existing_dir(devkit)
    data = devkit / "data" if (devkit / "data").is_dir() else devkit
    synsets = _read_synsets(data)
    names = [f"{wnid} {words}".strip() for wnid, words in synsets]
    if split == "train":
        return gather_images(existing_dir(images), names, [wnid for wnid, _ in synsets])
    if split == "validation":
        return ImageFolder(names, _validation_samples(existing_dir(images), data / GROUND_TRUTH, len(names)))
    raise ArgumentError("split", f"must be 'train' or 'validation', not {split!r}")


def _read_synsets(data: Path) -> list[tuple[str, str]]:
    """(WNID, names) of the classes in the order of their ILSVRC2012_ID."""
    text = data / SYNSETS
    rows = _synset_lines(text) if text.is_file() else _synset_meta(data)
    # The kit lists inner nodes of WordNet after the classes; only the classes, 1..1000, have images.
    rows = sorted(row for row in rows if row[0] <= 1000)
    if not rows or [row[0] for row in rows] != list(range(1, len(rows) + 1)):
        raise InputError(f"{data}: the ILSVRC2012_IDs of the synsets must be 1, 2, 3, ... without gaps")
    return [(wnid, words) for _, wnid, words in rows]


def _synset_lines(path: Path) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(text_lines(path, "give the development kit's list of synsets"), 1):
        if line:
            fields = line.split(maxsplit=2)
            if len(fields) < 2 or not re.fullmatch("[0-9]{1,9}", fields[0]):
                raise InputError(f"{path}, line {number}: 'ILSVRC2012_ID WNID names' is needed, not {line!r}")
            rows.append((int(fields[0]), fields[1], fields[2] if len(fields) > 2 else ""))
    return rows


def _synset_meta(data: Path) -> list[tuple[int, str, str]]:
    meta = data / "meta.mat"
    if not meta.is_file():
        raise InputError(f"{data}: neither {SYNSETS} nor meta.mat; devkit must be the development kit's folder")
    loadmat = package("scipy.io", f"{meta}: reading it needs", "train").loadmat
    try:
        synsets = loadmat(meta, simplify_cells=True)["synsets"]
        return [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), str(s["words"])) for s in synsets]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError(f"{meta}: not the development kit's list of synsets ({error})") from error


def _validation_samples(images: Path, truth: Path, classes: int) -> list[LabeledImage]:
    lines = " ".join(text_lines(truth, "it belongs to the development kit")).split()
    bad = [line for line in lines if not re.fullmatch("[0-9]{1,9}", line) or not 1 <= int(line) <= classes]
    if bad:
        raise InputError(f"{truth}: {bad[0]!r} is no ILSVRC2012_ID in 1..{classes}")
    samples = []
    for path in list_images(images):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", path.stem)
        if match and 1 <= int(match[1]) <= len(lines):
            samples.append(LabeledImage(path, int(lines[int(match[1]) - 1]) - 1))
    if len(samples) != len(lines):
        raise InputError(
            f"{images}: {len(samples)} files named ILSVRC2012_val_00000001.JPEG and so on, but {truth.name} "
            f"has {len(lines)} lines; validation images lie flat in one folder, all of them"
        )
    return sorted(samples)
