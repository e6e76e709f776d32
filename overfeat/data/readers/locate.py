"""The image files that annotations name, as tools on other systems write the names."""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from overfeat.data.images import SUFFIXES, refuse_folder
from overfeat.data.readers.checks import FilePath, Invalid, Problems, quoted
from overfeat.files import existing_dir

FOLDERS = ("images", "jpegimages", "image", "imgs", "img")  # where images lie beside a file of annotations
ANNOTATIONS = ("annotations", "annotation")  # where annotations lie beside a folder of images
MAX_NAME = 4096  # characters
Rank = tuple[bool, bool]  # the stem of the annotation's file is another, the name is adapted


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
        yield from (Path(parent, name) for name in sorted(files) if _is_listed(name, suffixes))


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with these suffixes, in any case, in a folder, sorted, no hidden ones. InputError as for `walk`."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        refuse_folder(error)
    paths = (folder / name for name in names if _is_listed(name, suffixes))
    return [path for path in paths if path.is_file()]


def _is_listed(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file counts: it has a suffix, and is neither hidden nor what GDAL writes beside an image."""
    return name.lower().endswith(suffixes) and name[0] != "." and not name.lower().endswith(".aux.xml")


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


@dataclass
class Claim:
    """The names of an annotation's image, and what came of them."""

    rest: list[Any]  # names not tried yet
    below: str
    stem: str
    name: Any = field(init=False)  # as the annotation writes it
    path: Path | None = None
    adapted: bool = False
    tried: set[Path] = field(default_factory=set)
    errors: list[Invalid] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.rest[0]


class ImageLocator:
    """Locates image files below some folders, whatever the system that wrote their names.

    A name may be a path of another computer (the longest end of it that exists counts), with backslashes, in other
    case, and without the suffix or with that of another image format. No name leads out of the folders.
    """

    def __init__(self, roots: Sequence[Path], problems: Problems, remedy: str = "; give the folder of the images"):
        self.roots, self.problems, self.remedy = roots, problems, remedy
        self.folders: dict[Path, dict[str, list[str]]] = {}  # the names in a folder by `_key`, and by that of the stem
        self.claims: dict[Hashable, Claim] = {}
        self.pending: list[Claim] = []
        self.best: dict[Path, tuple[Rank, Claim | None]] = {}  # of an image's claims; None if several are as good

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
        raise Invalid(f"no file {quoted.repr(name)} in {' or '.join(map(str, self.roots))}{self.remedy}")

    def claim(self, key: Hashable, *names: Any, below: str = "", stem: str = "") -> None:
        """Name the image of an annotation; `image_of` gives it when all annotations have named theirs.

        Of several that name an image, one whose own file has its stem gets it, then one that writes its name exactly;
        none does if these are several. The order of claims does not matter.

        names: the next counts if there is no such file, or another annotation gets it.
        stem: the name of the annotation's own file, without suffix.
        """
        if key not in self.claims:
            self.claims[key] = Claim(list(names), below, stem)
            self.pending.append(self.claims[key])

    def claim_files(self, files: Sequence[Path], root: Path, names_of: Callable[[Path], Sequence[Any]]) -> None:
        """`claim` for files that each annotate one image: that of its names, else the one named as the file.

        Files beside them that are named as these images claim them, too, even if they are not among `files`.

        root: the folder that corresponds to those of the images.
        names_of: reads the names, or raises Invalid, which is recorded.
        """
        queue, known = list(files), set(files)
        for number, file in enumerate(queue):
            with self.problems.at(file) if number < len(files) else suppress(Invalid):
                names, near = names_of(file), file.parent.relative_to(root).as_posix()
                self.claim(file, *names, file.stem, below=near, stem=file.stem)
                other = file.parent / f"{PureWindowsPath(str(names[0])).stem}{file.suffix}"
                if other not in known and os.path.isfile(other):
                    known.add(other)
                    queue.append(other)

    def image_of(self, key: Hashable) -> Path:
        """The image of a claim. A name that is adapted is noted. Raises Invalid if it gets none."""
        while self.pending:
            self._place(self.pending.pop())
        claim = self.claims[key]
        if claim.path is None:
            raise claim.errors[0]
        if claim.adapted:
            self.problems.adapt("image names adapted", f"{quoted.repr(claim.name)} is read as {claim.path}")
        return claim.path

    def _place(self, claim: "Claim") -> None:
        """Give a claim the first image to which no other's is as good; whose was worse is pending again."""
        while claim.rest and claim.path is None:
            name = claim.rest.pop(0)
            try:
                path, adapted = self.locate(name, claim.below)
            except Invalid as error:
                claim.errors.append(error)
                continue
            if path in claim.tried:
                continue
            claim.tried.add(path)
            rank = bool(claim.stem) and _stem(claim.stem) != _stem(path.name), adapted or not str(path).endswith(name)
            best, holder = self.best.get(path, (None, None))
            if best is not None and rank > best:
                claim.errors.append(_taken(name))
                continue
            if holder is not None:
                holder.path = None
                holder.errors.append(_taken(holder.name))
                self.pending.append(holder)
            if rank == best:
                self.best[path] = rank, None
                claim.errors.append(_taken(name))
                continue
            self.best[path] = rank, claim
            claim.path, claim.adapted = path, adapted or bool(claim.errors)

    def note_others(self) -> None:
        """Note the images beside those that `image_of` returns."""
        used = {claim.path for claim in self.claims.values() if claim.path}
        for folder in sorted({path.parent for path in used}):
            for path in files_in(folder, SUFFIXES):
                if path not in used:
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


def _taken(name: Any) -> Invalid:
    return Invalid(f"the image {quoted.repr(name)} is that of another annotation")


def _key(name: str) -> str:
    """The same for names that differ in case or in Unicode's way to write an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    """The key of a name without the suffix of an image format, which ends in a NUL: no file has this key."""
    key = _key(name)
    suffix = os.path.splitext(key)[1]
    return key[: len(key) - len(suffix)] + "\0" if suffix in SUFFIXES else key + "\0"
