"""Labelled images on disk: a folder per class, and the ILSVRC classification layout."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overfeat.data.images import list_images
from overfeat.files import InputError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "synsets.txt"


@dataclass(frozen=True)
class ImageFolder:
    """Images and their classes: samples are (file, index into class_names)."""

    class_names: list[str]
    samples: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """The same for the same classes, file names and labels in the same order, wherever they lie."""
        digest = hashlib.sha256("\n".join(self.class_names).encode(errors="surrogateescape"))
        for path, label in self.samples:
            digest.update(f"\n{label}/{path.name}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """In words: how many images and classes, and the fingerprint."""
        return f"{len(self)} images of {len(self.class_names)} classes ({self.fingerprint})"


def read_image_folder(path: str | os.PathLike) -> ImageFolder:
    """Read a folder that holds one folder of images a class; classes are sorted by name.

    Raises InputError for a missing folder, one without class folders, and class folders without
    images, which are named.
    """
    path = existing_folder(path)
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise InputError(f"{path}: no folders in it; there must be one for each class, with its images inside")
    return _gather(path, names, names)


def align(folder: ImageFolder, names: Sequence[str]) -> ImageFolder:
    """The same images, with labels that count in `names`, such as a net's class_names.

    Raises InputError that lists the folder's classes that `names` lacks and the other way round.
    """
    unknown = [name for name in folder.class_names if name not in set(names)]
    missing = [name for name in names if name not in set(folder.class_names)]
    problems = []
    if unknown:
        problems.append(f"classes of the images that the net does not know: {some(unknown)}")
    if missing:
        problems.append(f"classes of the net without images: {some(missing)}")
    if problems:
        raise InputError(f"{'; '.join(problems)}; folder names and class names must be the same")
    label_of = {name: label for label, name in enumerate(names)}
    samples = [(path, label_of[folder.class_names[label]]) for path, label in folder.samples]
    return ImageFolder(list(names), samples)


def read_ilsvrc(devkit: str | os.PathLike, images: str | os.PathLike, split: str) -> ImageFolder:
    """Read ILSVRC2012 images; class order is the development kit's ILSVRC2012_ID, 1 first.

    devkit: the unpacked development kit or its data folder, with the synsets in synsets.txt
    (lines of "ILSVRC2012_ID WNID names") or in meta.mat. split "train": a folder of images a WordNet id. split
    "validation": a flat folder of ILSVRC2012_val_00000001.JPEG and so on, their classes in the
    kit's ground truth file. Class names are "WNID names", since names alone repeat. Raises
    InputError where files are missing or do not fit together.
    """
    devkit = existing_folder(devkit)
    data = devkit / "data" if (devkit / "data").is_dir() else devkit
    synsets = _read_synsets(data)
    names = [f"{wnid} {words}".strip() for wnid, words in synsets]
    if split == "train":
        return _gather(existing_folder(images), names, [wnid for wnid, _ in synsets])
    if split == "validation":
        return ImageFolder(names, _validation_samples(existing_folder(images), data / GROUND_TRUTH, len(names)))
    raise InputError(f"the split is 'train' or 'validation', not {split!r}")


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
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            fields = line.split(maxsplit=2)
            if len(fields) < 2 or not fields[0].isdigit():
                raise InputError(f"{path}, line {number}: 'ILSVRC2012_ID WNID names' is needed, not {line!r}")
            rows.append((int(fields[0]), fields[1], fields[2] if len(fields) > 2 else ""))
    return rows


def _synset_meta(data: Path) -> list[tuple[int, str, str]]:
    meta = data / "meta.mat"
    if not meta.is_file():
        raise InputError(f"{data}: neither {SYNSETS} nor meta.mat; --devkit names the development kit's folder")
    from scipy.io import loadmat  # takes a while, and few have need of it

    try:
        synsets = loadmat(meta, simplify_cells=True)["synsets"]
        return [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), str(s["words"])) for s in synsets]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError(f"{meta}: not the development kit's list of synsets ({error})") from error


def _validation_samples(images: Path, truth: Path, classes: int) -> list[tuple[Path, int]]:
    if not truth.is_file():
        raise InputError(f"{truth}: no such file; it belongs to the development kit")
    lines = truth.read_text(encoding="utf-8", errors="replace").split()
    bad = [line for line in lines if not line.isdigit() or not 1 <= int(line) <= classes]
    if bad:
        raise InputError(f"{truth}: {bad[0]!r} is no ILSVRC2012_ID in 1..{classes}")
    samples = []
    for path in list_images(images):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", path.stem)
        if match and 1 <= int(match[1]) <= len(lines):
            samples.append((path, int(lines[int(match[1]) - 1]) - 1))
    if len(samples) != len(lines):
        raise InputError(
            f"{images}: {len(samples)} files named ILSVRC2012_val_00000001.JPEG and so on, but {truth.name} "
            f"has {len(lines)} lines; validation images lie flat in one folder, all of them"
        )
    return sorted(samples)


def _gather(root: Path, names: list[str], folders: list[str]) -> ImageFolder:
    """The images of root/folders[i] as class i."""
    samples, empty = [], []
    for label, folder in enumerate(folders):
        try:
            samples += [(file, label) for file in list_images(root / folder)]
        except InputError:
            empty.append(folder)
    if empty:
        raise InputError(f"{root}: no images in the class folders {some(empty)}; add some, or remove the folders")
    return ImageFolder(list(names), samples)


def existing_folder(path: str | os.PathLike) -> Path:
    """The path. Raises InputError where no folder is there."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    return path


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more there are, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
