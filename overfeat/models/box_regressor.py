"""What a net ends in to give boxes: the regressor at every place (section 4.2), and DeepMultiBox."""

import json
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import regions
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Stride
from overfeat.models.overfeat import forward_fc_flat, initialise, remaining_fc
from overfeat.ops.boxes import BOX_CODERS

GATHER_BYTES = 1 << 24  # bytes of windows that are gathered at a time
HIDDEN = (4096, 1024)  # the paper's, beside a classifier whose widest layer has 4096


class BoxRegressor(nn.Module):
    """Predicts a box at every place of a net's last maps (section 4.2).

    architecture: of the net. classes: one box for each class ("per-class regression"), or None for
    one box in all ("single-class"). form: how a box is written, see boxes.encode. hidden: channels
    of the hidden layers; by default the paper's, scaled down with the net's, and the first by the pooling
    where pooled is False. pooled: it sees the pooled maps,
    as in the paper; False: the maps before the last pooling, which tell better where things are, window by
    window. dropout: applied to the hidden layers in training.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int | None = None,
        form: str = "edges",
        hidden: Sequence[int] | None = None,
        pooled: bool = True,
    ):
        super().__init__()
        if form not in BOX_CODERS:
            raise InputError(f"the form of a box is one of {', '.join(BOX_CODERS)}, not {form!r}")
        share = min(1.0, max(architecture.hidden) / HIDDEN[0])
        scaled = [width * share for width in HIDDEN]
        if not pooled:
            scaled[0] /= architecture.pool  # it has pool * pool as many inputs
        self.hidden = tuple(hidden or (max(1, round(width)) for width in scaled))
        if min(self.hidden) < 1 or (classes is not None and classes < 1):
            raise InputError(f"hidden layers of {self.hidden} channels for {classes} classes: give 1 or more of each")
        self.architecture, self.num_classes, self.form, self.dropout = architecture, classes, form, 0.0
        self.pooled, kernel = pooled, architecture.kernel * (1 if pooled else architecture.pool)
        channels = architecture.convs[-1].channels
        self.fc_layers = nn.ModuleList()
        for i, width in enumerate((*self.hidden, 4 * (classes or 1))):
            self.fc_layers.append(nn.Conv2d(channels, width, kernel if i == 0 else 1))
            channels = width
        self.to(memory_format=torch.channels_last)
        self.init_weights()

    def init_weights(self, std: float | None = None) -> None:
        """New weights: He's scaling, or N(0, std); at first every box is the middle of its window."""
        for layer in self.fc_layers[:-1]:
            initialise(layer, std)
        last = self.fc_layers[-1]
        initialise(last, std or 0.01)
        last.bias.data = BOX_CODERS[self.form].to(last.bias).repeat(self.num_classes or 1)

    def rows(
        self, maps: Sequence[Tensor], stride: Stride = "fine", places: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """Boxes from unpooled last maps: [places, classes or 1, 4] in the windows' frame, and (N, h, w) of each map.

        places: int64 [n] of each map, those that are wanted of its N * h * w; None: all of them.
        """
        dropout = self.dropout if self.training else 0.0
        if self.pooled:
            rows, shapes = forward_fc_flat(self.fc_layers, maps, self.architecture.pool, stride, dropout, regions.BOXES)
            if places is not None:
                starts = torch.tensor([0, *(n * h * w for n, h, w in shapes)]).cumsum(0).tolist()
                rows = rows[torch.cat([start + p for start, p in zip(starts, places, strict=False)])]
        else:
            step = 1 if stride == "fine" else self.architecture.pool
            first, shapes = regions.run("boxes", self._gathered_first_fc, maps, step, places)
            rows = regions.run("boxes", remaining_fc, self.fc_layers, first, dropout)
        return rows.view(len(rows), self.num_classes or 1, 4), shapes

    def _gathered_first_fc(
        self, maps: Sequence[Tensor], step: int, places: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """The first layer over windows `step` apart that are gathered one by one, not many at a time."""
        layer, kernel, parts = self.fc_layers[0], self.fc_layers[0].kernel_size[0], []
        shapes = [(len(m), *((side - kernel) // step + 1 for side in m.shape[2:])) for m in maps]
        if places is None:
            places = [torch.arange(math.prod(shape), device=maps[0].device) for shape in shapes]
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        count = max(1, GATHER_BYTES // (weight.shape[1] * weight.element_size()))
        for m, of_map, shape in zip(maps, places, shapes, strict=True):
            for some in of_map.split(count):
                parts.append(F.linear(_windows(m, kernel, step, shape, some), weight, layer.bias).relu_())
        return torch.cat(parts), shapes

    def settings(self) -> dict[str, str | bool]:
        """What a resumed training must find unchanged, by the name of its flag."""
        return {
            "form": self.form,
            "per_class": self.num_classes is not None,
            "hidden": " ".join(map(str, self.hidden)),
            "maps": "pooled" if self.pooled else "unpooled",
        }

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        return json.dumps(
            {"classes": self.num_classes, "form": self.form, "hidden": self.hidden, "pooled": self.pooled}
        )

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "BoxRegressor":
        """Raises ValueError, KeyError or TypeError where the text is no regressor."""
        data = json.loads(text)
        return BoxRegressor(architecture, data["classes"], data["form"], data["hidden"], data.get("pooled", True))


def _windows(maps: Tensor, kernel: int, step: int, shape: tuple[int, int, int], places: Tensor) -> Tensor:
    """What the windows at these places of maps [N, C, H, W] hold: [places, kernel * kernel * C]."""
    _, rows, columns = shape
    height, width = maps.shape[2:]
    image, row, column = places // (rows * columns), places // columns % rows, places % columns
    start = (image * height + row * step) * width + column * step
    inside = torch.arange(kernel, device=maps.device)
    inside = (inside[:, None] * width + inside).flatten()
    return maps.permute(0, 2, 3, 1).flatten(0, 2)[start[:, None] + inside].flatten(1)
