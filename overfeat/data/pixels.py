"""RGB bytes of an image that Pillow opened, upright."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from overfeat.data.decoders import BITS, PREMULTIPLIED, decoded
from overfeat.errors import InputError

Pixels = np.ndarray[Any, np.dtype[Any]]
ORIENTATION = 0x0112  # the EXIF tag
# Planes [..., H, W] of an upright image in the order in which a file of each orientation stores the pixels.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda planes: planes[..., ::-1],
    3: lambda planes: planes[..., ::-1, ::-1],
    4: lambda planes: planes[..., ::-1, :],
    5: lambda planes: planes.swapaxes(-2, -1),
    6: lambda planes: planes[..., ::-1].swapaxes(-2, -1),
    7: lambda planes: planes[..., ::-1, ::-1].swapaxes(-2, -1),
    8: lambda planes: planes[..., ::-1, :].swapaxes(-2, -1),
}
WIDTH, HEIGHT, PHOTOMETRIC, COLOR_MAP = 256, 257, 262, 320  # TIFF's tags
WHITE_IS_ZERO = 0
STRIP = 1 << 20  # pixels that are converted at a time
MIN_MASKED = 0.5  # of the pixels of an alpha channel are fully opaque or transparent


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image whose header was read, as `rgb` gives it."""
    width, height = _stored_size(image)
    return (width, height) if _orientation(image) >= 5 else (height, width)


def rgb(image: Image.Image) -> Pixels:
    """The pixels: uint8 [3, H, W], upright, transparent ones over white, 12- and 16-bit grey scaled to 8 bits.

    Raises:
        InputError: for numbers without a fixed range.
    """
    depth = image.mode
    # Pillow gives 16-bit PNG and PGM files as mode I too; in other formats I is a 32-bit number.
    if depth == "F" or (depth == "I" and image.format not in ("PNG", "PPM")):
        problem = f"32-bit numbers per pixel (mode {depth}) have no fixed range of brightness"
        raise InputError(f"{problem}; convert it to 8 or 16 bits")
    tags = _tags(image)
    image = decoded(image)  # first, as the orientation of a PNG is read after its pixels
    if COLOR_MAP in tags and max(tags[COLOR_MAP]) < 256:
        image.putpalette(np.array(tags[COLOR_MAP], np.uint8).reshape(3, -1).T.tobytes())
    upright, stored = _empty(image.size[::-1], 1 if image.format == "TIFF" else _orientation(image))
    convert = _conversion(image)
    rows = max(1, STRIP // image.width)
    for first in range(0, image.height, rows):
        strip = image.crop((0, first, image.width, min(first + rows, image.height)))
        stored[:, first : first + rows] = np.moveaxis(convert(strip), 2, 0)
    return upright


def _empty(size: tuple[int, int], orientation: int) -> tuple[Pixels, Pixels]:
    """Planes for an upright image, and the same memory as planes of the stored (height, width)."""
    upright = np.empty((3, *(size[::-1] if orientation >= 5 else size)), np.uint8)
    return upright, STORED[orientation](upright) if orientation in STORED else upright


def _conversion(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    """A function from a strip of the image to its RGB, uint8 [h, W, 3]."""
    if image.mode.startswith("I"):
        tags, key = _tags(image), image.info.get("transparency")
        white = 4095 if tags.get(BITS) == (12,) else 65535
        return lambda strip: _grey(strip, white, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, key)
    if image.format == "XBM":  # a set bit is ink
        return lambda strip: 255 - np.asarray(strip.convert("RGB"))
    without_palette = image.mode == "P" and image.palette is None  # an icon, which Pillow converts all the same
    if without_palette or not image.has_transparency_data:
        return lambda strip: np.asarray(strip.convert("RGB"))
    if _is_fourth_band(image):
        warnings.warn(
            "a fourth band of a TIFF is tagged as transparency, but most pixels are neither opaque nor "
            "transparent, as in a near-infrared band: the first three are read as RGB",
            stacklevel=2,
        )
        return lambda strip: np.asarray(strip)[..., :3]
    if image.mode == "La" or PREMULTIPLIED in image.info:
        return _premultiplied_over_white
    return _over_white


def _grey(strip: Image.Image, white: int, white_is_zero: bool, key: Any) -> Pixels:
    """12- or 16-bit grey as RGB; the level `key`, which a PNG may declare transparent, is white."""
    levels = np.asarray(strip).astype(np.int64)
    grey = _to_8_bits(white - levels if white_is_zero else levels, white)
    if isinstance(key, int):
        grey[levels == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _over_white(strip: Image.Image) -> Pixels:
    """Transparent pixels over white."""
    white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def _premultiplied_over_white(strip: Image.Image) -> Pixels:
    """The same where the colours are multiplied by alpha."""
    bands = np.asarray(strip).astype(np.int16)
    colours = np.minimum(bands[..., :-1] + 255 - bands[..., -1:], 255).astype(np.uint8)
    return np.broadcast_to(colours, (*colours.shape[:2], 3))


def _is_fourth_band(image: Image.Image) -> bool:
    """Whether the transparency of a TIFF is none: a mask is mostly opaque or transparent."""
    if image.format != "TIFF" or image.mode != "RGBA":
        return False
    counts = image.getchannel("A").histogram()
    return counts[0] + counts[255] < MIN_MASKED * sum(counts)


def _to_8_bits(levels: Pixels, white: int) -> Pixels:
    return ((levels * 255 + white // 2) // white).astype(np.uint8)


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before the image is turned: Pillow states that of TIFFs turned."""
    tags = _tags(image)
    return (tags[WIDTH], tags[HEIGHT]) if WIDTH in tags and HEIGHT in tags else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, without a valid one. Other tags do not matter, whatever they hold."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and value in STORED else 1
