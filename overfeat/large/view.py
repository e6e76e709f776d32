"""The part of a large image that is evaluated, at any size: only the pixels that are asked for are read and resized."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from overfeat.errors import ArgumentError, InputError, printable
from overfeat.large.config import LargeConfig, Region
from overfeat.large.readers.image import LargeImage, TileError
from overfeat.models.geometry import Size
from overfeat.models.net import as_batch
from overfeat.ops.backends import eager_resize, numba_modules
from overfeat.ops.backends.eager_resize import Axis
from overfeat.regions import region

MAX_READ = 1 << 24  # pixels that are read at a time
COARSER = 1.01  # a level that must be enlarged by less than this is fine enough


@dataclass(frozen=True)
class View:
    """A part of a large image at one of its levels: the image that is evaluated.

    Attributes:
        image: The file.
        level: That scale factors refer to.
        region: (x, y, width, height) in pixels of the finest level.
    """

    image: LargeImage
    level: int
    region: Region

    @classmethod
    def of(cls, image: LargeImage, config: LargeConfig | None = None) -> "View":
        """The view of these options. Raises ArgumentError for a level or a region that the image does not have."""
        config = config or LargeConfig()
        (height, width), levels = image.levels[0], len(image.levels)
        if config.level >= levels:
            problem = f"{printable(image.name)} has {levels} level{'s' if levels > 1 else ''}; "
            raise ArgumentError("level", f"must be from 0 to {levels - 1}, not {config.level}", problem)
        x, y, across, down = config.region or (0, 0, width, height)
        if x + across > width or y + down > height:
            problem = f"{printable(image.name)} is {height} px high and {width} px wide; "
            raise ArgumentError("region", f"must lie in it, not be {x},{y},{across},{down}", problem)
        return cls(image, config.level, (x, y, across, down))

    @property
    def size(self) -> Size:
        """(height, width) of the part, in pixels of the view's level."""
        rows, columns = (max(1, round(length)) for _, length in self._extent(self.level))
        return rows, columns

    def _extent(self, level: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """(start, length) of the part in pixels of a level, for rows and for columns."""
        x, y, width, height = self.region
        down, across = (
            own / finest for own, finest in zip(self.image.levels[level], self.image.levels[0], strict=True)
        )
        return (y * down, height * down), (x * across, width * across)

    def scaled(self, size: Size, channels: int = 3) -> "ScaledView":
        """The part resized to (height, width), from the coarsest level that is as fine, and none finer than the view's.

        channels: 3, or 1 for grey.
        """
        levels = range(self.level, len(self.image.levels))
        fine = [
            level for level in levels
            if all(length * COARSER >= side for (_, length), side in zip(self._extent(level), size, strict=True))
        ]  # fmt: skip
        level = fine[-1] if fine else self.level
        rows, columns = (
            Axis(pixels, side, start, length)
            for pixels, side, (start, length) in zip(self.image.levels[level], size, self._extent(level), strict=True)
        )
        return ScaledView(self.image, level, rows, columns, channels)

    def to_level0(self, boxes: Tensor) -> Tensor:
        """Boxes [n, 4] in pixels of the view as boxes in pixels of the finest level of the whole image."""
        x, y, width, height = self.region
        rows, columns = self.size
        scale = boxes.new_tensor([width / columns, height / rows] * 2, dtype=torch.float64)
        return (boxes.double() * scale + scale.new_tensor([x, y, x, y])).to(boxes.dtype)

    def boxes_of(self, damaged: list[TileError]) -> Tensor:
        """What damaged tiles cover, in pixels of the view: float64 [n, 4]."""
        boxes = torch.empty(len(damaged), 4, dtype=torch.float64)
        for number, tile in enumerate(damaged):
            for axis, part in enumerate((tile.columns, tile.rows)):
                start, length = self._extent(tile.level)[1 - axis]
                side = self.size[1 - axis] / length
                boxes[number, axis], boxes[number, axis + 2] = (part.start - start) * side, (part.stop - start) * side
        return boxes


@dataclass(frozen=True)
class ScaledView:
    """A view resized to one size; equal to `data.resize.resize` of all its pixels."""

    image: LargeImage
    level: int  # that is read
    rows: Axis
    columns: Axis
    channels: int = 3

    @cached_property
    def _precision(self) -> tuple[int, int]:
        return self.rows.precision(), self.columns.precision()

    def crop(self, rows: slice, columns: slice, damaged: list[TileError] | None = None) -> Tensor:
        """These rows and columns: uint8 [channels, h, w]. damaged: as in `LargeImage.read`."""
        result = torch.empty(self.channels, rows.stop - rows.start, columns.stop - columns.start, dtype=torch.uint8)
        pending = [(rows, columns)]
        while pending:
            down, across = pending.pop()
            if down.stop - down.start > 1 and self._pixels(down, across) > MAX_READ:
                middle = (down.start + down.stop) // 2
                pending += [(slice(middle, down.stop), across), (slice(down.start, middle), across)]
            elif across.stop - across.start > 1 and self._pixels(down, across) > MAX_READ:
                middle = (across.start + across.stop) // 2
                pending += [(down, slice(middle, across.stop)), (down, slice(across.start, middle))]
            else:
                top, left = rows.start, columns.start
                own = result[:, down.start - top : down.stop - top, across.start - left : across.stop - left]
                own.copy_(self._crop(down, across, damaged))
        return result

    def _pixels(self, rows: slice, columns: slice) -> float:
        """Pixels of the level that these rows and columns are made of, about."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return (height + 2) * self.rows.step * (width + 2) * self.columns.step

    def _crop(self, rows: slice, columns: slice, damaged: list[TileError] | None) -> Tensor:
        down = None if self.rows.is_copy() else self.rows.weights(rows, self._precision[0])
        across = None if self.columns.is_copy() else self.columns.weights(columns, self._precision[1])
        spans = [
            slice(int(axis.start) + outputs.start, int(axis.start) + outputs.stop) if weights is None else weights.span
            for axis, outputs, weights in ((self.rows, rows, down), (self.columns, columns, across))
        ]
        with region("read"):
            read = self.image.read(self.level, spans[0], spans[1], damaged=damaged)
        try:
            pixels = as_batch(read, self.channels)[0].numpy()
        except ValueError:
            raise InputError(f"a net of {self.channels} channels; large images are read as RGB") from None
        with region("resize"):
            resize = numba_modules.load("numba_resize") or eager_resize
            if across is not None:
                pixels = resize.weigh_columns(pixels, spans[1].start, across)
            if down is not None:
                pixels = resize.weigh_rows(pixels, spans[0].start, down)
        return torch.from_numpy(np.ascontiguousarray(pixels))
