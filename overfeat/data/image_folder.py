"""Labelled images on disk: a folder per class, and the ILSVRC classification layout."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overfeat.data.images import list_images
from overfeat.errors import InputError, shorten


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
    return gather_images(path, names, names)


def align(folder: ImageFolder, names: Sequence[str]) -> ImageFolder:
    """The same images, with labels that count in `names`, such as a net's class_names.

    Raises InputError that lists the folder's classes that `names` lacks and the other way round.
    """
    unknown = [name for name in folder.class_names if name not in set(names)]
    missing = [name for name in names if name not in set(folder.class_names)]
    problems = []
    if unknown:
        problems.append(f"classes of the images that the net does not know: {shorten(unknown)}")
    if missing:
        problems.append(f"classes of the net without images: {shorten(missing)}")
    if problems:
        raise InputError(f"{'; '.join(problems)}; folder names and class names must be the same")
    label_of = {name: label for label, name in enumerate(names)}
    samples = [(path, label_of[folder.class_names[label]]) for path, label in folder.samples]
    return ImageFolder(list(names), samples)


def gather_images(root: Path, names: list[str], folders: list[str]) -> ImageFolder:
    """The images of root/folders[i] as class i."""
    samples, empty = [], []
    for label, folder in enumerate(folders):
        try:
            samples += [(file, label) for file in list_images(root / folder)]
        except InputError:
            empty.append(folder)
    if empty:
        raise InputError(f"{root}: no images in the class folders {shorten(empty)}; add some, or remove the folders")
    return ImageFolder(list(names), samples)


def existing_folder(path: str | os.PathLike) -> Path:
    """The path. Raises InputError where no folder is there."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    return path
