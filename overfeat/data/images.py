"""Reading images of every common kind as RGB bytes, and listing those of a folder."""

import errno
import io
import os
import shlex
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import torch
from PIL import Image, UnidentifiedImageError

from overfeat.data.formats import SUFFIXES
from overfeat.data.limits import MAX_PIXELS
from overfeat.data.pixels import rgb
from overfeat.errors import ArgumentError, InputError, printable, reason_of, shorten

PNG = b"\x89PNG\r\n\x1a\n"
VECTOR_FORMATS = ("EPS", "WMF")  # Pillow draws them with other programs
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG
MAX_TEXT = 1_000_000  # bytes of a text or profile that Pillow accepts, decompressed
MIN_TEXT = 900  # bytes of a chunk: zlib compresses at most 1,032 times, so that shorter ones stay below MAX_TEXT
_header_lock = threading.Lock()


class ImageFile(io.BufferedReader):
    """A file to read, whose `read` asks for no more memory than the file has bytes left: damaged headers do."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, max(0, self._size - self.tell())))


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The image in a file: uint8 [3, H, W], RGB, upright (its EXIF rotation applied).

    Transparent pixels are composited over white, 12- and 16-bit grey is scaled to 8 bits, and of several frames the
    first is read. InputError for a file that is not a complete image, has more than max_pixels pixels (checked in its
    header, before it is decoded), or holds numbers without a fixed range.
    """
    path = Path(path)
    name = printable(path)
    if path.is_dir():
        raise InputError(f"{name}: a folder, not an image; give one of the files in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: a pipe, socket or device, not a file; save the image to a file")
    try:
        with ImageFile(path) as file:
            return _decode(file, path, max_pixels)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: cannot be read; check the file's permissions") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EIO):
            raise InputError(f"{name}: cannot be read ({error.strerror}); check the path") from error
        raise _damaged(path, error) from error


def decode_image(content: bytes, name: str = "the image", max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The image that a file of this content holds, as `read_image` reads it; `name` is for messages."""
    try:
        return _decode(io.BytesIO(content), Path(name), max_pixels)
    except OSError as error:
        raise _damaged(Path(name), error) from error


def _decode(file: BinaryIO, path: Path, max_pixels: int) -> torch.Tensor:
    """`read_image` of an open file. Raises OSErrors of the system as they are."""
    name = printable(path)
    try:
        if not file.read(1):
            raise InputError(f"{name}: empty (0 bytes); copy or download the image again")
        file.seek(0)
        with open_header(file, path, max_pixels) as image:
            return torch.from_numpy(rgb(image))
    except InputError as error:
        if name in str(error):
            raise
        raise InputError(f"{name}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for broken data
        if isinstance(error, OSError) and error.errno:
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    problem = f"{printable(path)}: damaged or cut short ({reason_of(error)})"
    return InputError(f"{problem}; copy or download the image again")


def open_header(file: BinaryIO, path: Path, max_pixels: int) -> Image.Image:
    """Read the header only. Pillow's own limit of pixels is suspended in favour of max_pixels."""
    name = printable(path)
    with _header_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(_without_large_text(file))
        except UnidentifiedImageError as error:
            raise InputError(f"{name}: not an image that Pillow can read; convert it to PNG or JPEG") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.format in VECTOR_FORMATS:
        problem = f"{name}: {image.format_description or image.format}, which is drawn, not stored as pixels"
        raise InputError(f"{problem}; convert it to PNG")
    width, height = image.size
    if width * height > max_pixels:
        problem = f"{name}: {height}x{width} pixels, more than the limit of {max_pixels:,}; "
        raise ArgumentError("max_pixels", f"allows more, or {tiling(path)} makes a file to be read in windows", problem)
    return image


def tiling(path: str | os.PathLike) -> str:
    """The command that makes a tiled pyramid of an image file."""
    source = os.fspath(path)
    stem, suffix = os.path.splitext(source)
    compression = "jpeg --Q 95" if suffix.lower() in (".jpg", ".jpeg") else "deflate"
    names = f"{shlex.quote(source)} {shlex.quote(f'{stem}.tiled.tif')}"
    return f"`vips tiffsave {names} --tile --pyramid --bigtiff --compression {compression}`"


def _without_large_text(file: BinaryIO) -> BinaryIO:
    """The file, or a copy of a PNG without the colour profile and texts that are too large for Pillow."""
    large: list[tuple[int, int]] = []  # where they start and end
    if file.read(len(PNG)) == PNG:
        while len(header := file.read(8)) == 8:
            kind, start = header[4:], file.tell()
            length = int.from_bytes(header[:4], "big")
            if kind in TEXTS and length > MIN_TEXT and _is_large(kind, file.read(length)):
                large.append((start - 8, start + length + 4))
            file.seek(start + length + 4)
    file.seek(0)
    if not large:
        return file
    content = file.read()
    starts, ends = [0, *(end for _, end in large)], [*(start for start, _ in large), len(content)]
    return io.BytesIO(b"".join(content[start:end] for start, end in zip(starts, ends, strict=True)))


def _is_large(kind: bytes, content: bytes) -> bool:
    """Whether a text or colour profile of a PNG has more than MAX_TEXT bytes, compressed or not."""
    _, _, text = content.partition(b"\0")
    if kind == b"iTXt" and text[:1] == b"\1":
        text = text.split(b"\0", 3)[-1]
    elif kind in (b"iCCP", b"zTXt"):
        text = text[1:]
    else:
        return len(text) > MAX_TEXT
    try:
        return len(zlib.decompressobj().decompress(text, MAX_TEXT + 1)) > MAX_TEXT
    except zlib.error:
        return kind == b"iCCP"  # Pillow judges damaged text; profiles are not used


def list_images(
    folder: str | os.PathLike, recursive: bool = False, *, also: Callable[[Path], bool] | None = None
) -> list[Path]:
    """The image files in a folder, sorted by path; hidden files and folders, and partial files, do not count.

    A warning counts what is left out: files of other kinds, linked folders, and all folders unless `recursive`.

    Args:
        also: Whether another file or a folder is an image, too.

    Raises:
        InputError: for a missing folder, one that cannot be read, and one without images.
    """
    folder = Path(folder)
    shown = printable(folder)
    if not folder.is_dir():
        reason = "a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{shown}: {reason}; give the folder that holds the images")
    paths: list[Path] = []
    others: Counter[str] = Counter()
    folders: list[str] = []
    for root, names, files in os.walk(folder, onerror=refuse_folder):
        names[:] = sorted(name for name in names if name[0] != ".")
        if also:
            paths += [Path(root, name) for name in names if also(Path(root, name))]
            names[:] = [name for name in names if Path(root, name) not in paths]
        for name in sorted(file for file in files if file[0] != "."):
            path = Path(root, name)
            if is_image(path) or (also and also(path)):
                paths.append(path)
            else:
                others[(path.suffix.lower() or "without suffix") if path.is_file() else "that are no files"] += 1
        if not recursive:
            folders = names
            break
        folders += [name for name in names if Path(root, name).is_symlink()]  # which may lead in circles
    left_out = [f"{count} {kind}" for kind, count in others.most_common()]
    if folders:
        left_out.append(f"the {'linked ' if recursive else ''}folders {shorten(folders)}")
        left_out[-1] += "" if recursive else " (`recursive` reads them)"
    if not paths:
        others_text = f", but {', '.join(left_out)}" if left_out else ""
        raise InputError(f"{shown}: no images in it{others_text}; they end in {' '.join(SUFFIXES)}")
    if left_out:
        warnings.warn(f"{shown}: left out {', '.join(left_out)}", stacklevel=2)
    return sorted(paths)


def refuse_folder(error: OSError) -> NoReturn:
    """Raise InputError for a folder that cannot be listed."""
    problem = f"{printable(error.filename)}: cannot be read ({error.strerror})"
    raise InputError(f"{problem}; check the folder's permissions") from error


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image, or none and the beginning of one."""
    if path.suffix or not path.is_file():
        return path.suffix.lower() in SUFFIXES and path.is_file()
    try:
        with Image.open(path) as image:
            return image.format is not None
    except Exception:  # Pillow's decoders raise many kinds
        return False
