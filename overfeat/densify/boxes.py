"""The boxes that a converted module gives beside its scores, for `localize` and `detect`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overfeat.errors import InputError
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor, Shape

if TYPE_CHECKING:
    from overfeat.densify.net import TileFeatures


class ConvertedRegressor(Regressor):
    """The boxes of a converted module, computed with its scores: its net's `regressor`.

    Attributes:
        output: Which of the module's outputs they are.
        num_classes: One box for each class, or None for one in all.
        box_coder: How a box is written, see `ops.boxes.encode`.
    """

    def __init__(self, output: int, num_classes: int | None, box_coder: str):
        super().__init__()
        self.output, self.num_classes, self.box_coder = output, num_classes, box_coder

    def check_made_for(self, net: Net) -> None:
        """Raises InputError where it is of another net."""
        if getattr(net, "regressor", None) is not self:
            raise InputError("the regressor is another net's; use net.regressor")

    def forward_flat(
        self, features: Sequence["TileFeatures"], stride: Stride = "fine", positions: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Shape]]:
        """Boxes in their windows' frames, from the features of tiles that have passed the head.

        Args:
            positions: Which windows of each tile; int64 [k] each. None: all.

        Returns:
            [windows, num_classes or 1, 4], and (n, rows, columns) of each tile.
        """
        boxes = [f.outputs[self.output] for f in features]
        if positions is not None:
            boxes = [of_tile[chosen] for of_tile, chosen in zip(boxes, positions, strict=True)]
        return torch.cat(boxes).reshape(-1, self.num_classes or 1, 4), [f.shape for f in features]
