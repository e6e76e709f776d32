"""Where the images, labels and class names of a data set in YOLO's format lie."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PureWindowsPath

from overfeat.data.images import SUFFIXES
from overfeat.data.readers import checks
from overfeat.data.readers.checks import Invalid
from overfeat.data.readers.locate import MAX_NAME, ImageLocator, files_in, walk
from overfeat.data.readers.yaml import MAX_YAML, Value, read_yaml
from overfeat.errors import InputError

SPLITS = ("train", "val", "valid", "validation", "test")
ALIASES = {"val", "valid", "validation"}  # names of the same split
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "names.txt", "_darknet.labels")
CONFIGS = ("data", "dataset", "obj")  # names without suffix of the files that come first
YAML, DARKNET = (".yaml", ".yml"), ".data"
LABEL = re.compile(r"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*")
DEPTH = 5  # folders above labels that are searched for names
SNIFFED = 200  # images, or lines


@dataclass(frozen=True)
class Layout:
    """A data set: its folder, the names of classes by number, and the folders or lists of images of its splits."""

    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]] = field(default_factory=dict)
    keypoints: bool = False  # the numbers after a box are the points of a pose

    def split(self, name: str) -> list[Path] | None:
        """The folders and lists of a split; "val", "valid" and "validation" are one. None if there is none."""
        others = sorted(ALIASES) if name in ALIASES else []
        listed = next((self.splits[key] for key in (name, *others) if key in self.splits), None)
        below = None if listed else _split_below(self.root, name)
        return [below] if below else listed


def read_layout(path: Path) -> Layout:
    """The layout of a folder, of a .yaml or darknet's .data file, or of a single file of labels or list of images.

    Raises InputError for a file that is not understood.
    """
    config = path if path.suffix.lower() in (*YAML, DARKNET) else _config_in(path) if path.is_dir() else None
    if config is not None:
        values = _read_config(config)
        root = config.parent
        splits = {name: _sources(root, values.get("path"), values[name]) for name in SPLITS if name in values}
        splits = {name: sources for name, sources in splits.items() if sources}
        names = _names_of(values["names"], config) if "names" in values else _names_near(root)
        return Layout(root, names, splits or _splits_below(root), "kpt_shape" in values)
    root = path if path.is_dir() else path.parent
    return Layout(root, _names_near(root), _splits_below(root) if path.is_dir() else {})


def _config_in(folder: Path) -> Path | None:
    """The file of a folder that names classes or splits; data.yaml comes first."""
    for file in sorted(
        files_in(folder, (*YAML, DARKNET)), key=lambda file: (file.stem.lower() not in CONFIGS, file.name)
    ):
        try:
            values = _read_config(file)
        except InputError:
            if file.stem.lower() in CONFIGS and file.suffix.lower() in YAML:
                raise
            continue  # a file of something else
        if "names" in values and (file.stem.lower() in CONFIGS or len(values) > 1):
            return file
    return None


def _read_config(path: Path) -> dict[str, Value]:
    """The keys of a .yaml file, or of darknet's .data, whose names lie in a file of their own."""
    if path.suffix.lower() in YAML:
        return read_yaml(path, ("path", "names", "kpt_shape", *SPLITS))
    lines = [line.partition("=") for line in _lines(path)]
    return {key.strip(): value.strip() for key, _, value in lines if key.strip() in ("names", *SPLITS)}


def _names_of(value: Value, config: Path) -> dict[int, str]:
    """Names by number from a list, a mapping, or a file that holds a name a line."""
    if isinstance(value, str):
        file = _existing(config.parent, value)
        if file is None or not file.is_file():
            raise InputError(f"{config}: no file {value!r} of names; write the names as a list")
        return _names_in(file)
    if isinstance(value, list):
        return dict(enumerate(value))
    if not all(re.fullmatch("[0-9]{1,6}", key) for key in value):
        raise InputError(f"{config}: names must be a list, or a mapping from numbers to names")
    return {int(key): name for key, name in value.items()}


def _names_near(folder: Path) -> dict[int, str]:
    """The names beside the images or labels, or in a folder above if these are only a part of its data set."""
    folders = [folder, *folder.absolute().parents][:DEPTH]
    parts = [i for i, above in enumerate(folders) if above.name.lower() in ("images", "labels", *SPLITS)]
    for above in folders[: max(parts, default=-1) + 2]:
        files = (parent / name for parent in (above, above / "labels") for name in NAME_FILES)
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            return _names_in(file)
        config = _config_in(above)
        values = _read_config(config) if config else {}
        if config and "names" in values:
            return _names_of(values["names"], config)
    return {}


def _names_in(path: Path) -> dict[int, str]:
    return {number: name for number, name in enumerate(_lines(path, MAX_YAML)) if name}


def _lines(path: Path, limit: int = checks.MAX_LIST) -> list[str]:
    try:
        return [line.strip() for line in checks.read_text(path, limit).splitlines()]
    except Invalid as error:
        raise InputError(f"{path}: {error}; give a text file") from error


def _sources(root: Path, prefix: Value | None, value: Value) -> list[Path]:
    """The folders and lists of a split that exist."""
    start = f"{prefix}/" if isinstance(prefix, str) else ""
    sources = (_existing(root, start + text) for text in ([value] if isinstance(value, str) else value))
    return [source for source in sources if source is not None]


def _existing(root: Path, text: str) -> Path | None:
    """The longest end of a path that exists below the root: other tools write paths of another computer, or with ..."""
    path = PureWindowsPath(text[:MAX_NAME])
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    ends = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if os.path.exists(end)), root if not parts else None)


def _splits_below(root: Path) -> dict[str, list[Path]]:
    """The splits that names of folders and lists show."""
    return {name: [source] for name in SPLITS if (source := _split_below(root, name))}


def _split_below(root: Path, name: str) -> Path | None:
    """images/NAME, NAME/images or NAME with labels, or NAME.txt."""
    folders = (root / "images" / name, root / name / "images", root / name)
    folder = next((folder for folder in folders if folder.is_dir() and has_labels(folder)), None)
    return root / f"{name}.txt" if folder is None and is_list(root / f"{name}.txt") else folder


def images_of(sources: Sequence[Path], locator: ImageLocator, problems: checks.Problems) -> list[Path]:
    """The images in folders, below them too, and in lists."""
    images: list[Path] = []
    lists = {source: _lines(source) for source in sources if not source.is_dir()}
    for line in chain.from_iterable(lists.values()):
        locator.claim(line, line)
    for source in sources:
        if source not in lists:
            images += walk(source)
            continue
        for number, line in enumerate(lists[source], 1):
            if line:
                with problems.at(f"{source}, line {number}"):
                    images.append(locator.image_of(line))
    return list(dict.fromkeys(images))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def label_file(image: Path) -> Path | None:
    """The file of labels: below "labels" for an image below "images", or beside it; None if there is neither."""
    folders = [*_twin(image.parent, "images", "labels"), image.parent]
    files = (folder / f"{image.stem}.txt" for folder in folders)
    return next((file for file in files if os.path.isfile(file)), None)


def image_folders(label: Path) -> list[Path]:
    """Where the image of a file of labels may lie."""
    return [*_twin(label.parent, "labels", "images"), label.parent]


def image_root(folder: Path) -> Path:
    """The folder, or the one of images for a folder of labels without images."""
    twins = [twin for twin in _twin(folder, "labels", "images") if twin.is_dir()]
    return twins[0] if twins and not any(walk(folder)) else folder


def _twin(folder: Path, name: str, other: str) -> list[Path]:
    """The folder whose path has `other` for the last part that is `name`, if there is one."""
    parts = folder.absolute().parts
    last = max((i for i, part in enumerate(parts) if part.lower() == name), default=None)
    return [] if last is None else [Path(*parts[:last], other, *parts[last + 1 :])]


def has_labels(folder: Path) -> bool:
    """Whether one of the first images in a folder or below has a file of labels in YOLO's format."""
    labels = (label_file(image) for image in islice(walk(folder), SNIFFED))
    return any(is_label(file) for file in labels if file)


def _holds_labels(folder: Path) -> bool:
    """Whether one of the first text files in a folder is one of labels that has objects."""
    texts = islice((file for file in sorted(folder.glob("*.txt")) if file.name[0] != "."), SNIFFED)
    return any(is_label(file) and first_line(file) for file in texts)


def is_label(path: Path) -> bool:
    """Whether a file is one of labels: its first line is a number and a box or polygon."""
    line = first_line(path)
    return path.name not in NAME_FILES and line is not None and (not line or bool(LABEL.fullmatch(line)))


def is_list(path: Path) -> bool:
    """Whether a file is a list of images: its first line ends as an image's name does."""
    line = first_line(path)
    return bool(line) and _is_image(PureWindowsPath(str(line)).name or ".")


def first_line(path: Path) -> str | None:
    """The first line that is not empty; empty without one, None if this is no text file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read(1 << 14).strip().partition("\n")[0].strip()
    except (OSError, ValueError):
        return None


def is_yolo(path: Path) -> bool:
    """Whether a folder or file is a data set in YOLO's format."""
    if path.is_dir():
        return _config_in(path) is not None or has_labels(path) or _holds_labels(path)
    return path.suffix.lower() in (*YAML, DARKNET) or is_label(path) or is_list(path)
