"""Reading images of every common kind as RGB bytes, and listing those of a folder."""

import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from overfeat.data.limits import MAX_PIXELS
from overfeat.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_header_lock = threading.Lock()


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The image in a file: uint8 [3, H, W], RGB, upright (its EXIF rotation applied).

    Transparent pixels are composited over white, 16-bit grey is scaled to 8 bits, and of several frames the first is
    read. InputError for a file that is not a complete image, has more than max_pixels pixels (checked in its header,
    before it is decoded), or holds numbers without a fixed range.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, not an image; give one of the files in it")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: empty (0 bytes); copy or download the image again")
            file.seek(0)
            with open_header(file, path, max_pixels) as image:
                return _to_tensor(image, path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read; check the file's permissions") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for broken data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or cut short ({reason}); copy or download the image again") from error


def open_header(file: BinaryIO, path: Path, max_pixels: int) -> Image.Image:
    """Read the header only. Pillow's own limit of pixels is suspended in favour of max_pixels."""
    with _header_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            raise InputError(f"{path}: not an image that Pillow can read; convert it to PNG or JPEG") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{path}: {height}x{width} pixels, more than the limit of {max_pixels:,}; make it smaller")
    return image


def _to_tensor(image: Image.Image, path: Path) -> torch.Tensor:
    depth = image.mode
    # Pillow gives 16-bit PNG and PGM files as mode I too; in other formats I is a 32-bit number.
    if depth == "F" or (depth == "I" and image.format not in ("PNG", "PPM")):
        problem = f"32-bit numbers per pixel (mode {depth}) have no fixed range of brightness"
        raise InputError(f"{path}: {problem}; convert it to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if depth == "I" or depth.startswith("I;16"):
        grey = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
        pixels = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        pixels = np.array(Image.alpha_composite(white, image).convert("RGB"))
    else:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The image files directly in a folder, by name, without hidden and partially written ones. Raises InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        reason = "a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {reason}; give the folder that holds the images")
    visible = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    paths = sorted(path for path in visible if path.is_file())
    if not paths:
        raise InputError(f"{folder}: no images in it; they end in {' '.join(SUFFIXES)}")
    return paths
