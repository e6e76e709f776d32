"""Lists of maps in one launch: a pointer out of several, and the tables of where positions lie.

A list of maps of different sizes is one launch: their pointers are a tuple argument, everything else about them
is held in integer tables on the device. The tables depend on shapes alone and are cached.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.problem import Shape

MAX_MAPS = 64  # in one launch: each is a pointer among the arguments
MAX_TABLES = 64  # cached a function; the tables of 25,000 positions need 0.6 MB


class DeviceTableCache:
    """A decorator that caches the tables, a tuple of tensors, of a function's last MAX_TABLES arguments.

    The function's last argument is the tables' device; it must not compute on it, since another stream may read the
    tables at once. A table that another stream may still read is not overwritten when it is evicted, and a table that a
    CUDA graph was captured with is pinned for good, since every replay reads it.

    Raises:
        RuntimeError: for new shapes during a capture, in which no table can be copied to the device.
    """

    def __init__(self, make: Callable[..., tuple[Tensor, ...]]):
        self.make, self.lock = make, threading.Lock()
        # The tables, and the streams that have used them: the allocator records each once.
        self.tables: OrderedDict[tuple[Any, ...], tuple[tuple[Tensor, ...], set[torch.cuda.Stream]]] = OrderedDict()
        self.pinned_by_graph: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def __call__(self, *arguments: Any) -> Any:
        with self.lock:
            return self._get(arguments)

    def _get(self, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        on_gpu, entry = arguments[-1].type == "cuda", self.tables.get(arguments)
        capturing = on_gpu and torch.cuda.is_current_stream_capturing()
        if entry is None:
            if capturing:
                problem = "a CUDA graph is being captured with maps of new shapes"
                raise RuntimeError(f"{problem}; run the call once before the capture")
            entry = self.tables[arguments] = self.make(*arguments), set()
            if len(self.tables) > MAX_TABLES:
                self.tables.popitem(last=False)
        self.tables.move_to_end(arguments)
        tables, streams = entry
        if capturing:
            self.pinned_by_graph[arguments] = tables
        elif on_gpu and (stream := torch.cuda.current_stream()) not in streams:
            streams.add(stream)
            for table in tables:
                table.record_stream(stream)
        return tables


def pointers(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The maps as a tuple argument of a kernel, the last one repeated up to a power of two of them.

    A kernel is compiled for each length of the tuple, and so not for every number of maps.
    """
    length = 1 << (len(maps) - 1).bit_length()
    return (*maps, *[maps[-1]] * (length - len(maps)))


@triton.jit
def address_of(maps, index, COUNT: tl.constexpr):
    """The address of maps[index] as int64; maps: tuple of COUNT pointers; index: an int32 scalar or block."""
    address = maps[0].to(tl.int64) + tl.zeros_like(index).to(tl.int64)
    for i in tl.static_range(1, COUNT):
        address = tl.where(index == i, maps[i].to(tl.int64), address)
    return address


class OutputPositions(NamedTuple):
    """For every output position, where its window starts."""

    map_index: Tensor  # int32 [M], of its map
    base_offset: Tensor  # int64 [M], the window's first position in that map, counted in positions
    row_pitch: Tensor  # int32 [M], positions in a row of that map


class InputPositions(NamedTuple):
    """For every position of the pooled maps, the output positions that may use it."""

    y: Tensor  # int32 [R], its row
    x: Tensor  # int32 [R], its column
    height: Tensor  # int32 [R], rows of its map's output
    width: Tensor  # int32 [R], columns of its map's output
    first: Tensor  # int64 [R], the first output position of its image


class PoolInputs(NamedTuple):
    """For every position of the maps, the pooled positions whose windows have it."""

    map_index: Tensor  # int32 [P], of its map
    position: Tensor  # int64 [P], its number in that map
    window: Tensor  # int64 [P], the pooled position of the window that starts there; in no map if there is none
    row_pitch: Tensor  # int32 [P], pooled positions in a row of its map
    offsets: Tensor  # int32 [P], bit row * size + column: a window has the position at that row and column


@DeviceTableCache
def output_positions(
    shapes: tuple[Shape, ...], reach: tuple[int, int], joined: bool, device: torch.device
) -> OutputPositions:
    """The table of the outputs of maps of these shapes; a window reaches (rows, columns) past its first position.

    joined: the maps are contiguous in one buffer, and `base_offset` counts from its start.
    """
    chunks, start = [], 0
    for i, (n, height, width) in enumerate(shapes):
        image, y, x = _meshgrid(n, height - reach[0], width - reach[1])
        base = (image * height + y) * width + x + (start if joined else 0)
        chunks.append((torch.full_like(base, 0 if joined else i), base, torch.full_like(base, width)))
        start += n * height * width
    map_index, base_offset, row_pitch = (torch.cat(chunk) for chunk in zip(*chunks, strict=True))
    return OutputPositions(map_index.int().to(device), base_offset.to(device), row_pitch.int().to(device))


@DeviceTableCache
def input_positions(shapes: tuple[Shape, ...], reach: tuple[int, int], device: torch.device) -> InputPositions:
    """The table of the positions of pooled maps of these shapes, contiguous in one buffer."""
    chunks, first = [], 0
    for n, height, width in shapes:
        image, y, x = _meshgrid(n, height, width)
        rows, columns = height - reach[0], width - reach[1]
        chunks.append((y, x, torch.full_like(y, rows), torch.full_like(y, columns), first + image * rows * columns))
        first += n * rows * columns
    ys, xs, heights, widths, firsts = (torch.cat(chunk) for chunk in zip(*chunks, strict=True))
    small = [t.int().to(device) for t in (ys, xs, heights, widths)]
    return InputPositions._make([*small, firsts.to(device)])


@DeviceTableCache
def pool_inputs(shapes: tuple[Shape, ...], size: int, dilation: int, device: torch.device) -> PoolInputs:
    """The table of the positions of maps of these shapes, which windows of size x size values, at most 5 x 5, pool."""
    chunks, first, reach = [], 0, (size - 1) * dilation
    for i, (n, height, width) in enumerate(shapes):
        image, y, x = _meshgrid(n, height, width)
        rows, columns = height - reach, width - reach
        offsets = torch.zeros_like(y)
        for bit in range(size * size):
            top, left = y - bit // size * dilation, x - bit % size * dilation
            offsets += ((top >= 0) & (top < rows) & (left >= 0) & (left < columns)).long() << bit
        window = first + (image * rows + y) * columns + x
        number = torch.arange(len(y), device="cpu")
        chunks.append((torch.full_like(y, i), number, window, torch.full_like(y, columns), offsets))
        first += n * rows * columns
    index, number, window, pitch, offsets = (torch.cat(chunk) for chunk in zip(*chunks, strict=True))
    small = [t.int().to(device) for t in (index, pitch, offsets)]
    return PoolInputs(small[0], number.to(device), window.to(device), *small[1:])


def _meshgrid(n: int, height: int, width: int) -> Sequence[Tensor]:
    """Image, row and column of every position, int64, flat."""
    axes = [torch.arange(length, device="cpu") for length in (n, height, width)]
    return [t.reshape(-1) for t in torch.meshgrid(*axes, indexing="ij")]
