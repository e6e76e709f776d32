"""Image files, shipped and in every format and mode that Pillow writes, most of them damaged: RGB, or refused."""

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import mutate, refused
from PIL import Image

import overfeat
from overfeat.data.images import PNG, VECTOR_FORMATS, read_image
from overfeat.errors import InputError

CASES = 400
NAMES = ("image", "image.jpg", "bild ü.tif", "a\nb.png", "\x1b[31m.png", os.fsdecode(b"\xff\xfe.png"))
SHIPPED = sorted(
    path for path in (Path(overfeat.__file__).parent / "assets").rglob("*") if path.suffix in (".png", ".jpg")
)
MODES = (
    "1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La", "I;16",
    "I;16B", "I;16L",
)  # fmt: skip
COMPRESSIONS = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group3", "group4", "tiff_ccitt", "lzma", "zstd")
Image.init()
FORMATS = tuple(sorted(Image.SAVE))


def check(rng: random.Random, folder: Path) -> str:
    size = None
    if rng.random() < 0.1:
        name, content = "shipped", rng.choice(SHIPPED).read_bytes()
    else:
        name, content, size = written(rng)
    damaged = rng.random() < 0.85
    if damaged:
        content, size = damage(content, rng), None
    path = folder / rng.choice(NAMES)
    path.write_bytes(content)
    try:
        image = read_image(path, **({} if rng.random() < 0.02 else {"max_pixels": 2_000_000}))
    except InputError as error:
        assert damaged or may_be_refused(name), f"{name}: {error}"
        return refused(error, path)
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3 and image.numel(), image.shape
    assert size is None or tuple(image.shape[1:]) == size, (name, image.shape, size)
    return "damaged, read" if damaged else "read"


def written(rng: random.Random) -> tuple[str, bytes, tuple[int, int] | None]:
    """A file that Pillow wrote: "FORMAT MODE", its bytes, and (height, width) unless the format has its own."""
    while True:
        kind, mode = rng.choice(FORMATS), rng.choice(MODES)
        if kind == "ICNS" and rng.random() < 0.9:  # with enlarged copies, which take long to write
            continue
        size = rng.choice(((1, 1), (3, 2), (16, 16), (33, 17), (1, 40), (64, 48)))
        file = io.BytesIO()
        try:
            picture(mode, size, rng).save(file, kind, **options(kind, rng))
        except Exception:
            continue  # this format does not have this mode
        return f"{kind} {mode}", file.getvalue(), None if kind in ("ICO", "ICNS") else size


def picture(mode: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*size, 4), np.uint8)
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, size[::-1], pixels[..., :2].tobytes())
    elif mode in ("I", "F"):
        image = Image.frombytes(mode, size[::-1], pixels.tobytes())
    elif mode in ("LAB", "PA", "RGBa", "La", "HSV"):
        image = Image.frombytes(mode, size[::-1], pixels[..., : len(Image.new(mode, (1, 1)).tobytes())].tobytes())
    else:
        image = Image.fromarray(pixels).convert(mode)
    return image


def options(kind: str, rng: random.Random) -> dict[str, Any]:
    """Random options of a format: compression, frames, EXIF, transparency, profile."""
    chosen: dict[str, Any] = {}
    if kind == "TIFF":
        chosen["compression"] = rng.choice(COMPRESSIONS)
    if kind in ("GIF", "TIFF", "PNG", "WEBP") and rng.random() < 0.2:
        chosen |= {"save_all": True, "append_images": [Image.new("RGB", (1, 1), "red")]}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 1, 0, 9, 3))
        exif[rng.choice((0x10F, 0x132, 0x9003, 0x11A))] = rng.choice(("text", "x" * 300))
        chosen["exif"] = exif.tobytes()
    if kind in ("PNG", "GIF") and "save_all" not in chosen and rng.random() < 0.3:
        chosen["transparency"] = rng.randrange(256)
    if kind in ("JPEG", "PNG", "TIFF", "WEBP") and rng.random() < 0.2:
        chosen["icc_profile"] = rng.randbytes(rng.choice((10, 200, 70_000)))
    return chosen


def damage(content: bytes, rng: random.Random) -> bytes:
    """Random bytes, or a mutated file; of PNGs also single chunks, with checksums that are right."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    if content.startswith(PNG) and rng.random() < 0.6:
        chunks = png_chunks(content)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(chunks))
            kind, data = chunks[at]
            chunks[at] = rng.choice((
                (kind, mutate(data, rng, 2)), (rng.choice(chunks)[0], data), (kind, data * 2), rng.choice(chunks),
            ))  # fmt: skip
        return PNG + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    return mutate(content, rng)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        chunks.append((kind, content[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def may_be_refused(name: str) -> bool:
    """Whether a whole file of this format and mode is none that has pixels of a fixed range."""
    kind, mode = (*name.split(), "")[:2]
    return mode in ("I", "F") or kind in (*VECTOR_FORMATS, "SPIDER", "PDF", "PALM", "BUFR", "GRIB", "HDF5", "XVTHUMB")
