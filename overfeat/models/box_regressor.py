"""The box regressor: a box at every position of a net's last maps (section 4.2)."""

import itertools
import json
import math
import uuid
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.errors import InputError, check_choice, check_count, check_counts
from overfeat.models.architecture import MAX_LAYERS, Architecture
from overfeat.models.fc_layers import ConvList, fc_flat, gather_windows, remaining_fc
from overfeat.models.geometry import Stride
from overfeat.models.metadata import entries, items, parse, string, whole
from overfeat.models.net import Net, Regressor, Shape
from overfeat.models.overfeat import OverFeat, channels_last, check_architecture, initialise
from overfeat.ops.boxes import BOX_CODERS
from overfeat.regions import region

BoxFeatures = Literal["pooled", "unpooled"]
GATHER_BYTES = 1 << 24  # bytes of windows that are gathered at a time
HIDDEN = (4096, 1024)  # the paper's, beside a classifier whose widest layer has 4096
REGION = "boxes"


class BoxRegressor(Regressor):
    """Predicts a box at every position of a net's last maps (section 4.2).

    Args:
        architecture: Of the net.
        num_classes: One box for each class ("per-class regression"), or None for one in all ("single-class").
        box_coder: How a box is written, "xyxy" or "cxcywh"; see `ops.boxes.encode`.
        hidden: Channels of the hidden layers; by default the paper's, scaled down with the net's, and the first by the
            pooling for unpooled features.
        box_features: "pooled" maps, as in the paper, or the "unpooled" ones, which localize better, window by window.

    Attributes:
        dropout: Probability at the inputs of all layers but the first, in training.
        features_id: Of the feature layers that it was trained on, see `OverFeat`; None: unknown.
    """

    def __init__(
        self, architecture: Architecture, num_classes: int | None = None, *, box_coder: str = "xyxy",
        hidden: Sequence[int] | None = None, box_features: BoxFeatures = "pooled",
    ):  # fmt: skip
        super().__init__()
        check_architecture(architecture)
        check_choice("box_coder", box_coder, BOX_CODERS)
        check_choice("box_features", box_features, get_args(BoxFeatures))
        if hidden is not None:
            check_counts("hidden", hidden)
        kernel, fraction = architecture.kernel, min(1.0, max(architecture.hidden, default=HIDDEN[0]) / HIDDEN[0])
        widths = [width * fraction for width in HIDDEN]
        if box_features == "unpooled":
            kernel *= architecture.pool
            widths[0] /= architecture.pool  # it has pool * pool as many inputs
        self.hidden = tuple(hidden or (max(1, round(width)) for width in widths))
        if num_classes is not None:
            check_count("num_classes", num_classes)
        self.architecture, self.num_classes = architecture, num_classes
        self.box_coder, self.box_features, self.dropout = box_coder, box_features, 0.0
        self.features_id: str | None = None
        channels = architecture.channels
        self.fc_layers = ConvList()
        for i, width in enumerate((*self.hidden, 4 * (num_classes or 1))):
            self.fc_layers.append(nn.Conv2d(channels, width, kernel if i == 0 else 1))
            channels = width
        channels_last(self)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise all weights, with He's scaling but for the last layer's: every box is the middle of its window."""
        for layer in self.fc_layers[:-1]:
            initialise(layer, None)
        last = self.fc_layers[-1]
        initialise(last, 0.01)
        assert last.bias is not None
        if last.bias.is_meta:  # see `initialise`
            return
        last.bias.data = BOX_CODERS[self.box_coder].to(last.bias).repeat(self.num_classes or 1)

    def forward_flat(
        self, maps: Sequence[Tensor], stride: Stride = "fine", positions: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Shape]]:
        """Boxes from a net's last maps, in their windows' frames.

        Args:
            maps: Unpooled, [N, C, h, w] each.
            positions: Which positions of each map, of its N * h' * w'; int64 [n] each. None: all.

        Returns:
            [positions, num_classes or 1, 4], and (N, h', w') of each map.
        """
        dropout = self.dropout if self.training else 0.0
        pool, step = self.architecture.pool, self.architecture.maps_stride(stride)
        maps = [m.to(self.fc_layers[0].weight.dtype) for m in maps]  # the net's may be another
        if self.box_features == "pooled":
            flat, shapes = fc_flat(self.fc_layers, maps, pool, step, dropout=dropout, regions=(REGION, REGION))
            if positions is not None:
                starts = itertools.accumulate((n * h * w for n, h, w in shapes), initial=0)
                flat = flat[torch.cat([start + p for start, p in zip(starts, positions, strict=False)])]
        else:
            with region(REGION):
                first, shapes = self._gathered_first_fc(maps, step, positions)
                flat = remaining_fc(self.fc_layers, first, dropout)
        return flat.view(len(flat), self.num_classes or 1, 4), shapes

    def forward_windows(self, windows: Tensor) -> Tensor:
        """Boxes [n, num_classes or 1, 4] of single windows of the maps, pooled or unpooled as `box_features` says.

        windows: [n, C, k, k] as `gather_windows` returns them, of the first layer's kernel.
        """
        flat, _ = fc_flat(self.fc_layers, [windows], 1, 1, dropout=self.dropout if self.training else 0.0)
        return flat.view(len(flat), self.num_classes or 1, 4)

    def _gathered_first_fc(
        self, maps: Sequence[Tensor], step: int, positions: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Shape]]:
        """The first layer over windows `step` apart, gathered a limited number at a time."""
        layer, kernel, chunks = self.fc_layers[0], self.fc_layers[0].kernel_size[0], []
        shapes = [(len(m), (m.shape[2] - kernel) // step + 1, (m.shape[3] - kernel) // step + 1) for m in maps]
        if positions is None:
            positions = [torch.arange(math.prod(shape), device=maps[0].device) for shape in shapes]
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        count = max(1, GATHER_BYTES // (weight.shape[1] * weight.element_size()))
        for m, of_map in zip(maps, positions, strict=True):
            for chunk in of_map.split(count):
                windows = gather_windows(m, kernel, step, chunk).permute(0, 2, 3, 1).flatten(1)
                chunks.append(F.linear(windows, weight, layer.bias).relu_())
        return torch.cat(chunks), shapes

    def check_made_for(self, net: Net) -> None:
        """Raises InputError where it was made for another net."""
        if not isinstance(net, OverFeat) or self.architecture != net.architecture:
            raise InputError("the regressor was made for another net; load both from one file")
        if None not in (self.features_id, net.features_id) and self.features_id != net.features_id:
            problem = "the regressor was trained on the features of another net of the same architecture"
            raise InputError(f"{problem}; load both from one file, or train it on this net's")
        if self.num_classes not in (None, net.num_foreground_classes):
            actual = f"{self.num_classes} classes, the net {net.num_foreground_classes}"
            raise InputError(f"the regressor was made for another net: it has boxes for {actual}")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.features_id = None  # whose these are is unknown

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        names = ("num_classes", "box_coder", "hidden", "box_features")
        return json.dumps({name: getattr(self, name) for name in names})

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "BoxRegressor":
        """What `to_json` wrote. Raises ValueError for any other text."""
        data = entries(parse(text), "the regressor", ("num_classes", "box_coder", "hidden", "box_features"))
        num_classes, hidden = data["num_classes"], items(data["hidden"], "hidden", MAX_LAYERS)
        return BoxRegressor(
            architecture,
            None if num_classes is None else whole(num_classes, "num_classes"),
            box_coder=string(data["box_coder"], "box_coder"),
            hidden=[whole(width, "hidden") for width in hidden],
            box_features=string(data["box_features"], "box_features"),  # type: ignore[arg-type]
        )


def train_together(net: OverFeat, regressor: BoxRegressor | None = None) -> None:
    """To be called before training: the regressor is that of the net's features, and of no others' if these change."""
    if net.features_id is None or any(weight.requires_grad for weight in net.feature_layers.parameters()):
        net.features_id = uuid.uuid4().hex
    if regressor is not None:
        regressor.features_id = net.features_id
