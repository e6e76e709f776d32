"""The image files that annotations name, as tools on other systems write the names."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from overfeat.data.images import SUFFIXES
from overfeat.data.readers.checks import FilePath, Invalid, Problems, quoted
from overfeat.files import existing_dir

FOLDERS = ("images", "jpegimages", "image", "imgs", "img")  # where images lie beside a file of annotations
MAX_NAME = 4096  # characters


def image_roots(folder: Path, images: FilePath | None) -> list[Path]:
    """The folders whose images annotations in `folder` may name; `images`: the folder that the caller gives, or None.

    Raises InputError if the given folder does not exist.
    """
    if images is not None:
        return [existing_dir(images)]
    try:
        below = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.lower() in FOLDERS)
    except OSError:
        below = []
    return [folder, *(folder / name for name in below)]


class ImageLocator:
    """Locates image files below some folders, whatever the system that wrote their names.

    A name may be a path of another computer (the longest end of it that exists counts), with backslashes, in other
    case, and without the suffix or with that of another image format. No name leads out of the folders.
    """

    def __init__(self, roots: Sequence[Path], problems: Problems):
        self.roots, self.problems = roots, problems
        self.folders: dict[Path, dict[str, list[str]]] = {}  # the names in a folder by `_key`, and by that of the stem
        self.used: set[Path] = set()

    def locate(self, name: Any, noted: bool = True) -> Path:
        """The file. Raises Invalid if there is none, or several fit. noted: a name that is adapted is noted."""
        if not isinstance(name, str) or not name or len(name) > MAX_NAME:
            raise Invalid(f"the image's file name is {quoted.repr(name)}; it must be the name of a file")
        literal = PurePosixPath(name)
        if not literal.is_absolute() and ".." not in literal.parts:
            for root in self.roots:
                if os.path.isfile(root / name):
                    return root / name
        path = PureWindowsPath(name)
        parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
        for start in range(len(parts)):
            for root in self.roots:
                file = self._walk(root, parts[start:])
                if file is not None:
                    if noted and path.as_posix() != file.relative_to(root).as_posix():
                        self.problems.adapt("image names adapted", f"{quoted.repr(name)} is read as {file}")
                    return file
        raise Invalid(f"no file {quoted.repr(name)} in {' or '.join(map(str, self.roots))}")

    def locate_unused(self, name: Any) -> Path:
        """As `locate`, once a file: Invalid if an earlier call returned it."""
        path = self.locate(name)
        if path in self.used:
            raise Invalid(f"the image {quoted.repr(name)} is that of an earlier annotation")
        self.used.add(path)
        return path

    def _walk(self, folder: Path, parts: Sequence[str]) -> Path | None:
        for part in parts[:-1]:
            names = self._names(folder).get(_key(part), [])
            name = part if part in names else next(iter(names), None)
            if name is None or not (folder / name).is_dir():
                return None
            folder /= name
        listing = self._names(folder)
        for key in (_key(parts[-1]), _stem(parts[-1])):
            files = [name for name in listing.get(key, []) if os.path.isfile(folder / name)]
            if parts[-1] in files or len(files) == 1:
                return folder / (parts[-1] if parts[-1] in files else files[0])
            if files:
                raise Invalid(f"{quoted.repr(parts[-1])} may be {' or '.join(files[:3])} in {folder}; name one of them")
        return None

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.folders:
            names: dict[str, list[str]] = {}
            try:
                entries = sorted(os.listdir(folder))
            except OSError:
                entries = []
            for name in entries:
                names.setdefault(_key(name), []).append(name)
                if _key(name).endswith(SUFFIXES) and _stem(name) != _key(name):
                    names.setdefault(_stem(name), []).append(name)
            self.folders[folder] = names
        return self.folders[folder]


def _key(name: str) -> str:
    """The same for names that differ in case or in Unicode's way to write an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    """The key of a name without the suffix of an image format, which ends in a NUL: no file has this key."""
    key = _key(name)
    suffix = os.path.splitext(key)[1]
    return key[: len(key) - len(suffix)] + "\0" if suffix in SUFFIXES else key + "\0"
