"""Images with boxes on disk, in the layout that a path has."""

import os
from functools import partial
from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.data.readers.checks import FilePath, Names
from overfeat.data.readers.coco import read_coco
from overfeat.data.readers.voc import read_voc, xml_files
from overfeat.errors import InputError, shorten

LAYOUTS = (
    "give a COCO .json file, a folder with SPLIT.json and its split's name, a PASCAL VOC folder with Annotations/ "
    "and JPEGImages/, or a folder with VOC's XML files beside the images"
)


def read_annotations(
    path: FilePath, images: FilePath | None = None, split: str | None = None, class_names: Names = None, *,
    skip_invalid: bool = False,
) -> Annotated:  # fmt: skip
    """Read a .json file or a folder with SPLIT.json by `read_coco`, a folder with Annotations/ or XML by `read_voc`.

    The other arguments are those of the two. Raises InputError for anything else, and for a split of a .json file.
    """
    path = Path(path)
    coco = partial(read_coco, images=images, class_names=class_names, skip_invalid=skip_invalid)
    if path.suffix.lower() == ".json" and not path.is_dir():
        if split is not None:
            raise InputError(f"{path}: a file has no split {split!r}; leave the split out, or give the file's folder")
        return coco(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'no annotations' if path.exists() else 'no such file or folder'}; {LAYOUTS}")
    if split is not None and os.path.isfile(path / f"{split}.json"):
        return coco(path / f"{split}.json")
    if (path / "Annotations").is_dir() or xml_files(path):
        return read_voc(path, split, images=images, class_names=class_names, skip_invalid=skip_invalid)
    splits = sorted(file.stem for file in path.glob("*.json"))
    if splits:
        raise InputError(f"{path}: no split {split!r} in it; give one of {shorten(splits)}")
    raise InputError(f"{path}: no annotations in it; {LAYOUTS}")
