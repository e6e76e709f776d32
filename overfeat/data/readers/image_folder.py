"""A folder of images for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

from overfeat.data.image_folder import ImageFolder, LabeledImage
from overfeat.data.images import list_images
from overfeat.errors import InputError, shorten
from overfeat.files import existing_dir


def read_image_folder(path: str | os.PathLike) -> ImageFolder:
    """Read a folder that holds one folder of images per class; classes are sorted by name.

    The folders in a class folder are read, too, as torchvision's ImageFolder does.

    Raises InputError for a missing folder, one without class folders, and class folders without images, by name.
    """
    path = existing_dir(path)
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise InputError(f"{path}: no folders in it; there must be one for each class, with its images inside")
    return gather_images(path, names, names)


def gather_images(root: Path, names: Sequence[str], folders: Sequence[str]) -> ImageFolder:
    """The images of root/folders[i] as class i, named names[i]."""
    samples, empty = [], []
    for label, folder in enumerate(folders):
        try:
            samples += [LabeledImage(file, label) for file in list_images(root / folder, recursive=True)]
        except InputError:
            empty.append(folder)
    if empty:
        raise InputError(f"{root}: no images in the class folders {shorten(empty)}; add some, or remove the folders")
    return ImageFolder(list(names), samples)
