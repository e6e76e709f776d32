"""Images that a command processes: their options, reading them, and skipping those that cannot be read."""

import argparse
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfeat.cli.cluster import attempt, processed_by_workers
from overfeat.cli.large import NOT_YET, is_read_in_windows
from overfeat.cli.messages import message_of, out_of_memory
from overfeat.data.formats import IMAGE_FORMATS
from overfeat.data.limits import MAX_PIXELS
from overfeat.errors import InputError, WriteError, printable, with_path
from overfeat.options import positive

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.cli.results import Results
    from overfeat.large.blocks import Job
    from overfeat.large.readers.image import LargeImage
    from overfeat.models.net import Net


MAX_NAME = 200  # bytes; file systems allow 255, of which suffixes and names of partial files need some


def add_image_options(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The images, and --max-pixels; optional: for commands that read a stream, too."""
    help = f"{IMAGE_FORMATS} files, and folders of them"
    parser.add_argument("images", nargs="*" if optional else "+", type=Path, metavar="IMAGE|FOLDER", help=help)
    parser.add_argument("--recursive", action="store_true", help="read the folders in a folder, too")
    add_max_pixels(parser)


def add_max_pixels(parser: argparse._ActionsContainer) -> None:
    """--max-pixels."""
    help = "refuse images with more pixels (default: %(default)s)"
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=help)


def find_images(args: argparse.Namespace, *, large: bool = False) -> dict[Path, str]:
    """The image files that the command line names, folders replaced by the images in them, and the name of each.

    Results are named after it: the file's name, or its path from the folder that was given. No name is too long for a
    file system.

    large: Whether zarr folders and slides are images, too.
    """
    from overfeat.data.images import list_images
    from overfeat.large.readers.open import is_large

    images: dict[Path, str] = {}
    for path in args.images:
        if path.is_dir() and not (large and is_large(path)):
            listed = list_images(path, args.recursive, also=is_large if large else None)
            images |= {image: _short(image.relative_to(path).as_posix()) for image in listed}
        else:
            images[path] = _short(path.name)
    return images


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """These files, folders replaced by the images in them."""
    from overfeat.data.images import list_images

    return [image for path in paths for image in (list_images(path) if path.is_dir() else [path])]


def _short(name: str) -> str:
    """The path with a hash in place of the end of a file name that leaves no room for a suffix."""
    folder, _, file = name.rpartition("/")
    if len(os.fsencode(file)) > MAX_NAME:
        start = os.fsdecode(os.fsencode(file)[: MAX_NAME - 17])
        file = f"{start}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}"
    return f"{folder}/{file}" if folder else file


def read_enlarged(net: "Net", path: Path, max_pixels: int) -> "Tensor":
    """Read an image; enlarge one smaller than the net's window to the window, as the 2013 program does."""
    from overfeat.data.images import read_image

    return enlarged(net, path, read_image(path, max_pixels), max_pixels)


def enlarged(net: "Net", path: Path, image: "Tensor", max_pixels: int) -> "Tensor":
    """An image, see `read_enlarged`; path: for the message."""
    from overfeat.data.resize import resize

    window = net.geometry.window
    height, width = image.shape[1:]
    factor = max(window[0] / height, window[1] / width)
    if factor <= 1:
        return image
    if factor**2 * height * width > max_pixels:
        raise InputError(f"{path}: {height}x{width} px is too narrow to be enlarged to the net's window; crop it")
    return resize(image[None], (max(window[0], round(height * factor)), max(window[1], round(width * factor))))[0]


class ImageWork:
    """What a command does with each image, here or on a worker, which makes it from the same arguments.

    Attributes:
        results: Where the results go; None where there are no files, or a run does not continue.
        titled: Whether each of several images has its path printed above.
        key: Of the entry that is printed, in the JSON of a result.
        given: The arguments before any default was chosen.
    """

    results: "Results | None" = None
    titled, key = True, ""

    def __init__(self, args: argparse.Namespace):
        self.args, self.given = args, dict(vars(args))

    def read(self, path: Path) -> Any:
        """The image of a file, uint8 [3, H, W], or an open file that is read in windows."""
        from overfeat.data.images import read_image

        return read_image(path, self.args.max_pixels)

    def prepare(self, path: Path, image: "Tensor") -> "Tensor":
        """An image of a stream, as `read` gives those of files."""
        return image

    def process(self, path: Path, image: Any) -> Any:
        """Evaluate an image and write its results; returns the entry, what is printed of them."""
        raise NotImplementedError

    def load(self, path: Path) -> Any:
        """The entry of results that are written."""
        assert self.results is not None
        return json.loads(self.results(path).read_bytes())[self.key]

    def in_blocks(self, path: Path) -> bool:
        """Whether an image is read in windows and evaluated in blocks."""
        return "region" in self.args and is_read_in_windows(self.args, path)

    def large_job(self, path: Path, image: "LargeImage", folder: Path) -> "Job":
        """The work on an image that is read in windows, whose blocks' results are in a folder."""
        raise NotImplementedError

    def finish_large(self, path: Path, job: "Job") -> Any:
        """Write the results of an image all of whose blocks are done; returns what is printed of them."""
        raise NotImplementedError

    def show(self, path: Path, entry: Any) -> None:
        """Print an entry."""

    def finish(self) -> None:
        """Write what is of all images, when they are done."""


def process_images(args: argparse.Namespace, images: Collection[Path], work: ImageWork) -> int:
    """Process every image, and list the bad ones at the end; returns the exit status, 1 if any image failed.

    Images that have a result are skipped, so that a second run continues an interrupted one. A result that cannot be
    written ends the run: the next one could not be written either. An image for which the memory does not suffice is a
    bad one. Entries are printed in the order of the images.
    """
    with (work.results and work.results.lock) or nullcontext():
        failed = _process_pending(args, _of_part(images, work), work)
        work.finish()
    if failed:
        print(f"{len(failed)} of {len(images)} images failed:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


def _of_part(images: Collection[Path], work: ImageWork) -> Collection[Path]:
    """The images of --part; images in blocks are in all parts."""
    if work.results is None or not work.args.part:
        return images
    return [path for i, path in enumerate(images) if work.args.part.has(i) or work.in_blocks(path)]


def _process_pending(args: argparse.Namespace, images: Collection[Path], work: ImageWork) -> list[str]:
    """Process the images without a result; returns the messages of those that failed."""
    from tqdm import tqdm

    pending = [path for path in images if work.results is None or not work.results(path).exists()]
    if len(pending) < len(images):
        print(f"{len(images) - len(pending)} of {len(images)} images are done already", file=sys.stderr)
    failed: dict[Path, str] = {}
    shown = _InOrder(pending, work, titled=work.titled and len(images) > 1)
    processed = processed_by_workers(pending, work) if work.results and args.dask else _processed(pending, work)
    hidden = len(pending) < 2 or None
    for path, result in tqdm(processed, total=len(pending), unit="image", disable=hidden, leave=False):
        try:
            entry = result.result()
        except WriteError:
            raise
        except (InputError, MemoryError, RuntimeError) as error:
            message = message_of(args, error) if isinstance(error, InputError) else out_of_memory(args, error)
            if len(images) == 1 or message is None:
                raise
            failed[path] = with_path(path, message)
            tqdm.write(f"skipped: {failed[path]}", file=sys.stderr)
            shown.skip(path)
        else:
            shown.add(path, *([] if entry is NOT_YET else [entry]))
    return [failed[path] for path in pending if path in failed]


class _InOrder:
    """Prints entries in the order of the images, whatever order they come in."""

    def __init__(self, paths: Collection[Path], work: ImageWork, *, titled: bool):
        self.paths, self.work, self.titled = deque(paths), work, titled
        self.entries: dict[Path, list[Any]] = {}  # an entry, or none of an image that failed

    def add(self, path: Path, *entry: Any) -> None:
        self.entries[path] = list(entry)
        while self.paths and self.paths[0] in self.entries:
            path = self.paths.popleft()
            for value in self.entries.pop(path):
                if self.titled:
                    print(printable(path))
                self.work.show(path, value)

    skip = add


def _processed(paths: Collection[Path], work: ImageWork) -> "Iterator[tuple[Path, Future[Any]]]":
    """Each image with what `work.process` returned or raised; the next image is read meanwhile."""
    from overfeat.data.read_ahead import read_ahead

    for path, image in read_ahead(paths, work.read):
        yield path, attempt(lambda path, image: work.process(path, image.result()), path, image)
