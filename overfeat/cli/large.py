"""Large images on the command line: their options, opening them, and the folders of their blocks."""

import argparse
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfeat.cli.options import add_options, config_from_args
from overfeat.errors import printable
from overfeat.files import UnsupportedLockError, lock
from overfeat.large.config import LargeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.cli.images import ImageWork
    from overfeat.large.blocks import Block, Job, Plan
    from overfeat.large.readers.image import LargeImage

NOT_YET = object()  # the entry of an image of which other parts have blocks to do
DAMAGE = "left_out"  # messages of damaged tiles, in an image's result
BLOCKS = ".blocks"  # folder of results of blocks, in that of results
READING = ("region", "level", "mask", "channels", "value_range")  # options with which every image is read in windows


def add_large_options(parser: argparse.ArgumentParser) -> None:
    """Options of images that are read in windows."""
    text = "Slides, zarr, and TIFFs of several levels or more than --max-pixels are read in windows and evaluated in "
    text += "blocks, as is every image with one of these options (needs the extra large)"
    group = parser.add_argument_group("large images", text)
    help = "evaluate only this part, in pixels of level 0, as if it were cropped (default: all)"
    group.add_argument("--region", nargs=4, type=int, metavar=("X", "Y", "WIDTH", "HEIGHT"), help=help)
    add_options(group, LargeConfig)
    help = "number of the channel that is evaluated, from 0, or those of red, green and blue (default: all of 1 or 3)"
    group.add_argument("--channels", type=_numbers(int, "4,2,1"), metavar="N[,N,N]", help=help)
    help = "values of black and white (default: the range of integers of up to 16 bits)"
    group.add_argument("--value-range", type=_numbers(float, "0,4095", 2), metavar="LOW,HIGH", help=help)


def _numbers(number: Callable[[str], Any], example: str, count: int | None = None) -> Callable[[str], tuple]:
    """The parser of numbers with commas between them, `count` that ascend or any."""

    def parse(text: str) -> tuple:
        with suppress(ValueError):
            values = tuple(number(part) for part in text.strip("() ").split(","))
            if count is None or (len(values) == count and list(values) == sorted(set(values))):
                return values
        raise argparse.ArgumentTypeError(f"must be numbers such as {example}, not {text!r}")

    return parse


def large_config(args: argparse.Namespace) -> LargeConfig:
    """What of large images is evaluated."""
    return config_from_args(LargeConfig, args)


def large_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that results depend on, as JSON holds them; without options nothing."""
    given = {**asdict(large_config(args)), "channels": args.channels, "value_range": args.value_range}
    changed = {name: value for name, value in given.items() if value != args.parser.get_default(name)}
    return {"large": changed} if changed else {}


def is_read_in_windows(args: argparse.Namespace, path: Path) -> bool:
    """Whether an image is read in windows."""
    from overfeat.large.readers.open import is_large

    is_asked_for = any(getattr(args, name) != args.parser.get_default(name) for name in READING)
    return is_asked_for or is_large(path, max_pixels=args.max_pixels)


def read_any(args: argparse.Namespace, path: Path) -> "Tensor | LargeImage":
    """The image of a file, uint8 [3, H, W], or, where it is to be read in windows, the open file."""
    from overfeat.data.images import read_image
    from overfeat.large.readers.open import open_image

    if is_read_in_windows(args, path):
        given = {"channels": args.channels, "value_range": args.value_range, "max_pixels": args.max_pixels}
        return open_image(path, **given)
    return read_image(path, args.max_pixels)


def block_folder(out: Path, name: str) -> Path:
    """The folder of the results of an image's blocks; name: see `find_images`."""
    return out / BLOCKS / name


def remove_blocks(out: Path, name: str) -> None:
    """Delete the results of an image's blocks, once that of the image is written."""
    shutil.rmtree(block_folder(out, name), ignore_errors=True)
    for parent in [*Path(BLOCKS, name).parents][:-1]:
        try:
            (out / parent).rmdir()
        except OSError:  # of other images
            break


def process_large(work: "ImageWork", path: Path, image: "LargeImage") -> Any:
    """Evaluate an image in blocks, which a second run continues if there is a folder of results; as `work.process`."""
    from overfeat.large.blocks import evaluate_pending

    try:
        if work.results is None:
            with tempfile.TemporaryDirectory(prefix="overfeat-") as temporary:
                job = work.large_job(path, image, Path(temporary))
                evaluate_pending(job, progress=True)
                return work.finish_large(path, job)
        job = work.large_job(path, image, block_folder(work.results.folder, work.results.names[path]))
        evaluate_pending(job, blocks_of_part(work, path, job.plan), progress=True)
        return finish_blocks(work, path, job)
    finally:
        image.close()


def blocks_of_part(work: "ImageWork", path: Path, plan: "Plan") -> "list[Block]":
    """The blocks of an image in the part of --part, or all."""
    assert work.results is not None
    part, first = work.args.part, zlib.crc32(os.fsencode(work.results.names[path]))  # small images to different parts
    return [block for block in plan.blocks if part is None or part.has(first + block.number)]


def finish_blocks(work: "ImageWork", path: Path, job: "Job") -> Any:
    """Write the results of an image from those of its blocks.

    Of several parts that which ends last does, and the others get NOT_YET.
    """
    from overfeat.large.blocks import pending_blocks

    assert work.results is not None
    results, name = work.results, work.results.names[path]
    if work.args.part is None:
        entry = work.finish_large(path, job)
        remove_blocks(results.folder, name)
        return entry
    file = results.folder / f".merging-{zlib.crc32(os.fsencode(name)):08x}"
    while (descriptor := _lock(file)) is None:  # another part looks whether it is the last one, or is merging
        time.sleep(0.1)
    try:
        if results(path).exists() or pending_blocks(job.plan.blocks, job.folder):
            return NOT_YET
        entry = work.finish_large(path, job)
        remove_blocks(results.folder, name)
        return entry
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def damage_entry(job: "Job") -> dict[str, list[str]]:
    """What an image's result says of damaged tiles that were left out; without them nothing."""
    from overfeat.large.blocks import left_out

    messages = left_out(job.plan, job.folder)
    return {DAMAGE: messages} if messages else {}


def _lock(file: Path) -> int | None:
    try:
        return lock(file, make=True)
    except UnsupportedLockError:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def note_skipped(plan: "Plan") -> None:
    """A line on stderr where --mask left windows out."""
    if plan.skipped:
        note = f"{100 * plan.skipped:.0f} % of the windows see background alone, and are left out (--mask)"
        print(f"{printable(plan.view.image.name)}: {note}", file=sys.stderr)
