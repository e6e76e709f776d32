"""What the kernels share on lists of maps: one pointer out of several, the tables that say where places lie.

A list of maps of different sizes is one launch: their pointers are a tuple argument, everything else
about them stands in tables of integers on the device. The tables depend on shapes alone and are kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_MAPS = 64  # in one launch: each is a pointer among the arguments
KEPT = 64  # lists of shapes whose tables are kept; those of 25,000 places take 0.6 MB

Shape = tuple[int, int, int]  # images, rows, columns


class Kept:
    """A decorator: keeps the tables, a tuple of tensors, that a function made for the last KEPT arguments.

    What another stream may still read is not overwritten when a table goes, and a table that a
    CUDA graph was captured with stays for good, since every replay reads it. Raises RuntimeError
    for new shapes inside a capture, where no table can be copied to the device.
    """

    def __init__(self, make: Callable[..., tuple[Tensor, ...]]):
        self.make, self.tables, self.of_graphs, self.lock = make, OrderedDict(), {}, threading.Lock()

    def __call__(self, *arguments):
        with self.lock:
            return self._get(arguments)

    def _get(self, arguments):
        found = self.tables.get(arguments)
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if found is None:
            if capturing:
                raise RuntimeError(
                    "a CUDA graph is being captured with maps of new shapes; run the call once before the capture"
                )
            found = self.tables[arguments] = self.make(*arguments)
            if len(self.tables) > KEPT:
                self.tables.popitem(last=False)
        self.tables.move_to_end(arguments)
        if capturing:
            self.of_graphs[arguments] = found
        elif found[0].is_cuda:
            for table in found:
                table.record_stream(torch.cuda.current_stream())
        return found


@triton.jit
def address_of(maps, index, COUNT: tl.constexpr):
    """The address of maps[index] as int64; index: an int32 scalar or block."""
    address = maps[0].to(tl.int64) + tl.zeros_like(index).to(tl.int64)
    for i in tl.static_range(1, COUNT):
        address = tl.where(index == i, maps[i].to(tl.int64), address)
    return address


class Places(NamedTuple):
    """For every place of the result, where its window starts: int32 [M], int64 [M], int32 [M]."""

    which: Tensor  # number of its map
    base: Tensor  # first cell of its window, counted in cells of that map
    pitch: Tensor  # cells in a row of that map


class Cells(NamedTuple):
    """For every cell of the pooled maps, which places may use it: int32 [R], 4 times, int64 [R]."""

    y: Tensor  # row and column of the cell
    x: Tensor
    height: Tensor  # rows and columns of its map's places
    width: Tensor
    first: Tensor  # the first place of its image


@Kept
def places(shapes: tuple[Shape, ...], reach: int, joined: bool, device: torch.device) -> Places:
    """The table of the places of maps of these shapes; a window reaches `reach` cells past its first.

    joined: the maps lie one behind the other in one buffer, and `base` counts from its start.
    """
    parts, start = [], 0
    for i, (n, height, width) in enumerate(shapes):
        image, y, x = _grid(n, height - reach, width - reach)
        base = (image * height + y) * width + x + (start if joined else 0)
        parts.append((torch.full_like(base, 0 if joined else i), base, torch.full_like(base, width)))
        start += n * height * width
    which, base, pitch = (torch.cat(part) for part in zip(*parts, strict=True))
    return Places(which.int().to(device), base.to(device), pitch.int().to(device))


@Kept
def cells(shapes: tuple[Shape, ...], reach: int, device: torch.device) -> Cells:
    """The table of the cells of pooled maps of these shapes, one map behind the other."""
    parts, first = [], 0
    for n, height, width in shapes:
        image, y, x = _grid(n, height, width)
        rows, columns = height - reach, width - reach
        parts.append((y, x, torch.full_like(y, rows), torch.full_like(y, columns), first + image * rows * columns))
        first += n * rows * columns
    *small, firsts = (torch.cat(part) for part in zip(*parts, strict=True))
    return Cells(*(t.int().to(device) for t in small), firsts.to(device))


def _grid(n: int, height: int, width: int) -> Sequence[Tensor]:
    """Image, row and column of every cell, int64, flat."""
    axes = [torch.arange(length, device="cpu") for length in (n, height, width)]
    return [t.reshape(-1) for t in torch.meshgrid(*axes, indexing="ij")]
