"""What a call of the classifier's first layer computes, without its values: all that the choice of a launch needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shape = tuple[int, int, int]  # images, height, width


@dataclass(frozen=True)
class Problem:
    """The classifier's first layer on maps of these shapes.

    Attributes:
        shapes: (images, height, width) of each map, before the pooling.
        channels: of the maps, C.
        outputs: of the layer, O.
        kernel: (k_y, k_x).
        tap: positions of the pooled map between taps.
        size: of the pooling.
        dtype, device: of the operands.
    """

    shapes: tuple[Shape, ...]
    channels: int
    outputs: int
    kernel: tuple[int, int]
    tap: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, maps: Sequence[Tensor], weight: Tensor, size: int, tap: int) -> "Problem":
        """That of these maps [N, C, H, W] and this weight [O, C, k_y, k_x]."""
        outputs, channels, k_y, k_x = weight.shape
        return cls(shapes_of(maps), channels, outputs, (k_y, k_x), tap, size, weight.dtype, maps[0].device)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the pooled maps from a window's first position to its last."""
        return (self.kernel[0] - 1) * self.tap, (self.kernel[1] - 1) * self.tap

    @cached_property
    def pooled(self) -> tuple[Shape, ...]:
        """(images, height, width) of the pooled maps."""
        return tuple((n, h - self.size + 1, w - self.size + 1) for n, h, w in self.shapes)

    @cached_property
    def pooled_positions(self) -> int:
        """R: positions of all pooled maps."""
        return num_positions(self.pooled, (0, 0))

    @cached_property
    def positions(self) -> int:
        """M: output positions of all maps."""
        return num_positions(self.pooled, self.reach)


def shapes_of(maps: Sequence[Tensor]) -> tuple[Shape, ...]:
    """(images, height, width) of maps [N, C, H, W]."""
    return tuple((n, h, w) for n, _, h, w in [m.shape for m in maps])


def pooled_shapes(maps: Sequence[Tensor], size: int) -> tuple[Shape, ...]:
    """(images, height, width) of their pooled maps."""
    return tuple((n, h - size + 1, w - size + 1) for n, h, w in shapes_of(maps))


def num_positions(shapes: Sequence[Shape], reach: tuple[int, int]) -> int:
    """Output positions of pooled maps of these shapes."""
    return sum(n * (h - reach[0]) * (w - reach[1]) for n, h, w in shapes)
