"""What a reader of large images is: levels of a pyramid, of which windows are read as RGB bytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from overfeat.errors import ArgumentError, InputError, is_whole, printable, reason_of
from overfeat.large.readers.georeference import Georeference
from overfeat.models.geometry import Size


class UndecodableError(InputError):
    """A file that a reader cannot read; another may."""


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Errors of packages that open a damaged file, of whatever kind, are InputErrors."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise UndecodableError(f"{name}: damaged ({reason_of(error)}); copy or export the file again") from error


class TileError(InputError):
    """A tile of a file that cannot be read.

    Attributes:
        name: Of the file.
        level: Of the pyramid.
        rows, columns: What the tile covers of its level.
    """

    def __init__(self, name: str, level: int, rows: slice, columns: slice, reason: object):
        position = f"level {level}, rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
        text = reason_of(reason)
        super().__init__(f"{printable(name)}: damaged tile at {position} ({text}); copy the file again")
        self.name, self.level, self.rows, self.columns, self.reason = name, level, rows, columns, text

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.level, self.rows, self.columns, self.reason)


@runtime_checkable
class LargeImage(Protocol):
    """An image read in windows. Objects can be pickled: another process opens the file again.

    Attributes:
        name: The path as it was given, for messages.
        levels: (height, width) of each level of the pyramid, the finest first.
        tile: (height, width) in which the finest level is stored.
        georeference: Of the finest level; None: the file has none.
    """

    name: str
    levels: Sequence[Size]
    tile: Size
    georeference: Georeference | None

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """Pixels of a level: uint8 [3, h, w], RGB. Several threads may read at once.

        Args:
            level: Its number.
            rows, columns: The window, inside the level.
            damaged: None: a tile that cannot be read raises its TileError. A list: it is white, and its error is
                appended.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def check_window(image: LargeImage, level: int, rows: slice, columns: slice) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a window to read. Raises ArgumentError if it is not inside the level."""
    if not is_whole(level) or not 0 <= level < len(image.levels):
        count = len(image.levels)
        problem = f"{printable(image.name)} has {count} level{'s' if count > 1 else ''}; "
        raise ArgumentError("level", f"must be a whole number from 0 to {count - 1}, not {level!r}", problem)
    top, bottom = _ends("rows", rows, image.levels[level][0])
    left, right = _ends("columns", columns, image.levels[level][1])
    return top, bottom, left, right


def _ends(argument: str, part: Any, length: int) -> tuple[int, int]:
    if isinstance(part, slice) and part.step in (None, 1):
        start, stop = 0 if part.start is None else part.start, length if part.stop is None else part.stop
        if is_whole(start) and is_whole(stop) and 0 <= start < stop <= length:
            return int(start), int(stop)
    raise ArgumentError(argument, f"must be a slice inside 0 to {length} that is not empty, not {part!r}")
