"""Small pictures, files of VOC and COCO, and what readers say about bad files, for tests."""

import json

import pytest
from PIL import Image

from overfeat.errors import InputError

WIDTH, HEIGHT = 20, 10


def picture(path, size=(WIDTH, HEIGHT), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def voc_object(name, *edges, extra=""):
    box = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>\n"


def xml(path, *objects, file="a.png", size=(WIDTH, HEIGHT)):
    """The first object is on line 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = "<size><width>{}</width><height>{}</height></size>".format(*size) if size else ""
    path.write_text(f"<annotation><filename>{file}</filename>\n{stated}\n{''.join(objects)}</annotation>")


def coco(folder, images=None, annotations=None, categories=None):
    """By default one image with id 7 and one box."""
    folder.mkdir(exist_ok=True)
    picture(folder / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": [{"id": 2, "name": "bee"}, {"id": 1, "name": "ant"}] if categories is None else categories,
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def annotation(number=1, box=(1, 2, 3, 4), **other):
    return {"id": number, "image_id": 7, "category_id": 2, "bbox": box, **other}


def error_of(read, *arguments, **options):
    with pytest.raises(InputError) as caught:
        read(*arguments, **options)
    return str(caught.value)


def only_problem(read, *arguments):
    """The only problem, which the error and skip_invalid report alike, and the data set without it."""
    message = error_of(read, *arguments)
    data = read(*arguments, skip_invalid=True)
    assert message.splitlines()[0].endswith(": 1 problem in the annotations:")
    assert message.splitlines()[1:-1] == [f"  {line}" for line in data.problems]
    assert message.endswith("skip_invalid skips these boxes and images")
    return data.problems[0], data


def damaged(good, rng, pieces):
    """The bytes of a file with one to three short parts replaced by one of the pieces; None: two random bytes."""
    content = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        start, piece = rng.randrange(len(content)), rng.choice(pieces)
        content[start : start + rng.randint(0, 4)] = rng.randbytes(2) if piece is None else piece
    return content


def is_refused(folder, read, *arguments, **options):
    """Whether a damaged file is refused by an InputError, which can be printed.

    Else the pictures lie in the folder, and the boxes in the pictures.
    """
    try:
        data = read(*arguments, **options)
    except InputError as error:
        str(error).encode()
        return True
    for sample in data.samples:
        assert (sample.boxes >= 0).all() and (sample.boxes <= [WIDTH, HEIGHT] * 2).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert sample.path.resolve().is_relative_to(folder.resolve())
    return False
