"""RGB bytes of an image that Pillow opened, upright, with corrections of what Pillow decodes wrongly."""

import warnings
from typing import Any

import numpy as np
from PIL import Image

from overfeat.errors import InputError

Pixels = np.ndarray[Any, np.dtype[Any]]
ORIENTATION = 0x0112  # the EXIF tag
# The transpose that turns an image of each orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, PLANAR, COLOR_MAP = 256, 257, 258, 259, 262, 284, 320  # TIFF's tags
WHITE_IS_ZERO, UNCOMPRESSED, SEPARATE_PLANES = 0, 1, 2
MIN_MASKED = 0.5  # of the pixels of an alpha channel are fully opaque or transparent


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image whose header was read, as `rgb` gives it."""
    width, height = _stored_size(image)
    return (width, height) if _orientation(image) >= 5 else (height, width)


def rgb(image: Image.Image) -> Pixels:
    """The pixels: uint8 [H, W, 3], upright, transparent ones over white, 16-bit grey scaled to 8 bits.

    Raises:
        InputError: for numbers without a fixed range.
    """
    depth = image.mode
    # Pillow gives 16-bit PNG and PGM files as mode I too; in other formats I is a 32-bit number.
    if depth == "F" or (depth == "I" and image.format not in ("PNG", "PPM")):
        problem = f"32-bit numbers per pixel (mode {depth}) have no fixed range of brightness"
        raise InputError(f"{problem}; convert it to 8 or 16 bits")
    if _has_16_bit_planes(image):
        return _16_bit_planes(image)
    grey_16_bit = depth == "I" or depth.startswith("I;16")
    inverted = grey_16_bit and _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO
    if COLOR_MAP in _tags(image) and max(_tags(image)[COLOR_MAP]) < 256:
        image.load()
        image.putpalette(np.array(_tags(image)[COLOR_MAP], np.uint8).reshape(3, -1).T.tobytes())
    if image.format == "TIFF":
        image.load()  # which turns it
    else:
        orientation = _orientation(image)
        image = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    if grey_16_bit:
        return _grey(image, inverted)
    if image.format == "XBM":  # a set bit is ink
        return 255 - np.array(image.convert("RGB"))
    return _over_white(image) if image.has_transparency_data else np.array(image.convert("RGB"))


def _grey(image: Image.Image, inverted: bool) -> Pixels:
    """16-bit grey as RGB; the level that a PNG declares transparent is white."""
    levels = np.asarray(image).astype(np.int64)
    grey = _to_8_bits(65535 - levels if inverted else levels)
    if isinstance(key := image.info.get("transparency"), int):
        grey[levels == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _over_white(image: Image.Image) -> Pixels:
    """Transparent pixels over white; a fourth band of a TIFF that is no mask is left out, with a warning."""
    rgba = image.convert("RGBA")
    if image.format == "TIFF" and image.mode == "RGBA":
        alpha = np.asarray(rgba)[..., 3]
        if np.isin(alpha, (0, 255)).mean() < MIN_MASKED:
            warnings.warn(
                "a fourth band of a TIFF is tagged as transparency, but most pixels are neither opaque nor "
                "transparent, as in a near-infrared band: the first three are read as RGB",
                stacklevel=2,
            )
            return np.array(rgba)[..., :3]
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


def _has_16_bit_planes(image: Image.Image) -> bool:
    """Whether it is an uncompressed TIFF with a plane of 16 bits for each colour, which Pillow reads as 8 bits."""
    tags = _tags(image)
    separate = tags.get(PLANAR) == SEPARATE_PLANES and tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    return separate and max(tags.get(BITS, (1,))) == 16 and image.mode == "RGB"


def _16_bit_planes(image: Image.Image) -> Pixels:
    import tifffile

    orientation, file = _orientation(image), image.fp  # type: ignore[attr-defined]
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        planes = _to_8_bits(tiff.pages[0].asarray()[:3].astype(np.int64))
    turned = Image.fromarray(np.ascontiguousarray(np.moveaxis(planes, 0, 2)))
    return np.array(turned.transpose(TURNS[orientation]) if orientation in TURNS else turned)


def _to_8_bits(levels: Pixels) -> Pixels:
    return ((levels * 255 + 32767) // 65535).astype(np.uint8)


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before the image is turned: Pillow states that of TIFFs turned."""
    tags = _tags(image)
    return (tags[WIDTH], tags[HEIGHT]) if WIDTH in tags and HEIGHT in tags else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, without one. Other tags do not matter, whatever they hold."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) else 1
