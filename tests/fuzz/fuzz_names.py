"""Commands on images and classes with any names, some no text: each on one line, and a result for each image."""

import contextlib
import functools
import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import torch
from harness import STEERING
from PIL import Image

import overfeat
from overfeat.cli.main import main
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat

CASES = 6
OPTIONS = {
    "classify": ["--top-k", "1", "--scales", "1.0"],
    "localize": ["--scales", "1.0", "-n", "2"],
    "detect": ["--scales", "1.0", "--min-score", "0"],
    "features": ["-L", "3"],
}
PARTS = (
    b"photo", b"a b", b"\n", b"\r", b"\t", b"\x1b[31m", b"\x7f", b"\xff\xfe", b"\xc2\x9b2J", b"\xe2\x80\xae", b"-",
    b"%s", b"{}", b"*", b"'\"", b"\\", b"~", b"#", b"$\\frac$", b"<b>", b".", b"x" * 60,
    "äöü 猫".encode(), "e\u0301".encode(),
)  # fmt: skip


def check(rng: random.Random, folder: Path) -> str:
    images = folder / "images"
    images.mkdir()
    names = {f"i{random_name(rng)}{rng.choice(('.png', '.PNG'))}" for _ in range(rng.randint(1, 3))}
    files = sorted(images / name for name in names)
    for file in files:
        file.write_bytes(picture())
    net, regressor = thin_net(sorted({random_name(rng) for _ in range(2)}))
    overfeat.save(net, folder / "net.safetensors", regressor=regressor)
    command = rng.choice(sorted(OPTIONS))
    given = [images] if rng.random() < 0.5 else files
    options = [*OPTIONS[command], "--weights", str(folder / "net.safetensors"), "-o", str(folder / "out")]
    (folder / "out").mkdir()
    status, printed = run([command, *map(str, given), *options])
    assert status == 0, printed
    assert not any(map(STEERING.search, printed.split("\n"))), repr(printed)
    suffix = ".npz" if command == "features" else ".json"
    results = [path for path in (folder / "out").rglob("*") if path.suffix == suffix]
    if command == "features":
        assert len(results) == len(files), results
    else:
        contents = [json.loads(path.read_bytes()) for path in results]
        assert sorted(each["image"] for each in contents if "image" in each) == [str(file) for file in files]
    return command


def random_name(rng: random.Random) -> str:
    """Some parts, as Python decodes the name of a file; at most 240 bytes."""
    return os.fsdecode(b"".join(rng.choice(PARTS) for _ in range(rng.randint(1, 4)))[:240])


@functools.cache
def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 48), (200, 30, 90)).save(file, format="PNG")
    return file.getvalue()


def thin_net(class_names: list[str]) -> tuple[OverFeat, BoxRegressor]:
    """A detector with few channels and random weights."""
    torch.manual_seed(0)
    small = ARCHITECTURES["small"]
    thin = replace(small, convs=tuple(replace(conv, channels=4) for conv in small.convs), hidden=(8,))
    net = overfeat.build(thin, len(class_names) + 1)
    net.class_names, net.background, net.scale_factors = [*class_names, "background"], True, (1.0,)
    return net, BoxRegressor(thin)


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status of a command, and what it printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        status = main(arguments)
    return status, "".join(stream.buffer.getvalue().decode() for stream in streams)
