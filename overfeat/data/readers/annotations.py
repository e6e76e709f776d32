"""Images with boxes on disk, in the format that a path's content has."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from overfeat.data.annotated import Annotated
from overfeat.data.readers import yolo_layout
from overfeat.data.readers.checks import FilePath, Names
from overfeat.data.readers.coco import read_coco
from overfeat.data.readers.csv import read_csv
from overfeat.data.readers.labelme import is_labelme, json_files, labelme_files, read_labelme
from overfeat.data.readers.locate import ANNOTATIONS, files_in, is_annotations_folder, subfolders, walk
from overfeat.data.readers.voc import XML, read_voc
from overfeat.data.readers.yolo import read_yolo
from overfeat.errors import InputError, shorten

TABLES = (".csv", ".tsv")
SPLITS = ("trainval", *yolo_layout.SPLITS)  # names of splits that a folder of each may have
NAMED = "(?<![a-z]){}(?![a-z])"  # a split in the name of a file
LAYOUTS = (
    "give a COCO .json file, a folder with SPLIT.json and its split's name, a PASCAL VOC folder with Annotations/ "
    "and JPEGImages/, a table (.csv) of boxes, a YOLO folder with data.yaml or labels/ beside images/, or a folder "
    "with files of VOC (.xml), LabelMe (.json) or YOLO (.txt) beside the images"
)
Reader = Callable[..., Annotated]


def read_annotations(
    path: FilePath, images: FilePath | None = None, split: str | None = None, class_names: Names = None, *,
    skip_invalid: bool = False,
) -> Annotated:  # fmt: skip
    """Read a file or folder of boxes by `read_coco`, `read_voc`, `read_csv`, `read_yolo` or `read_labelme`.

    The other arguments are those of these. A split of a folder is a file SPLIT.json or SPLIT.csv, a list of VOC's, a
    split of YOLO's, or a folder SPLIT in any of the formats; instead of train.json there may be one file like
    instances_train2017.json; "val", "valid" and "validation" are one. These files may lie in a folder "annotations".
    The notes name a file that was chosen.

    Raises:
        InputError: A path with none of the formats, a folder that lacks the split, or a split of a file without splits.
    """
    path = Path(path)
    options: dict[str, Any] = {"images": images, "class_names": class_names, "skip_invalid": skip_invalid}
    if not path.is_dir():
        return _read_file(path, split, options)
    files, inner, is_voc = _named_files(path), _annotations_below(path), _is_voc(path)
    if split in files and not (is_voc and files[split].suffix.lower() in TABLES):
        return _read_chosen(files[split], split, options)
    if is_voc and (split is None or inner is None or split not in _named_files(inner)):
        return read_voc(path, split, **options)
    if inner is not None:
        return read_annotations(inner, images, split, class_names, skip_invalid=skip_invalid)
    if yolo_layout.is_yolo(path):
        return read_yolo(path, split, **options)
    if split is None and is_labelme(path):
        return read_labelme(path, **options)
    if split is None and len(files) == 1:
        return _read_chosen(next(iter(files.values())), split, options)
    if split is not None and (path / split).is_dir():
        return read_annotations(path / split, images, None, class_names, skip_invalid=skip_invalid)
    splits = available_splits(path)
    if splits:
        return read_annotations(path, images, _same_split(path, split, splits), class_names, skip_invalid=skip_invalid)
    if split is None and any(walk(path, XML)):
        return read_voc(path, **options)
    if split is None and labelme_files(path):
        return read_labelme(path, **options)
    raise InputError(f"{path}: no annotations in it; {LAYOUTS}")


def _same_split(path: Path, split: str | None, splits: list[str]) -> str:
    """The one of the splits that has another name of the same split. Raises InputError if there is none."""
    others = [name for name in splits if {name, split} <= yolo_layout.ALIASES]
    if split in splits or not others:
        problem = "it has several splits" if split is None else f"no split {split!r} in it"
        raise InputError(f"{path}: {problem}; give one of {shorten(splits)}")
    return others[0]


def _read_chosen(path: Path, split: str | None, options: dict[str, Any]) -> Annotated:
    """Read a file of a folder; a note names it unless its name is that of the split."""
    data = _read_file(path, None, options)
    if split == path.stem or (split is None and not is_annotations_folder(path.parent)):
        return data
    return replace(data, notes=[f"annotations read: {path}", *data.notes])


def _read_file(path: Path, split: str | None, options: dict[str, Any]) -> Annotated:
    reader = _reader_of(path)
    if reader is None:
        raise InputError(f"{path}: {'no annotations' if path.exists() else 'no such file or folder'}; {LAYOUTS}")
    if reader is read_yolo and available_splits(path):
        return read_yolo(path, split, **options)
    if split is not None:
        raise InputError(f"{path}: a file has no split {split!r}; leave the split out, or give the file's folder")
    return reader(path, **options)


def _reader_of(path: Path) -> Reader | None:
    """The reader of a file by its suffix, else by how it begins."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_labelme if is_labelme(path) else read_coco
    by_suffix: dict[str, Reader] = {".xml": read_voc, **dict.fromkeys(TABLES, read_csv)}
    if suffix in by_suffix or not path.is_file():
        return by_suffix.get(suffix)
    if yolo_layout.is_yolo(path):
        return read_yolo
    line = yolo_layout.first_line(path) or ""
    if line.startswith("{"):
        return read_labelme if is_labelme(path) else read_coco
    return read_voc if line.startswith("<") else read_csv if max(map(line.count, ",;\t")) >= 5 else None


def available_splits(path: FilePath) -> list[str]:
    """The names of the splits of a folder, or of a YOLO .yaml or .data file, for `read_annotations`.

    One .json or .csv file alone is a split only if it is named as one.
    """
    path = Path(path)
    if not path.is_dir():
        is_config = path.is_file() and path.suffix.lower() in (*yolo_layout.YAML, yolo_layout.DARKNET)
        return list(yolo_layout.read_layout(path).splits) if is_config else []
    files, inner = _named_files(path), _annotations_below(path)
    names = list(files)
    if len(names) == 1 and names[0] not in SPLITS:
        names = []
    if _is_voc(path):
        # VOC also has a list for every class there, "dog_train".
        lists = sorted((path / "ImageSets" / "Main").glob("*.txt"))
        splits = [name for name in names if files[name].suffix.lower() not in TABLES]
        splits += [file.stem for file in lists if "_" not in file.stem]
    elif inner is not None:
        splits = names + available_splits(inner)
    elif yolo_layout.is_yolo(path):
        splits = [name for name in names if name in SPLITS] + list(yolo_layout.read_layout(path).splits)
    else:
        splits = names or [name for name in SPLITS if _has_annotations(path / name)]
    return list(dict.fromkeys(splits))


def _split_files(folder: Path) -> list[Path]:
    """The files of a folder that may each be a split: COCO's, and tables."""
    return [*([] if is_labelme(folder) else json_files(folder)), *files_in(folder, TABLES)]


def _named_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that may each be a split, by its name.

    That of train.json is "train", and so is that of instances_train2017.json if no other file is for training.
    """
    files = _split_files(folder)
    named = {file.stem: file for file in reversed(files)}
    splits = {file: [name for name in SPLITS if re.search(NAMED.format(name), file.stem.lower())] for file in files}
    for name in set(SPLITS) - set(named):
        fits = [file for file in files if splits[file] == [name]]
        fits = [file for file in fits if file.stem.lower().startswith("instances")] or fits
        if len(fits) == 1:
            named[name] = named.pop(fits[0].stem)
    return dict(sorted(named.items(), key=lambda item: files.index(item[1])))


def _is_voc(folder: Path) -> bool:
    """Whether there are XML files in a folder, or in or below its Annotations."""
    return bool(files_in(folder, XML)) or any(any(walk(below, XML)) for below in subfolders(folder, ANNOTATIONS))


def _annotations_below(folder: Path) -> Path | None:
    """The folder "annotations" in a folder, if it holds other files than VOC's."""
    below = subfolders(folder, ANNOTATIONS)
    return next((path for path in below if _split_files(path) or is_labelme(path)), None)


def _has_annotations(folder: Path) -> bool:
    """Whether a folder holds annotations in one of the formats, images being beside them."""
    if not folder.is_dir():
        return False
    formats = (_is_voc, _split_files, _annotations_below, is_labelme, yolo_layout.is_yolo)
    return any(check(folder) for check in formats)
