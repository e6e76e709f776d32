"""The image files that annotations name, as tools on other systems write the names."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from overfeat.data.images import SUFFIXES, refuse_folder
from overfeat.data.readers.checks import FilePath, Invalid, Problems, quoted
from overfeat.files import existing_dir

FOLDERS = ("images", "jpegimages", "image", "imgs", "img")  # where images lie beside a file of annotations
ANNOTATIONS = ("annotations", "annotation")  # where annotations lie beside a folder of images
MAX_NAME = 4096  # characters


def walk(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """The files with these suffixes, in any case, in a folder and below, in the order of their paths.

    Hidden files and folders are left out; links are followed. Raises InputError for a folder that cannot be read.
    """
    visited = set()
    for parent, folders, files in os.walk(folder, onerror=refuse_folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        yield from (Path(parent, name) for name in sorted(files) if name.lower().endswith(suffixes) and name[0] != ".")


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with these suffixes, in any case, in a folder, sorted, no hidden ones. InputError as for `walk`."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        refuse_folder(error)
    paths = (folder / name for name in names if name.lower().endswith(suffixes) and name[0] != ".")
    return [path for path in paths if path.is_file()]


def subfolders(folder: Path, names: Collection[str]) -> list[Path]:
    """The folders in a folder with one of these names, whatever their case."""
    try:
        below = [entry.name for entry in os.scandir(folder) if entry.name.lower() in names and entry.is_dir()]
    except OSError:
        return []
    return [Path(folder, name) for name in sorted(below)]


def is_annotations_folder(folder: Path) -> bool:
    """Whether the folder is one of annotations by its name, so that images lie in a folder beside it."""
    return folder.absolute().name.lower() in ANNOTATIONS


def image_roots(folder: Path, images: FilePath | None, stem: str = "") -> list[Path]:
    """The folders whose images annotations in `folder` may name.

    Without `images`: the folder, the one above if this is "annotations", and what lies in these and is called images
    or as a part of `stem`: for instances_train2017 there may be train2017 or images/train2017.

    Args:
        images: The only folder, if the caller gives one. InputError if it does not exist.
        stem: The name of the file of annotations, without suffix.
    """
    if images is not None:
        return [existing_dir(images)]
    roots = [folder, folder.parent if folder.name else folder.absolute().parent]
    roots = roots if is_annotations_folder(folder) else roots[:1]
    parts = {stem.lower(), *re.split(r"[_.\s]+", stem.lower())} - {""}
    below = [path for root in roots for path in subfolders(root, {*FOLDERS, *parts})]
    below += [path for root in below for path in subfolders(root, parts)]
    below.sort(key=lambda path: path.name.lower() not in parts)
    return list(dict.fromkeys([folder, *below, *roots]))


class ImageLocator:
    """Locates image files below some folders, whatever the system that wrote their names.

    A name may be a path of another computer (the longest end of it that exists counts), with backslashes, in other
    case, and without the suffix or with that of another image format. No name leads out of the folders.
    """

    def __init__(self, roots: Sequence[Path], problems: Problems):
        self.roots, self.problems = roots, problems
        self.folders: dict[Path, dict[str, list[str]]] = {}  # the names in a folder by `_key`, and by that of the stem
        self.used: set[Path] = set()

    def locate(self, name: Any, below: str = "") -> tuple[Path, bool]:
        """The file, and whether its name is another. Raises Invalid if there is none, or several fit.

        below: a folder in each of the folders that comes first.
        """
        if not isinstance(name, str) or not name or len(name) > MAX_NAME:
            raise Invalid(f"the image's file name is {quoted.repr(name)}; it must be the name of a file")
        roots = [*(root / below for root in self.roots if below), *self.roots]
        path = PureWindowsPath(name)
        if not Path(name).is_absolute() and ".." not in path.parts:
            for root in roots:
                if os.path.isfile(root / name):
                    return root / name, False
        parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
        for start in range(len(parts)):
            for root in roots:
                file = self._walk(root, parts[start:])
                if file is not None:
                    return file, path.as_posix() != file.relative_to(root).as_posix()
        raise Invalid(f"no file {quoted.repr(name)} in {' or '.join(map(str, self.roots))}")

    def locate_unused(self, name: Any, *others: str, below: str = "") -> Path:
        """The file, once: Invalid if an earlier call returned it. A name that is adapted is noted.

        others: names that are tried if there is no such file, or an earlier call returned it.
        """
        errors = []
        for tried in (name, *others):
            try:
                path, adapted = self.locate(tried, below)
                if path in self.used:
                    raise Invalid(f"the image {quoted.repr(tried)} is that of an earlier annotation")
            except Invalid as error:
                errors.append(error)
                continue
            if adapted or errors:
                self.problems.adapt("image names adapted", f"{quoted.repr(name)} is read as {path}")
            self.used.add(path)
            return path
        raise errors[0]

    def note_others(self) -> None:
        """Note the images beside those that `locate_unused` returned."""
        for folder in sorted({path.parent for path in self.used}):
            for path in files_in(folder, SUFFIXES):
                if path not in self.used:
                    self.problems.adapt("images that no annotation names, left out", str(path))

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
