"""Data sets of synthetic images on disk: PNG files and a COCO file."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from overfeat.data.synthetic import DIGITS
from overfeat.data.synthetic.images import check_arguments, make_image
from overfeat.data.synthetic.sources import load_sources
from overfeat.errors import ArgumentError, InputError
from overfeat.files import atomic_write, ensure_dir

Objects = list[tuple[int, list[float]]]  # label and [x, y, width, height] of each digit of an image


def write_dataset(
    folder: str | Path, split: str, count: int, *, seed: int = 0, objects: tuple[int, int] = (1, 1),
    digits: Sequence[int] = DIGITS, num_workers: int = 1, progress: bool = True,
) -> Path:  # fmt: skip
    """Write images 0 to count - 1 of a split as PNG files, and one COCO file, whose path is returned.

    Images of exactly one digit go to folder/<split>/<label>/<index>.png, others to folder/<split>/<index>.png;
    folder/<split>.json is written last. A run that was interrupted can be repeated: images that exist are kept.
    Raises InputError if the folder holds other images, or the source packages are missing.

    Args:
        folder: The data set's folder, created if missing.
        split, seed, objects, digits: See `make_image`.
        num_workers: Processes; more than one need a caller under `if __name__ == "__main__":`.
    """
    folder = Path(folder)
    check_arguments(split, seed, objects, digits)
    for name, value in {"count": count, "num_workers": num_workers}.items():
        if value < 1:
            raise ArgumentError(name, f"must be 1 or more, not {value}")
    existing = _existing_images(folder / split, count)
    load_sources(split)
    ensure_dir(folder / split)
    write = partial(_write_image, folder, split, seed, objects, digits)
    tasks = [(index, existing.get(index)) for index in range(count)]
    bar = partial(tqdm, total=count, desc=f"{split} images", unit="image", disable=not progress)
    images = _map(write, tasks, num_workers, bar)
    info = {"description": "overfeat synthetic images", "split": split, "seed": seed, "objects": list(objects)}
    if tuple(digits) != DIGITS:
        info["digits"] = list(digits)
    with atomic_write(folder / f"{split}.json") as part:
        part.write_text(json.dumps(_coco(info, images)) + "\n", encoding="utf-8")
    return folder / f"{split}.json"


def _map(write: Callable, tasks: list, num_workers: int, bar: Callable) -> list:
    """The results of `write` for all tasks, in this process or in several."""
    if num_workers == 1:
        return list(bar(map(write, tasks)))
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(bar(pool.map(write, tasks, chunksize=16)))


def _coco(info: dict, images: list[tuple[dict, Objects]]) -> dict:
    """The content of a COCO file."""
    boxes = [(entry["id"], label, box) for entry, objects in images for label, box in objects]
    annotations = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, label, box) in enumerate(boxes, 1)
    ]
    return {
        "info": info,
        "images": [entry for entry, _ in images],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in DIGITS],
    }


def _existing_images(folder: Path, count: int) -> dict[int, Path]:
    """The numbered images in a split's folder."""
    existing: dict[int, Path] = {}
    for path in sorted(folder.rglob("[0-9]*.png")):
        if path.stem.isdecimal():
            if int(path.stem) >= count or int(path.stem) in existing:
                raise InputError(f"{path}: not one of the {count} images requested; remove it or give an empty folder")
            existing[int(path.stem)] = path
    return existing


def _write_image(
    folder: Path, split: str, seed: int, objects: tuple[int, int], digits: Sequence[int], task: tuple[int, Path | None]
) -> tuple[dict, Objects]:
    """Write one image unless it exists; returns its COCO entry and its digits."""
    index, existing = task
    made = make_image(split, seed, index, objects=objects, digits=digits)
    name = Path(split, str(made.labels[0]) if tuple(objects) == (1, 1) else "", f"{index:05d}.png")
    path = folder / name
    if existing is None:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as part:
            Image.fromarray(made.image).save(part, format="PNG", compress_level=3)
    elif existing != path or not _same_pixels(path, made.image):
        raise InputError(
            f"{existing}: not image {index} of split {split}, seed {seed}, objects {objects[0]} {objects[1]}, "
            f"digits {' '.join(map(str, digits))}; remove it, or give the options it was made with, or an empty folder"
        )
    height, width = made.image.shape[:2]
    entry = {"id": index, "file_name": name.as_posix(), "width": width, "height": height}
    corners = zip(made.labels.tolist(), made.boxes.tolist(), strict=True)
    return entry, [(label, [x1, y1, x2 - x1, y2 - y1]) for label, (x1, y1, x2, y2) in corners]


def _same_pixels(path: Path, expected: np.ndarray) -> bool:
    try:
        with Image.open(path) as image:
            return np.array_equal(np.asarray(image), expected)
    except (OSError, SyntaxError):
        return False
