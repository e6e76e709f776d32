"""What a value of the graph is on whole images: maps that windows share, views of them, or a batch of windows.

Along an axis a window of the image at pixel p has `cells` cells, and cell k is shared cell p/unit + k*tap + offset: a
stride is kept while windows are as far apart, else it becomes the dilation of what follows ("a trous"). The first
`low` and the last `high` cells saw the window's border, so each window has its own. Maps thus have up to nine parts:
shared inside, strips that the windows of one row or column share, and corners of one window each.

A tensor that is neither `Maps` nor `View` has the windows along its first axis; on it the module's own ops run.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["low", "shared", "high"]
Cells = tuple[int, int] | None  # start and stop in the window; None: all shared cells
Pads = tuple[int, int, int, int]  # left, right, top, bottom
MapsFunction = Callable[[Tensor], Tensor]  # of maps [n, C, h, w]


@dataclass(frozen=True)
class WindowGrid:
    """The windows of an evaluation: `stride` pixels apart, `counts` (down, across) of each of N images."""

    images: int
    counts: tuple[int, int]
    stride: int

    @property
    def num_windows(self) -> int:
        """Number of windows of all images together."""
        return self.images * self.counts[0] * self.counts[1]


@dataclass(frozen=True)
class Axis:
    """Where a window's cells lie along an axis, see above.

    `before` and `after` are how many pixels beyond the window's borders its cells see where borders are neighbours.
    """

    cells: int
    unit: int = 1
    tap: int = 1
    offset: int = 0
    low: int = 0
    high: int = 0
    before: int = 0
    after: int = 0

    @property
    def own(self) -> bool:
        """Whether no cell is shared."""
        return self.low >= self.cells

    def kinds(self) -> list[tuple[Kind, Cells]]:
        """The kinds of cells that there are, with their cells in the window."""
        kinds: list[tuple[Kind, Cells]] = []
        if self.low:
            kinds.append(("low", (0, self.low)))
        if not self.own:
            kinds.append(("shared", None))
        if self.high:
            kinds.append(("high", (self.cells - self.high, self.cells)))
        return kinds


@dataclass
class Maps:
    """Shared maps. A part is [N, rows of windows, columns of windows, C, cells down, cells across], 1 row if shared."""

    axes: tuple[Axis, Axis]
    parts: dict[tuple[Kind, Kind], Tensor]
    grid: WindowGrid

    @property
    def channels(self) -> int:
        """Number of channels."""
        return next(iter(self.parts.values())).shape[3]

    @property
    def all_shared(self) -> bool:
        """Whether no cell saw a window's border."""
        return list(self.parts) == [("shared", "shared")]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, cells down, cells across) of one window."""
        return self.channels, self.axes[0].cells, self.axes[1].cells

    def take(self, down: Cells, across: Cells, pads: Pads = (0, 0, 0, 0), fill: float = 0.0) -> Tensor:
        """These cells of every window, as a part; None: all shared cells. A view where they are of one part.

        Args:
            pads: (left, right, top, bottom) cells with the value `fill` around them; negative ones leave cells out.
        """
        pieces = [
            [self._piece(kind_down, cells_down, kind_across, cells_across)
             for kind_across, cells_across in _pieces(self.axes[1], across)]
            for kind_down, cells_down in _pieces(self.axes[0], down)
        ]  # fmt: skip
        first = pieces[0][0]
        if is_plain(first) and len(pieces) == len(pieces[0]) == 1:
            return on_maps(lambda t: F.pad(t, pads, value=fill), first) if any(pads) else first
        left, right, top, bottom = pads
        height = top + sum(line[0].shape[4] for line in pieces) + bottom
        width = left + sum(piece.shape[5] for piece in pieces[0]) + right
        if max(pads) <= 0 and len(pieces) == len(pieces[0]) == 1 and _mergeable(pieces[0][0]):
            return pieces[0][0][..., -top : height - top, -left : width - left]
        result = first.new_empty(*first.shape[:3], height, width, self.channels).permute(0, 1, 2, 5, 3, 4)
        _fill_borders(result, pads, fill)
        y = top
        for line in pieces:
            x = left
            for piece in line:
                _paste(piece, result, y, x)
                x += piece.shape[5]
            y += line[0].shape[4]
        return result

    def _piece(self, kind_down: Kind, cells_down: Cells, kind_across: Kind, cells_across: Cells) -> Tensor:
        part = self._pick(self.parts[kind_down, kind_across], 0, kind_down, cells_down)
        return self._pick(part, 1, kind_across, cells_across)

    def windows(self) -> Tensor:
        """All windows as a batch: [windows, C, cells down, cells across]."""
        every = self.take((0, self.axes[0].cells), (0, self.axes[1].cells))
        return every.flatten(0, 2)

    def map(self, function: MapsFunction) -> "Maps":
        """The same function of every part as maps [n, C, h, w] that keeps height and width."""
        return Maps(self.axes, {kinds: on_maps(function, part) for kinds, part in self.parts.items()}, self.grid)

    def _pick(self, part: Tensor, i: int, kind: Kind, cells: Cells) -> Tensor:
        """Cells of every window along axis i of a part; of border cells their numbers count from the part's first."""
        if cells is None:
            return part
        if kind != "shared":
            return part.narrow(4 + i, cells[0], cells[1] - cells[0])
        axis, count = self.axes[i], self.grid.counts[i]
        step, size = self.grid.stride // axis.unit, (cells[1] - cells[0] - 1) * axis.tap + 1
        part = part.narrow(4 + i, cells[0] * axis.tap + axis.offset, (count - 1) * step + size)
        seen = part.unfold(4 + i, size, step)[..., :: axis.tap].squeeze(1 + i)
        return seen.permute(0, 3, 1, 2, 5, 4) if i == 0 else seen.permute(0, 1, 4, 2, 3, 5)


def _mergeable(part: Tensor) -> bool:
    """Whether the windows of a part can be one axis without a copy."""
    sizes, strides = part.shape[:3], part.stride()[:3]
    merged = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size > 1]
    return all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(merged))


def _fill_borders(part: Tensor, pads: Pads, fill: float) -> None:
    left, right, top, bottom = pads
    for dim, before, after in ((4, top, bottom), (5, left, right)):
        size = part.shape[dim]
        if before > 0:
            part.narrow(dim, 0, min(before, size)).fill_(fill)
        if after > 0:
            part.narrow(dim, max(0, size - after), min(after, size)).fill_(fill)


def _paste(piece: Tensor, part: Tensor, y: int, x: int) -> None:
    """Copy cells to (y, x) of a part, as far as they lie in it."""
    for dim, start in ((4, y), (5, x)):
        skip = max(0, -start)
        length = min(piece.shape[dim] - skip, part.shape[dim] - max(0, start))
        if length <= 0:
            return
        piece, part = piece.narrow(dim, skip, length), part.narrow(dim, max(0, start), length)
    part.copy_(piece)


def on_maps(function: MapsFunction, part: Tensor) -> Tensor:
    """A function of maps [n, C, h, w] on a part."""
    if is_plain(part):
        return from_plain(function(to_plain(part)))
    return function(part.flatten(0, 2)).unflatten(0, part.shape[:3])


def is_plain(part: Tensor) -> bool:
    """Whether a part is exported as plain maps: a shared one, whose views would keep runtimes from fusing layers."""
    return torch.compiler.is_exporting() and part.shape[1:3] == (1, 1)


def to_plain(part: Tensor) -> Tensor:
    """A part [N, 1, 1, C, h, w] as maps [N, C, h, w]."""
    return part.plain if hasattr(part, "plain") else part.squeeze((1, 2))


def from_plain(maps: Tensor) -> Tensor:
    """Maps as a part that remembers them."""
    part = maps.unsqueeze(1).unsqueeze(1)
    part.plain = maps  # type: ignore[attr-defined]
    return part


def _pieces(axis: Axis, cells: Cells) -> Iterator[tuple[Kind, Cells]]:
    """The kinds that cells of a window are of, each with its cells; border cells from the part's first."""
    if cells is None:
        yield "shared", None
        return
    (start, stop), high = cells, axis.cells - axis.high
    bounds: list[tuple[Kind, int, int, int]] = [
        ("low", start, min(stop, axis.low), 0),
        ("shared", max(start, axis.low), min(stop, high), 0),
        ("high", max(start, high), stop, high),
    ]
    for kind, first, last, base in bounds:
        if first < last:
            yield kind, (first - base, last - base)


@dataclass(frozen=True, eq=False)
class Index:
    """Which elements of a window's maps a view of them has.

    Attributes:
        elements: For each element of the view, its position in the flattened maps.
        shape: Of the maps, (C, h, w).
    """

    elements: Tensor
    shape: tuple[int, int, int]

    @cached_property
    def channels(self) -> Tensor | None:
        """The channels of a view that only selects and reorders channels; None for any other."""
        cells = self.shape[1] * self.shape[2]
        if self.elements.dim() != 3 or tuple(self.elements.shape[1:]) != self.shape[1:]:
            return None
        of = self.elements[:, 0, 0] // cells
        plain = (of * cells)[:, None, None] + torch.arange(cells).view(self.shape[1:])
        return of if torch.equal(plain, self.elements) else None

    @cached_property
    def consecutive(self) -> bool:
        """Whether these channels follow each other."""
        of = self.channels
        return of is not None and len(of) > 0 and torch.equal(of, torch.arange(int(of[0]), int(of[0]) + len(of)))

    @cached_property
    def unique(self) -> bool:
        """Whether no element of the maps is in the view twice."""
        return len(self.elements.unique()) == self.elements.numel()

    @cached_property
    def identity(self) -> bool:
        """Whether the view has all elements in their order."""
        size = self.shape[0] * self.shape[1] * self.shape[2]
        flat = self.elements.flatten()
        return len(flat) == size and torch.equal(flat, torch.arange(size))


@dataclass
class View:
    """Maps after view, flatten, permute, slice: not moved, but with the positions of their elements."""

    maps: Maps
    index: Index

    def windows(self) -> Tensor:
        """All windows as a batch: [windows, ...]."""
        windows = self.maps.windows().flatten(1)
        elements = self.index.elements
        if self.index.identity:
            return windows.view(len(windows), *elements.shape)
        return windows[:, elements.flatten().to(windows.device)].view(len(windows), *elements.shape)

    def as_maps(self) -> Maps | None:
        """A view that only selects and reorders channels as maps; None for any other."""
        channels = self.index.channels
        if channels is None:
            return None
        parts = self.maps.parts
        if self.index.consecutive:
            start, count = int(channels[0]), len(channels)
            selected = {kinds: part.narrow(3, start, count) for kinds, part in parts.items()}
        else:
            selected = {kinds: part[:, :, :, channels.to(part.device)] for kinds, part in parts.items()}
        return Maps(self.maps.axes, selected, self.maps.grid)


Shared = (Maps, View)


def windows_of(value: object) -> object:
    """Shared values as batches of windows; any other value as it is."""
    return value.windows() if isinstance(value, Shared) else value


def as_maps(values: Sequence[object]) -> list[object]:
    """Views as maps where they are."""
    return [(v.as_maps() or v) if isinstance(v, View) else v for v in values]
