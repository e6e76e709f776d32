"""`-p` of the 2013 program: PPM images from standard input, each answered before the next is read."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from overfeat.cli.images import ImageWork
from overfeat.cli.large import READING
from overfeat.cli.options import refuse_options
from overfeat.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_NUMBER = 20  # characters of a number in a header


def add_stream(container: argparse._ActionsContainer) -> None:
    """-p, --stream."""
    help = "read a stream of PPM images (P6) from standard input instead of files, and answer each at once"
    container.add_argument("-p", "--stream", action="store_true", help=help)


def check_stream(args: argparse.Namespace) -> None:
    """Ends the program as the parser does unless there are images or -p; raises ArgumentError for options of files."""
    if bool(args.images) == args.stream:
        args.parser.error("-p reads images from standard input; name no files" if args.stream else
                          "the following arguments are required: IMAGE|FOLDER, or -p")  # fmt: skip
    if args.stream:
        refuse_options(args, ("out", "recursive", "dask", "part", *READING, "strict"), "-p")


def process_stream(args: argparse.Namespace, work: ImageWork, source: BinaryIO | None = None) -> int:
    """Answer the images of a stream, by default standard input's; returns the exit status."""
    for number, image in enumerate(ppm_images(source or sys.stdin.buffer, args.max_pixels), 1):
        path = Path(f"image {number}")
        work.show(path, work.process(path, work.prepare(path, image)))
        sys.stdout.flush()
    return 0


def ppm_images(file: BinaryIO, max_pixels: int) -> Iterator["Tensor"]:
    """The PPM images of a stream, uint8 [3, H, W]; 16-bit values by their upper 8 bits.

    Raises InputError for what is no PPM, an image that ends too early, and one with more pixels.
    """
    import numpy as np
    import torch

    number = 1
    while (magic := _token(file)) is not None:
        name = f"standard input: image {number}"
        if magic != b"P6":
            raise InputError(f"{name} starts with {magic[:20]!r}, and is no PPM (P6)")
        numbers = [_token(file) or b"" for _ in range(3)]
        if not all(text.isdigit() and int(text) for text in numbers) or int(numbers[2]) > 65535:
            raise InputError(f"{name} has no width, height and highest value but {b' '.join(numbers).strip()[:60]!r}")
        width, height, maximum = map(int, numbers)
        if width * height > max_pixels:
            raise InputError(f"{name}: {width}x{height} px, more than --max-pixels {max_pixels}")
        count, dtype = 3 * width * height, ">u2" if maximum > 255 else "u1"
        data = file.read(count * np.dtype(dtype).itemsize)
        if len(data) < count * np.dtype(dtype).itemsize:
            raise InputError(f"{name} ends after {len(data):,} bytes of its pixels")
        values = np.frombuffer(data, dtype).reshape(height, width, 3)
        if maximum == 65535:
            values = values >> 8
        elif maximum != 255:
            values = np.minimum((values.astype(np.uint32) * 255 + maximum // 2) // maximum, 255)
        yield torch.from_numpy(values.astype(np.uint8)).permute(2, 0, 1)
        number += 1


def _token(file: BinaryIO) -> bytes | None:
    """The next word of a header, with one white space after it, past comments; None at the end."""
    word = b""
    while byte := file.read(1):
        if byte == b"#" and not word:
            while byte not in (b"\n", b""):
                byte = file.read(1)
        elif not byte.isspace():
            word += byte
            if len(word) > MAX_NUMBER:
                return word
        elif word:
            return word
    return word or None
