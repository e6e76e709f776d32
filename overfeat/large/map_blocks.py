"""Maps of a large image in blocks: where a map's positions lie, the files of the blocks, and the finished file."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overfeat.dense.grid import Grid
from overfeat.errors import InputError, WriteError
from overfeat.files import UnsupportedLockError, atomic_write, check_writable, lock
from overfeat.large.blocks import Block, block_path
from overfeat.large.map_file import MapFile, MapPositions, open_group
from overfeat.large.map_tiff import write_map_tiff
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import LargeImage, TileError
from overfeat.large.view import View
from overfeat.models.geometry import Size

SUFFIXES = (".zarr", ".tif", ".tiff")
WHOLE = "maps.zarr"  # in the folder of blocks


def grid_positions(view: View, grid: Grid) -> MapPositions:
    """Where a grid's positions lie in the whole image; those of a mirror image too count from its left."""
    first = grid.boxes(slice(0, 1), slice(-1, None) if grid.flipped else slice(0, 1))[0, 0]
    centre = (first[1] + first[3]) / 2, (first[0] + first[2]) / 2
    step = [grid.stride * given / scaled for given, scaled in zip(grid.image, grid.scaled, strict=True)]
    return in_image(view, grid.shape, centre, step)


def in_image(view: View, shape: Size, centre: Sequence[float], step: Sequence[float]) -> MapPositions:
    """Positions that are given in pixels of a view: the first (y, x) centre, and from one to the next."""
    x, y, right, bottom = view.to_level0(torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64))[0].tolist()
    origin = y + float(centre[0]) * (bottom - y), x + float(centre[1]) * (right - x)
    return MapPositions(shape, origin, (float(step[0]) * (bottom - y), float(step[1]) * (right - x)))


def map_path(folder: Path, grids: Sequence[Grid], index: int, mirrored: bool = False) -> Path:
    """The maps of a grid in the folder of blocks; mirrored: as a mirror image has them, from right to left."""
    if mirrored:
        return folder / f"mirrored-{index}.zarr"
    return folder / WHOLE if len(grids) == 1 else folder / WHOLE / str(index)


def make_map_files(
    folder: Path, grids: Sequence[Grid], positions: Sequence[MapPositions], names: Sequence[str] | int,
    blocks: Sequence[Size], attributes: Sequence[dict[str, Any]], title: str,
) -> None:  # fmt: skip
    """Make the files for blocks to be written to, unless they exist; several processes may do so at once."""
    if len(grids) > 1:
        group = open_group(folder / WHOLE, mode="a")
        group.attrs["bioformats2raw.layout"] = 3
        group.require_group("OME").attrs["series"] = [str(index) for index in range(len(grids))]
    for index, grid in enumerate(grids):
        path, part = (
            map_path(folder, grids, index, grid.flipped),
            folder / f".new-{index}-{socket.gethostname()}-{os.getpid()}",
        )
        if path.exists():
            continue
        pyramid = not isinstance(names, int)
        MapFile.create(
            part, positions[index], names,
            block=blocks[index], title=title, pyramid=pyramid, attributes=attributes[index],
        )  # fmt: skip
        try:
            os.replace(part, path)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if not path.exists():  # of another process
                raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error


def mark_done(folder: Path, block: Block, values: dict[str, Tensor], damaged: Sequence[TileError] | None) -> None:
    """Write the file that says that a block is done, with what is kept of it beside the maps."""
    messages = json.dumps(list(dict.fromkeys(map(str, damaged or ()))))
    with atomic_write(block_path(folder, block)) as path:
        save_file(values, path, {"damaged": messages})


def read_done(folder: Path, block: Block) -> dict[str, Tensor]:
    """The values that `mark_done` wrote."""
    return load_file(block_path(folder, block))


def unfinished(path: str | os.PathLike) -> Path:
    """The folder beside a file of maps that keeps its blocks until all are done."""
    return Path(path).with_name(f".blocks-{Path(path).name}")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of blocks. Raises WriteError where one is at work."""
    try:
        descriptor = lock(folder)
    except UnsupportedLockError:
        yield
        return
    if descriptor is None:
        raise WriteError(f"{folder}: another process is writing these maps; wait until it has ended")
    try:
        yield
    finally:
        os.close(descriptor)


def check_map_path(path: Path, folder: Path) -> None:
    """Raises InputError unless maps can be written to a path that does not exist, or that a killed run completed."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: maps are written as {SUFFIXES[0]} or {SUFFIXES[1]}; name one that ends so")
    if path.exists() and not folder.is_dir():
        raise InputError(f"{path}: exists; name another file, or delete it")
    if not path.exists():
        check_writable(path)


def finish_maps(folder: Path, grids: Sequence[Grid], image: LargeImage, path: Path) -> None:
    """Make the file of maps whose blocks are done, unless it exists. Raises WriteError; a second call continues.

    Args:
        folder: Of the blocks.
        image: For its georeference.
        path: A folder .zarr: one OME-Zarr image, or a collection of one for each grid, as bioformats2raw writes it; or
            a TIFF, see `export_tiffs`.
    """
    if path.exists():
        return
    for index, grid in enumerate(grids):
        maps = MapFile(map_path(folder, grids, index, grid.flipped))
        if grid.flipped:
            maps = maps.mirrored(map_path(folder, grids, index))
        maps.build_levels()
    if path.suffix.lower() != SUFFIXES[0]:
        export_tiffs(folder / WHOLE, path, image.georeference)
        return
    try:
        os.replace(folder / WHOLE, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error


def export_tiffs(source: Path, path: Path, georeference: Georeference | None) -> None:
    """Write complete maps, a folder .zarr, as a TIFF; of a collection one with each number before the suffix."""
    series = open_group(source, mode="r").get("OME")
    if series is None:
        write_map_tiff(path, MapFile(source), georeference)
        return
    for number in series.attrs["series"]:
        write_map_tiff(path.with_suffix(f".{number}{path.suffix}"), MapFile(source / number), georeference)
