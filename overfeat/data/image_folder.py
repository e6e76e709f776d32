"""Labelled images on disk."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.errors import InputError, shorten


class LabeledImage(NamedTuple):
    """An image file and its label."""

    path: Path
    label: int

    def read(self, max_pixels: int = MAX_PIXELS) -> Tensor:
        """The image: uint8 [3, H, W]. Raises InputError as read_image."""
        return read_image(self.path, max_pixels)


@dataclass(frozen=True)
class ImageFolder:
    """Images whose labels are indices into class_names."""

    class_names: list[str]
    samples: list[LabeledImage]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """A hash of classes, file names and labels in order, without the folders they lie in."""
        digest = hashlib.sha256("\n".join(self.class_names).encode(errors="surrogateescape"))
        for path, label in self.samples:
            digest.update(f"\n{label}/{path.name}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """The number of images and classes, and the fingerprint, in words."""
        return f"{len(self)} images of {len(self.class_names)} classes ({self.fingerprint})"


def align(folder: ImageFolder, names: Sequence[str]) -> ImageFolder:
    """The same images, with labels that are indices into `names`, such as a net's class_names.

    Raises InputError that lists the folder's classes that `names` lacks, and the reverse.
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
    samples = [LabeledImage(path, label_of[folder.class_names[label]]) for path, label in folder.samples]
    return ImageFolder(list(names), samples)
