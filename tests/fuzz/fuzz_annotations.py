"""Files of COCO, VOC, CSV, YOLO and LabelMe with damaged bytes, values or names: valid boxes, or refused by name."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import check_message, mutate
from PIL import Image

from overfeat.data.annotated import Annotated
from overfeat.data.readers.annotations import available_splits, read_annotations
from overfeat.errors import InputError

CASES = 400
WIDTH, HEIGHT = 20, 10
NAMES = ("bee", "ant", "Bär", "honey bee")
OUTSIDE = "secret.png"  # an image beside the folder of the data set, which no name may reach
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 0.5, -1e-6, 20.5, 1e308, 10**400, float("nan"), float("inf"), "", " ", "7",
    "nan", "1_0", "b", "B.PNG", f"../{OUTSIDE}", f"..\\{OUTSIDE}", "C:\\a.png", "/etc/passwd", "x" * 5000, "\ud800",
    "\0", "a\nb", "\x1b[31mred", "\u202ebee", "{}[]()<>&;,:'\"", "&lt;", "#", [], {}, [[1, 2]], {"id": 7}, [1, 2, 3, 4],
)  # fmt: skip
# The same image as other computers write its name.
SPELLINGS = (
    "{}.png",
    "{}.png",
    "{}",
    "{}.jpg",
    "./{}.png",
    "x/{}.png",
    "C:\\x\\{}.PNG",
    "..\\{}.png",
    "/home/x/{}.jpeg",
)
TOKEN = re.compile(r"[\w.\-]+")


Box = tuple[str, str, list[float]]  # the stem of the image, the class, and x1, y1, x2, y2


def check(rng: random.Random, folder: Path) -> str:
    data = folder / "set" / rng.choice(("data", "annotations", "train", "Ä b"))
    data.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / OUTSIDE)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(data / name)
    kind = rng.choice(sorted(WRITERS))
    boxes = random_boxes(rng)
    path, lost = WRITERS[kind](data, boxes, rng)
    if rng.random() < 0.5:
        file = rng.choice([file for file in data.rglob("*") if file.is_file() and file.suffix != ".png"])
        file.write_bytes(mutate(file.read_bytes(), rng))
        lost = None
    splits = listed(path)
    split = rng.choice([None, *splits, "train"])
    strict, skipping = (outcome(path, split, skip) for skip in (False, True))
    for result in (strict, skipping):
        if isinstance(result, Annotated):
            check_data(result, data)
        else:
            check_refusal(result, data)
    if isinstance(strict, Annotated):
        assert isinstance(skipping, Annotated) and skipping.fingerprint == strict.fingerprint
        assert not strict.problems and not skipping.problems
    if lost is not None and split is None:
        check_kept(skipping, boxes, lost)
    names = {True: "read", False: "refused"}
    read, skipped = (isinstance(result, Annotated) for result in (strict, skipping))
    return f"{names[read]}" if read == skipped else "read without what is invalid"


def random_boxes(rng: random.Random) -> list[Box]:
    """Some objects, none twice; edges may lie up to 3/4 of a pixel over those of the image."""
    boxes = []
    for number in range(rng.randint(2, 6)):
        x, y = rng.randint(-1, 12), rng.randint(-1, 6)
        box = [x + 0.25, y + 0.5, x + rng.randint(2, 8) + 0.75, y + rng.randint(2, 4) + 0.5]
        boxes.append(("ab"[number % 2], rng.choice(NAMES), box))
    return [entry for i, entry in enumerate(boxes) if clipped(entry) not in map(clipped, boxes[:i])]


def clipped(entry: Box) -> tuple[str, str, tuple[float, ...]]:
    """(name of the image, class, box within the image)."""
    stem, name, (x1, y1, x2, y2) = entry
    return f"{stem}.png", name, (max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT))


def listed(path: Path) -> list[str]:
    try:
        return available_splits(path)
    except InputError as error:
        check_refusal(error, path if path.is_dir() else path.parent)
        return []


def outcome(path: Path, split: str | None, skip: bool) -> Annotated | InputError:
    try:
        return read_annotations(path, split=split, skip_invalid=skip)
    except InputError as error:
        return error


def check_refusal(error: InputError, data: Path) -> None:
    lines = str(error).split("\n")
    assert len(lines) <= 24, f"{len(lines)} lines"
    for line in lines:
        check_message(line)
    assert str(data) in lines[0], f"the file is not named: {lines[0]!r}"


def check_data(annotated: Annotated, data: Path) -> None:
    """All boxes lie in their images, which lie in the folder; all texts are lines that can be printed."""
    assert annotated.fingerprint and annotated.describe()
    assert len(set(annotated.class_names)) == len(annotated.class_names)
    for line in [*annotated.problems, *annotated.notes]:
        check_message(line)
    assert len({sample.path.resolve() for sample in annotated.samples}) == len(annotated.samples)
    for sample in annotated.samples:
        height, width = sample.size
        assert sample.path.is_file() and sample.path.resolve().is_relative_to(data.parent.resolve()), sample.path
        assert (sample.boxes >= 0).all() and (sample.boxes <= [width, height] * 2).all(), sample.boxes
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(), sample.boxes
        assert ((sample.labels >= 0) & (sample.labels < len(annotated.class_names))).all()
        assert len(sample.boxes) == len(sample.labels) == len(sample.difficult)


def check_kept(result: Annotated | InputError, boxes: list[Box], lost: int) -> None:
    """One object of the file was changed, at most: all others are there."""
    assert isinstance(result, Annotated), result
    found = {
        (sample.path.name, result.class_names[label], tuple(np.round(box, 6).tolist()))
        for sample in result.samples
        for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True)
    }
    for number, entry in enumerate(boxes):
        assert number == lost or clipped(entry) in found, f"{clipped(entry)} is lost: {found}"


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part replaced, left out or twice there."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if rng.random() < 0.15 else rest | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        new = rng.choice(([], [value[i], value[i]], [changed(value[i], rng)], [changed(value[i], rng)]))
        return [*value[:i], *new, *value[i + 1 :]]
    return rng.choice(VALUES)


def changed_text(text: str, rng: random.Random) -> str:
    """A text with one of its words or numbers replaced."""
    tokens = list(TOKEN.finditer(text))
    token = rng.choice(tokens)
    return text[: token.start()] + str(rng.choice(VALUES)).replace("\ud800", "?") + text[token.end() :]


def spelled(stem: str, rng: random.Random) -> str:
    return rng.choice(SPELLINGS).format(stem)


def write(path: Path, text: str, rng: random.Random) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig"))))
    return path


def victim(boxes: list, rng: random.Random) -> int:
    """The object whose entry in the file is changed."""
    return rng.randrange(len(boxes))


def coco(data: Path, boxes: list, rng: random.Random) -> tuple[Path, int | None]:
    annotations = [
        {"id": i, "image_id": "ab".index(stem), "category_id": NAMES.index(name), "iscrowd": 0,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (stem, name, (x1, y1, x2, y2)) in enumerate(boxes)
    ]  # fmt: skip
    lost = victim(boxes, rng)
    annotations[lost] = changed(annotations[lost], rng)
    content = {
        "images": [
            {"id": i, "file_name": spelled(s, rng), "width": WIDTH, "height": HEIGHT} for i, s in enumerate("ab")
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    whole = rng.random() < 0.5
    path = write(data / "instances_train2017.json", json.dumps(changed(content, rng) if whole else content), rng)
    return rng.choice((path, data)), None if whole else lost


def labelme(data: Path, boxes: list, rng: random.Random) -> tuple[Path, int | None]:
    lost, whole = victim(boxes, rng), rng.random() < 0.5
    for stem in "ab":
        shapes: list[Any] = []
        for i, (image, name, (x1, y1, x2, y2)) in enumerate(boxes):
            if image == stem:
                shape = {"label": name, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle", "flags": {}}
                shapes.append(changed(shape, rng) if i == lost else shape)
        content = {"version": "5", "shapes": shapes, "imagePath": spelled(stem, rng), "imageData": None}
        content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        write(data / f"{stem}.json", json.dumps(changed(content, rng) if whole and stem == "a" else content), rng)
    return data, None if whole else lost


def voc(data: Path, boxes: list, rng: random.Random) -> tuple[Path, int | None]:
    lost, whole = victim(boxes, rng), rng.random() < 0.5
    for stem in "ab":
        objects = []
        for i, (image, name, box) in enumerate(boxes):
            if image == stem:
                x1, y1, x2, y2 = box
                edges = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
                inner = [f"<{tag}>{edge}</{tag}>" for tag, edge in edges]
                entry = [f"<name>{name}</name>", "<difficult>0</difficult>", f"<bndbox>{''.join(inner)}</bndbox>"]
                if i == lost:
                    entry = damaged_xml(entry, rng)
                objects.append(f"<object>{''.join(entry)}</object>\n")
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>{spelled(stem, rng)}</filename>\n{size}\n{''.join(objects)}</annotation>"
        write(data / f"{stem}.xml", changed_text(text, rng) if whole and stem == "a" else text, rng)
    return data, None if whole else lost


def damaged_xml(elements: list[str], rng: random.Random) -> list[str]:
    """One element left out, twice there, or with another text."""
    i = rng.randrange(len(elements))
    text = re.sub(r">[^<>]+<", lambda _: f">{xml_text(rng.choice(VALUES))}<", elements[i], count=1)
    return [*elements[:i], *rng.choice(([], [elements[i]] * 2, [text], [text])), *elements[i + 1 :]]


def xml_text(value: Any) -> str:
    text = re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff]", "?", str(value))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def table(data: Path, boxes: list, rng: random.Random) -> tuple[Path, int | None]:
    separator, lost, whole = rng.choice((",", ";", "\t")), victim(boxes, rng), rng.random() < 0.5
    names = {stem: spelled(stem, rng) for stem in "ab"}
    rows = [[names[stem], *map(str, box), name] for stem, name, box in boxes]
    damaged = rng.choice([str(value).replace("\ud800", "?") for value in VALUES])
    column = rng.randrange(6)
    rows[lost][column] = '"' + damaged.replace('"', '""') + '"'
    rows = [["image", "xmin", "ymin", "xmax", "ymax", "label"], *rows]
    text = "\n".join(map(separator.join, rows)) + "\n"
    path = write(data / "boxes.csv", changed_text(text, rng) if whole else text, rng)
    # Another name of an image may be that of the others' image, whose boxes are then refused.
    return rng.choice((path, data)), None if whole or column == 0 else lost


def yolo(data: Path, boxes: list, rng: random.Random) -> tuple[Path, int | None]:
    lost, whole = victim(boxes, rng), rng.random() < 0.5
    for stem in "ab":
        lines = []
        for i, (image, name, (x1, y1, x2, y2)) in enumerate(boxes):
            if image == stem:
                center = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
                fields = [str(NAMES.index(name)), *map(str, center)]
                if i == lost:
                    fields[rng.randrange(5)] = str(rng.choice(VALUES)).replace("\ud800", "?").replace("\n", " ")
                lines.append(" ".join(fields))
        write(data / "labels" / "train" / f"{stem}.txt", "\n".join(lines) + "\n", rng)
        (data / "images" / "train").mkdir(parents=True, exist_ok=True)
        (data / f"{stem}.png").rename(data / "images" / "train" / f"{stem}.png")
    names = rng.choice((f"names: {list(NAMES)}\n", "names:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(NAMES))))
    text = f"path: ../data # elsewhere\ntrain: images/train\nval: images/train\nnc: 4\n{names}"
    path = write(data / "data.yaml", changed_text(text, rng) if whole else text, rng)
    return rng.choice((path, data)), None if whole else lost


WRITERS: dict[str, Callable[..., tuple[Path, int | None]]] = {
    "coco": coco, "csv": table, "labelme": labelme, "voc": voc, "yolo": yolo
}  # fmt: skip
