"""What Pillow's decoders of PNG, TGA and TIFF get wrong, set right before or after they decode."""

from typing import Any

from PIL import Image, ImageChops

from overfeat.errors import InputError

BITS, PLANAR, EXTRA_SAMPLES = 258, 284, 338  # TIFF's tags
SEPARATE_PLANES, ASSOCIATED_ALPHA = 2, 1
PREMULTIPLIED = "premultiplied"  # the entry of Image.info: the colours of an RGBA image are multiplied by alpha
TGA_DESCRIPTOR, TGA_ALPHA_BITS = 17, 15  # a byte of the header, and its bits that count those of alpha
GREY_LEVELS = {"L;2": 3, "L;4": 15}  # Pillow's raw modes of grey PNGs, and their white


def decoded(image: Image.Image) -> Image.Image:
    """The image with its pixels loaded, or another of the same file where Pillow would load wrong ones.

    An image that was loaded before stays as it is.
    """
    correct = {"PNG": _png, "TGA": _tga, "TIFF": _tiff}.get(image.format or "")
    other = correct(image) if correct and getattr(image, "tile", None) and _file(image) else None
    other = image if other is None else other
    other.load()  # which turns a TIFF
    return other


def _png(image: Image.Image) -> Image.Image | None:
    """A transparent colour in the levels of the loaded pixels: Pillow keeps those of the file."""
    key, raw_mode = image.info.get("transparency"), image.tile[0][3]  # type: ignore[attr-defined]
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        return _with_16_bit_key(image, key)
    if image.mode not in ("L", "RGB") or not isinstance(key, int | tuple):
        return None
    other, white = _again(image), GREY_LEVELS.get(raw_mode, 255)
    levels = [(level & white) * 255 // white for level in (key if isinstance(key, tuple) else (key,))]
    other.info["transparency"] = tuple(levels) if isinstance(key, tuple) else levels[0]
    return other


def _with_16_bit_key(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """An RGB image with an alpha channel, 0 where all 16 bits of a pixel are the key's: Pillow loads the upper 8."""
    low = _again(image)
    _set_raw_mode(low, lambda raw_mode: "RGB;16L")  # the lower 8 bits of the file's order
    low_equals = _equals(low, [level & 255 for level in key])
    del low
    high = _again(image)
    equals = ImageChops.darker(low_equals, _equals(high, [level >> 8 for level in key]))
    del high.info["transparency"]
    high.putalpha(ImageChops.invert(equals))
    return high


def _equals(image: Image.Image, levels: list[int]) -> Image.Image:
    """255 where all bands have their levels, else 0."""
    equals = Image.new("L", image.size, 255)
    for band, level in enumerate(levels):
        match = image.getchannel(band).point([255 * (value == level) for value in range(256)])
        equals = ImageChops.darker(equals, match)
    return equals


def _tga(image: Image.Image) -> Image.Image | None:
    """Opaque where the header says that no bits are alpha: the fourth byte, or the 16th bit, then has no meaning."""
    file = _file(image)
    file.seek(TGA_DESCRIPTOR)
    if image.mode not in ("RGBA", "LA") or file.read(1)[0] & TGA_ALPHA_BITS:
        return None
    other = _again(image)
    other.putalpha(255)
    return other


def _tiff(image: Image.Image) -> Image.Image | None:
    """Planes of 16 bits, and premultiplied colours as they are stored, by which `info` says so.

    Pillow reads uncompressed planes as of 8 bits, and divides colours by alpha, also by a band that is tagged as alpha.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    planes = tags.get(PLANAR) == SEPARATE_PLANES
    compressed = image.tile[0][0] == "libtiff"  # type: ignore[attr-defined]
    wide = planes and not compressed and max(tags.get(BITS, (1,))) == 16
    # Of compressed planes libtiff's decoder divides, whatever the raw mode.
    divided = image.mode == "RGBA" and tags.get(EXTRA_SAMPLES, ())[:1] == (ASSOCIATED_ALPHA,)
    divided = divided and not (planes and compressed)
    if not wide and not divided:
        return None
    if wide and image.mode not in ("RGB", "RGBA"):
        raise InputError(f"planes of 16 bits in the mode {image.mode} cannot be read; convert it to 8 bits")
    other = _again(image)
    if wide:  # without planes that are not shown
        other.tile = [tile for tile in other.tile if tile[3][0] in "RGBAa"]
    depth = f";16{'B' if tags.prefix == b'MM' else 'L'}" if wide else ""
    _set_raw_mode(other, lambda raw_mode: raw_mode.replace("a", "A") + depth)
    if divided:
        other.info[PREMULTIPLIED] = True
    return other


def _again(image: Image.Image) -> Any:
    """Another image of the same file, not loaded, so that the one that was given is not changed."""
    file = _file(image)
    file.seek(0)
    other: Any = type(image)(file)  # type: ignore[call-arg]
    other.seek(image.tell())
    return other


def _set_raw_mode(image: Any, change: Any) -> None:
    """Let the decoders of an image read another raw mode, which `change` makes of the present one."""
    tiles = []
    for tile in image.tile:
        args = tile[3]
        args = change(args) if isinstance(args, str) else (change(args[0]), *args[1:])
        tiles.append(getattr(type(tile), "_make", tuple)((*tile[:3], args)))
    image.tile = tiles


def _file(image: Image.Image) -> Any:
    return getattr(image, "fp", None)
