"""Windows that are put together from tiles, some of which may be damaged."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from overfeat.large.readers.image import LargeImage, TileError
from overfeat.large.readers.values import Samples
from overfeat.models.geometry import Size

Window = tuple[int, int, int, int]  # top, bottom, left, right
Area = tuple[slice, slice]  # rows, columns
MIDDLE = 512  # pixels on each side of the middle of a level, by which the range of its values is judged


def middle(size: Size) -> Window:
    """The middle of a level of (height, width)."""
    edges = [(max(0, side // 2 - MIDDLE), min(side, side // 2 + MIDDLE)) for side in size]
    return *edges[0], *edges[1]


def tiles_in(window: Window, tile: Size, size: Size) -> Iterator[tuple[int, int, Area]]:
    """Each tile that a window of a level touches: its row and column in the grid of tiles, and its pixels."""
    (top, bottom, left, right), (height, width) = window, tile
    for i in range(top // height, -(-bottom // height)):
        for j in range(left // width, -(-right // width)):
            rows = slice(i * height, min((i + 1) * height, size[0]))
            yield i, j, (rows, slice(j * width, min((j + 1) * width, size[1])))


def overlap(window: Window, tile: Area) -> tuple[Area, Area]:
    """The intersection of a window and a tile, in coordinates of the window and of the tile."""
    common = [
        slice(max(span.start, first), min(span.stop, last))
        for span, first, last in zip(tile, window[::2], window[1::2], strict=True)
    ]
    in_window, in_tile = (
        [slice(span.start - start, span.stop - start) for span, start in zip(common, starts, strict=True)]
        for starts in (window[::2], (tile[0].start, tile[1].start))
    )
    return (in_window[0], in_window[1]), (in_tile[0], in_tile[1])


def finish_window(
    pixels: Samples, window: Window, errors: list[TileError], damaged: list[TileError] | None
) -> Tensor:  # fmt: skip
    """The pixels of a window, damaged tiles white, their errors in `damaged`; without it the first is raised."""
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
    """A window that a package reads as [h, w, n]; where that fails, it is read tile by tile into `empty`.

    Returns the samples and the errors of the tiles.
    """
    try:
        return read(window), []
    except MemoryError:
        raise
    except Exception:  # the packages raise many kinds
        errors, (top, _, left, _) = [], window
        for _, _, area in tiles_in(window, tile, image.levels[level]):
            (rows, columns), _ = overlap(window, area)
            try:
                empty[rows, columns] = read(
                    (top + rows.start, top + rows.stop, left + columns.start, left + columns.stop)
                )
            except MemoryError:
                raise
            except Exception as error:
                errors.append(TileError(image.name, level, *area, error.__cause__ or error))
        return empty, errors
