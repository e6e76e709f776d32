"""Arrays in windows: .npy files and memory-mapped arrays, of which only the pages of a window are in memory."""

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError, printable, reason_of
from overfeat.large.readers.channels import check_channels, default_channels
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import TileError, check_window
from overfeat.large.readers.values import Samples, conversion
from overfeat.models.geometry import Size

TILE = (256, 256)  # as which reading what has no tiles is planned
MAX_CHANNELS = 64  # on the first axis of an array that has its channels there


class ArrayImage:
    """An array [H, W], [H, W, C] or [C, H, W], or a .npy file of one, see `LargeImage` and `open_image`."""

    georeference: Georeference | None = None
    tile: Size = TILE

    def __init__(
        self, source: str | os.PathLike | np.ndarray, channels: object = None, value_range: ValueRange | None = None
    ):
        self._arguments = source, channels, value_range
        if isinstance(source, np.ndarray):
            array, self.name = source, printable(getattr(source, "filename", None) or "the array")
        else:
            array, self.name = load(source), printable(source)
        axis = channel_axis(array.shape, self.name)
        self._array: Samples = array[..., None] if axis is None else np.moveaxis(array, axis, 2)
        height, width, count = self._array.shape
        self.levels: Sequence[Size] = [(height, width)]
        numbers = default_channels(count, self.name) if channels is None else check_channels(channels, count, self.name)
        self._channels = slice(None) if numbers == tuple(range(count)) else list(numbers)
        self._convert = conversion(array.dtype, "rgb" if len(numbers) == 3 else "grey", self.name, value_range)

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`. `damaged` stays as it is: an array has no tiles."""
        check_window(self, level, rows, columns)
        return torch.from_numpy(self._convert(window_of(self._array, rows, columns)[..., self._channels]))

    def close(self) -> None:
        """The array is no longer held."""
        self._array = np.empty((0, 0, 1), np.uint8)

    def __reduce__(self) -> tuple:
        source, *others = self._arguments
        if isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap):
            order = "C" if source.flags.c_contiguous else "F"
            return _of_map, (source.filename, source.dtype, source.offset, source.shape, order, *others)
        return type(self), self._arguments


def _of_map(
    path: str, dtype: np.dtype, offset: int, shape: tuple[int, ...], order: Any, channels: object, value_range: Any
) -> ArrayImage:
    """The image of a memory-mapped array in another process."""
    return ArrayImage(np.memmap(path, dtype, "r", offset, shape, order), channels, value_range)


def load(path: str | os.PathLike) -> Samples:
    """The array in a .npy file, mapped. Raises InputError."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problem = f"{printable(path)}: not an array that can be mapped ({reason_of(error)})"
        raise InputError(f"{problem}; save it with numpy.save") from error


def channel_axis(shape: tuple[int, ...], name: str) -> int | None:
    """Which axis of an array has the channels; None: it has none. Raises InputError for shapes of no image."""
    if len(shape) == 2 and 0 not in shape:
        return None
    if len(shape) == 3 and 0 not in shape:
        first, last = shape[0], shape[2]
        return 0 if first <= MAX_CHANNELS < last or first < last <= MAX_CHANNELS else 2
    raise InputError(f"{name}: an array of shape {shape}; give one that is [H, W], [H, W, C] or [C, H, W]")


def window_of(array: Samples, rows: slice, columns: slice) -> Samples:
    """A copy of a window of an array [H, W, C]; the pages of a mapped file that it read are given back."""
    window = np.array(array[rows, columns])
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        mode = getattr(base, "mode", None)
        base = getattr(base, "base", None)
    if base is not None and mode in ("r", "r+") and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
    return window
