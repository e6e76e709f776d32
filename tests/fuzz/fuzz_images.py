"""Image files, shipped and in every format and mode that Pillow writes, most of them damaged: RGB, or refused."""

import io
import os
import random
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from harness import mutate, refused
from PIL import Image, ImageOps

import overfeat
from overfeat.data.images import PNG, VECTOR_FORMATS, read_image
from overfeat.errors import InputError

CASES = 350
NAMES = ("image", "image.jpg", "bild ü.tif", "a\nb.png", "\x1b[31m.png", os.fsdecode(b"\xff\xfe.png"))
SHIPPED = sorted(
    path for path in (Path(overfeat.__file__).parent / "assets").rglob("*") if path.suffix in (".png", ".jpg")
)
MODES = (
    "1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La", "I;16",
    "I;16B", "I;16L",
)  # fmt: skip
COMPRESSIONS = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group3", "group4", "tiff_ccitt", "lzma", "zstd")
SIZES = ((1, 1), (3, 2), (16, 16), (33, 17), (1, 40), (64, 48))
PHOTOMETRIC = ("rgb", "minisblack", "miniswhite")
WITH_EXIF, ORIENTATION = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"), 0x0112
LOSSLESS = ("BMP", "DIB", "IM", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF")
UNREADABLE = (*VECTOR_FORMATS, "SPIDER", "PDF", "PALM", "BUFR", "GRIB", "HDF5", "XVTHUMB")
Image.init()
FORMATS = tuple(sorted(Image.SAVE))


@dataclass(frozen=True)
class Written:
    """An image file, and what must be read from it."""

    name: str  # format, mode, options
    content: bytes
    size: tuple[int, int] | None = None  # (height, width); None: the format has sizes of its own
    pixels: np.ndarray | None = None  # [H, W, 3] in 0..255, to 1; None: the file does not hold them exactly
    readable: bool = True  # whether it holds pixels of a fixed range


def check(rng: random.Random, folder: Path) -> str:
    source = rng.random()
    if source < 0.1:
        file = Written("shipped", rng.choice(SHIPPED).read_bytes())
    else:
        file = written_by_tifffile(rng) if source < 0.2 else written_by_pillow(rng)
    damaged = rng.random() < 0.85
    path = folder / rng.choice(NAMES)
    path.write_bytes(damage(file.content, rng) if damaged else file.content)
    try:
        image = read_image(path, **({} if rng.random() < 0.02 else {"max_pixels": 2_000_000}))
    except InputError as error:
        assert damaged or not file.readable, f"{file.name}: {error}"
        return refused(error, path)
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3 and image.numel(), image.shape
    if damaged:
        return "damaged but read"
    assert file.size in (None, tuple(image.shape[1:])), (file.name, image.shape, file.size)
    if file.pixels is None:
        return "read"
    difference = np.abs(image.permute(1, 2, 0).numpy() - file.pixels).max()
    assert difference <= 1, f"{file.name}: wrong by {difference}"
    return "read exactly"


def written_by_pillow(rng: random.Random) -> Written:
    """A random format that Pillow writes, and a mode that the format has."""
    while True:
        kind, mode = rng.choice(FORMATS), rng.choice(MODES)
        if kind == "ICNS" and rng.random() < 0.9:  # with enlarged copies, which take long to write
            continue
        image, file = picture(mode, rng.choice(SIZES), rng), io.BytesIO()
        try:
            chosen = options(kind, rng)
            if kind in WITH_EXIF and rng.random() < 0.3:
                chosen["exif"] = exif = random_exif(rng)
                image.save(file, kind, **chosen)
                image.getexif()[ORIENTATION] = exif[ORIENTATION]
                image = ImageOps.exif_transpose(image)
            else:
                image.save(file, kind, **chosen)
        except Exception:
            continue  # this format does not have this mode or these options
        pixels = None
        if kind in LOSSLESS and mode in ("L", "RGB") and "transparency" not in chosen:
            pixels = np.asarray(image.convert("RGB")).astype(int) if chosen.get("compression") != "jpeg" else None
        size = None if kind in ("ICO", "ICNS") else (image.height, image.width)
        readable = mode not in ("I", "F") and kind not in UNREADABLE
        return Written(f"{kind} {mode} {sorted(chosen)}", file.getvalue(), size, pixels, readable)


def picture(mode: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """An image of random pixels."""
    pixels = random_pixels((*size, 4), np.uint8, rng)
    if mode.startswith("I;16"):
        return Image.frombytes(mode, size[::-1], pixels[..., :2].tobytes())
    if mode in ("I", "F"):
        return Image.frombytes(mode, size[::-1], pixels.tobytes())
    if mode in ("LAB", "PA", "RGBa", "La", "HSV"):
        return Image.frombytes(mode, size[::-1], pixels[..., : len(Image.new(mode, (1, 1)).tobytes())].tobytes())
    return Image.fromarray(pixels).convert(mode)


def random_pixels(shape: tuple[int, ...], dtype: Any, rng: random.Random) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def written_by_tifffile(rng: random.Random) -> Written:
    """A TIFF of 8 or 16 bits, grey or RGB, in planes or tiles, of both byte orders, as microscopes write."""
    size, dtype, photometric = rng.choice(SIZES), rng.choice((np.uint8, np.uint16)), rng.choice(PHOTOMETRIC)
    layout = rng.choice(("contig", "separate")) if photometric == "rgb" else None
    pixels = random_pixels((*size, 3) if layout else size, dtype, rng)
    chosen = {"compression": rng.choice((None, None, "zlib")), "tile": rng.choice((None, None, (16, 16)))}
    order, big, file = rng.choice("<>"), rng.random() < 0.2, io.BytesIO()
    values = np.moveaxis(pixels, 2, 0) if layout == "separate" else pixels
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as tiff:
        tiff.write(values, photometric=photometric, planarconfig=layout, **chosen)
    expected = pixels * (255 / np.iinfo(dtype).max)
    expected = 255 - expected if photometric == "miniswhite" else expected
    expected = expected if layout else np.repeat(expected[..., None], 3, axis=2)
    name = f"tifffile {dtype.__name__} {photometric} {layout} {chosen} {order} {big}"
    unknown_to_pillow = order == ">" and (big or (dtype == np.uint16 and photometric == "miniswhite"))
    return Written(name, file.getvalue(), size, expected, not unknown_to_pillow)


def random_exif(rng: random.Random) -> Image.Exif:
    """An orientation, valid or not, and another tag."""
    exif = Image.Exif()
    exif[ORIENTATION] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535))
    exif[rng.choice((0x10F, 0x132, 0x9003))] = rng.choice(("text", "x" * 300))
    return exif


def options(kind: str, rng: random.Random) -> dict[str, Any]:
    """Random options of a format: compression, frames, transparency, profile."""
    chosen: dict[str, Any] = {}
    if kind == "TIFF":
        chosen["compression"] = rng.choice(COMPRESSIONS)
    if kind in ("GIF", "TIFF", "PNG", "WEBP") and rng.random() < 0.2:
        chosen |= {"save_all": True, "append_images": [Image.new("RGB", (1, 1), "red")]}
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
