"""Maps of large images as OME-Zarr images, written block by block."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from overfeat.errors import InputError, WriteError
from overfeat.large.outputs import class_color
from overfeat.packages import package

VERSION = "0.4"  # of OME-Zarr: Zarr 2, which QuPath, napari and Fiji read
CHUNK_BYTES = 1 << 18
CHUNK_SIDE = 512  # positions, at most
LEVEL_SIDE = 256  # positions; the coarsest level has no more along its longer side
DISK_ADVICE = "free space, or choose another folder; a second run continues after the blocks that are done"


@dataclass(frozen=True)
class MapPositions:
    """Where the positions of a map [h, w] lie in the image: those of (row, column) have the centre origin + step * it.

    Attributes:
        shape: (rows, columns).
        origin: (y, x) of the centre of what the first position sees, in pixels of the image.
        step: (y, x), pixels of the image from one position to the next.
    """

    shape: tuple[int, int]
    origin: tuple[float, float]
    step: tuple[float, float]

    def level(self, number: int) -> "MapPositions":
        """The positions of a level, of which each stands for 2 x 2 of the level before."""
        factor = 2**number
        rows, columns = (-(-side // factor) for side in self.shape)
        y, x = (first + (factor - 1) / 2 * step for first, step in zip(self.origin, self.step, strict=True))
        return MapPositions((rows, columns), (y, x), (self.step[0] * factor, self.step[1] * factor))

    @property
    def num_levels(self) -> int:
        """Levels until the longer side is at most LEVEL_SIDE."""
        return 1 + max(0, (max(self.shape) - 1) // LEVEL_SIDE).bit_length()


def open_group(path: str | Path, mode: str) -> Any:
    """A group of Zarr 2. Raises InputError without zarr."""
    return package("zarr", "maps of large images need", "large").open_group(str(path), mode=mode, zarr_format=2)


class MapFile:
    """An OME-Zarr image of maps [channels, rows, columns], float32, NaN where nothing was written.

    Blocks are written in any order, by any number of processes, as long as each holds whole chunks (`chunk_sides`).
    Levels behind the first hold maxima, so that a single high score is seen at every level.

    Args:
        path: The folder, made by `create`.

    Attributes:
        levels: zarr's arrays, the finest first.
        positions: Of the finest.
        names: Of the channels, where they are classes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            group = open_group(path, mode="r+")
            datasets = group.attrs["multiscales"][0]["datasets"]
            self.levels = [group[entry["path"]] for entry in datasets]
            (_, *step), (_, *first) = (change[change["type"]] for change in datasets[0]["coordinateTransformations"])
            origin = first[0] + 0.5, first[1] + 0.5
            self.positions = MapPositions(self.levels[0].shape[1:], origin, (step[0], step[1]))
            channels = group.attrs["omero"]["channels"] if "omero" in group.attrs else ()
            self.names = [channel["label"] for channel in channels]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no maps of overfeat's ({error}); delete it, and start again") from error

    @classmethod
    def create(
        cls, path: str | Path, positions: MapPositions, names: Sequence[str] | int, *, block: tuple[int, int],
        title: str, pyramid: bool = True, attributes: dict[str, Any] | None = None,
    ) -> "MapFile":  # fmt: skip
        """Make an empty file. Raises WriteError.

        Args:
            path: The folder, which is made.
            positions: Of the maps.
            names: Of the channels, classes whose scores lie in 0..1; or their number.
            block: (rows, columns) of the blocks in which it is written.
            title: The name of the image.
            pyramid: Whether it has levels behind the first.
            attributes: More that is kept with it, under "overfeat".
        """
        channels = names if isinstance(names, int) else len(names)
        levels = [positions.level(number) for number in range(positions.num_levels if pyramid else 1)]
        sides = chunk_sides(block)
        chunks = (min(channels, max(1, CHUNK_BYTES // (4 * sides[0] * sides[1]))), *sides)
        try:
            group = open_group(path, mode="w")
            for number, level in enumerate(levels):
                group.create_array(
                    str(number), shape=(channels, *level.shape), chunks=chunks, dtype="float32", fill_value=np.nan,
                    chunk_key_encoding={"name": "v2", "separator": "/"},
                )  # fmt: skip
            group.attrs.update(_metadata(levels, names, title, attributes or {}))
        except OSError as error:
            raise _full(path, error) from error
        return cls(path)

    def write(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Write the block [channels, rows, columns] of the first level. Raises WriteError."""
        try:
            self.levels[0][:, rows, columns] = values
        except OSError as error:
            raise _full(self.path, error) from error

    def mirrored(self, path: Path) -> "MapFile":
        """A copy of the first level from right to left, with empty levels behind it. Raises WriteError."""
        first = self.levels[0]
        try:
            for file in (*self.path.glob(".z*"), *self.path.glob("*/.z*")):
                target = path / file.relative_to(self.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            copy = MapFile(path)
            for channels, rows, columns in _chunks_of(first):
                source = slice(first.shape[2] - columns.stop, first.shape[2] - columns.start)
                copy.levels[0][channels, rows, columns] = first[channels, rows, source][..., ::-1]
        except OSError as error:
            raise _full(path, error) from error
        return copy

    def build_levels(self) -> None:
        """Fill the levels behind the first, once all blocks are written. Raises WriteError."""
        try:
            for finer, coarser in zip(self.levels, self.levels[1:], strict=False):
                for channels, rows, columns in _chunks_of(coarser):
                    of_finer = (slice(2 * span.start, 2 * span.stop) for span in (rows, columns))
                    coarser[channels, rows, columns] = halve(finer[channels, *of_finer])
        except OSError as error:
            raise _full(self.path, error) from error


def chunk_sides(block: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the chunks of a file that is written in such blocks: they divide a block."""
    return _chunk_side(block[0]), _chunk_side(block[1])


def _chunk_side(side: int) -> int:
    """The largest divisor up to CHUNK_SIDE; of a number without a large one itself."""
    divisors = (side // count for count in range(1, side + 1) if side % count == 0)
    largest = next(divisor for divisor in divisors if divisor <= CHUNK_SIDE)
    return side if side > CHUNK_SIDE > 8 * largest else largest


def halve(values: np.ndarray) -> np.ndarray:
    """The maxima of 2 x 2 values [C, h, w], but for NaN: [C, ceil(h / 2), ceil(w / 2)]."""
    _, height, width = values.shape
    values = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    rows = np.fmax(values[:, ::2], values[:, 1::2])
    return np.fmax(rows[..., ::2], rows[..., 1::2])


def _chunks_of(array: Any) -> Iterator[tuple[slice, ...]]:
    """The (channels, rows, columns) of the chunks of an array."""
    starts = (range(0, side, chunk) for side, chunk in zip(array.shape, array.chunks, strict=True))
    for first in product(*starts):
        yield tuple(
            slice(start, min(start + chunk, side))
            for start, chunk, side in zip(first, array.chunks, array.shape, strict=True)
        )


def _metadata(
    levels: Sequence[MapPositions], names: Sequence[str] | int, title: str, attributes: dict[str, Any]
) -> dict[str, Any]:
    """The attributes of an OME-Zarr image, in pixels of the image; the first pixel's centre is (0, 0), as there."""
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, *level.step]},
                {"type": "translation", "translation": [0.0, *(centre - 0.5 for centre in level.origin)]},
            ],
        }
        for number, level in enumerate(levels)
    ]
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    image = {"version": VERSION, "name": title, "axes": axes, "datasets": datasets, "type": "maximum"}
    metadata: dict[str, Any] = {"multiscales": [image], "overfeat": attributes}
    if not isinstance(names, int):
        window = {"start": 0.0, "end": 1.0, "min": 0.0, "max": 1.0}
        channels = [
            {"label": name, "color": bytes(class_color(name)).hex().upper(), "window": window, "active": number == 0}
            for number, name in enumerate(names)
        ]
        metadata["omero"] = {"version": VERSION, "channels": channels}
    return metadata


def _full(path: str | Path, error: OSError) -> WriteError:
    return WriteError(f"{path}: cannot be written ({error.strerror or error}); {DISK_ADVICE}")
