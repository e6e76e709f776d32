"""Windows that are put together from tiles, some of which may be damaged."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from overfeat.large.reader import LargeImage, TileError
from overfeat.large.values import Samples
from overfeat.models.geometry import Size

Window = tuple[int, int, int, int]  # top, bottom, left, right
Part = tuple[slice, slice]  # rows, columns
LOOK = 512  # pixels on each side of the middle of a level that are looked at


def middle(size: Size) -> Window:
    """The middle of a level."""
    edges = [(max(0, side // 2 - LOOK), min(side, side // 2 + LOOK)) for side in size]
    return *edges[0], *edges[1]


def tiles_of(window: Window, tile: Size, size: Size) -> Iterator[tuple[int, int, Part]]:
    """Row and column in the grid of tiles, and pixels of the level, of every tile that a window touches."""
    (top, bottom, left, right), (height, width) = window, tile
    for i in range(top // height, -(-bottom // height)):
        for j in range(left // width, -(-right // width)):
            rows = slice(i * height, min((i + 1) * height, size[0]))
            yield i, j, (rows, slice(j * width, min((j + 1) * width, size[1])))


def overlap(window: Window, part: Part) -> tuple[Part, Part]:
    """What a tile and a window have in common, in the coordinates of the window and in those of the tile."""
    common = [
        slice(max(piece.start, first), min(piece.stop, last))
        for piece, first, last in zip(part, window[::2], window[1::2], strict=True)
    ]
    in_window, in_tile = (
        [slice(piece.start - start, piece.stop - start) for piece, start in zip(common, starts, strict=True)]
        for starts in (window[::2], (part[0].start, part[1].start))
    )
    return (in_window[0], in_window[1]), (in_tile[0], in_tile[1])


def finished(pixels: Samples, window: Window, errors: list[TileError], damaged: list[TileError] | None) -> Tensor:
    """The pixels of a window with damaged tiles white; raises the first error where there is no list for them."""
    if errors and damaged is None:
        raise errors[0]
    for error in {(error.rows.start, error.columns.start): error for error in errors}.values():
        rows, columns = overlap(window, (error.rows, error.columns))[0]
        pixels[:, rows, columns] = 255
        assert damaged is not None
        damaged.append(error)
    return torch.from_numpy(pixels)


def read_by_tiles(
    read: Callable[[Window], Samples], window: Window, tile: Size, image: LargeImage, level: int, empty: Samples
) -> tuple[Samples, list[TileError]]:
    """A window that a package reads as [h, w, n], and the errors of its tiles.

    Where the package fails it is read tile by tile into `empty`.
    """
    try:
        return read(window), []
    except MemoryError:
        raise
    except Exception:  # the packages raise many kinds
        errors = []
        for _, _, part in tiles_of(window, tile, image.levels[level]):
            (rows, columns), _ = overlap(window, part)
            top, left = window[0], window[2]
            try:
                piece = top + rows.start, top + rows.stop, left + columns.start, left + columns.stop
                empty[rows, columns] = read(piece)
            except MemoryError:
                raise
            except Exception as error:
                errors.append(TileError(image.name, level, *part, error.__cause__ or error))
        return empty, errors
