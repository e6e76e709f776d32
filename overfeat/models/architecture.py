"""The networks as data: an `Architecture` says what the layers are; window, strides and sizes follow from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

from overfeat.models.receptive_field import SlidingWindow, input_size, output_size, total_stride

Stride = Literal["coarse", "fine"]
POSITIVE = ("channels", "kernel", "stride", "pool")  # of a convolution


@dataclass(frozen=True)
class Conv:
    """A convolution, its ReLU, and a non-overlapping max pooling (pool 1: none)."""

    channels: int
    kernel: int
    stride: int = 1
    pad: int = 0
    pool: int = 1


@dataclass(frozen=True)
class Layer:
    """One layer as the released program numbers them; `index` counts layers with weights."""

    kind: Literal["normalise", "pad", "conv", "threshold", "pool", "full"]
    index: int = 0


@dataclass(frozen=True)
class Architecture:
    """A network as data; window, strides and layer sizes are derived from it.

    convs: the feature layers, the last with the pooling that fine stride applies at every offset.
    kernel: of the first full layer, over the pooled maps. hidden: channels of the full layers but
    the last, which has one per class. mean, std: (x - mean) / std for RGB in 0..255. short_side:
    what training resizes an image's shorter side to. scales: six (height, width), landscape;
    None derives them (geometry.Fit.six_scales).
    """

    name: str
    convs: tuple[Conv, ...]
    kernel: int
    hidden: tuple[int, ...]
    short_side: int
    mean: float = 118.380948
    std: float = 61.896913
    scales: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def feature_steps(self) -> list[SlidingWindow]:
        """The convolutions and poolings up to the last maps, which are unpooled."""
        steps = []
        for i, conv in enumerate(self.convs):
            steps.append(SlidingWindow(conv.kernel, conv.stride, conv.pad))
            if conv.pool > 1 and i < len(self.convs) - 1:
                steps.append(SlidingWindow(conv.pool, conv.pool))
        return steps

    @property
    def pool(self) -> int:
        """Size of the last pooling: the number of offsets along an axis."""
        return self.convs[-1].pool

    @property
    def steps(self) -> list[SlidingWindow]:
        """Everything that slides, from the image to the output at coarse stride."""
        return [*self.feature_steps, SlidingWindow(self.pool, self.pool), SlidingWindow(self.kernel)]

    @cached_property
    def window(self) -> int:
        """The training size: the smallest square image, which gives one output."""
        return input_size(self.steps)

    @cached_property
    def fine_stride(self) -> int:
        """Pixels between outputs when the last pooling is applied at every offset."""
        return total_stride(self.feature_steps)

    def stride(self, stride: Stride = "coarse") -> int:
        """Pixels between outputs."""
        return self.fine_stride * (1 if stride == "fine" else self.pool)

    def with_input_size(self, size: int, hidden: Sequence[int] | None = None) -> "Architecture":
        """The same feature layers, with a first full layer over all of an image of `size` px or a little less.

        hidden: channels of the hidden full layers, by default the same. Raises ValueError where size is less than
        one output of the first full layer needs.
        """
        kernel = output_size([*self.feature_steps, SlidingWindow(self.pool, self.pool)], size)
        if kernel < 1:
            raise ValueError(f"an image of {size} px is too small for the {self.name} net")
        return replace(self, kernel=kernel, hidden=tuple(self.hidden if hidden is None else hidden), scales=None)

    @cached_property
    def layers(self) -> list[Layer]:
        """Every layer in the released program's order; an output's number is its place here."""
        layers = [Layer("normalise")]
        for i, conv in enumerate(self.convs):
            if conv.pad:
                layers.append(Layer("pad", i))
            layers += [Layer("conv", i), Layer("threshold", i)]
            if conv.pool > 1:
                layers.append(Layer("pool", i))
        for i in range(len(self.hidden)):
            layers += [Layer("full", i), Layer("threshold", i)]
        return [*layers, Layer("full", len(self.hidden))]

    @property
    def feature_layer(self) -> int:
        """Number of the layer that the released program gives as features: the last hidden full one."""
        return len(self.layers) - 3

    def layer_shape(self, number: int, height: int, width: int, classes: int) -> tuple[int, int, int]:
        """(channels, height, width) of a layer's output for an image of height x width."""
        shape = (3, height, width)
        for layer in self.layers[: number + 1]:
            channels, step = shape[0], None
            if layer.kind in ("pad", "conv", "pool"):
                conv = self.convs[layer.index]
            if layer.kind == "pad":
                step = SlidingWindow(1, 1, conv.pad)
            elif layer.kind == "conv":
                channels, step = conv.channels, SlidingWindow(conv.kernel, conv.stride)
            elif layer.kind == "pool":
                step = SlidingWindow(conv.pool, conv.pool)
            elif layer.kind == "full":
                channels = (*self.hidden, classes)[layer.index]
                step = SlidingWindow(self.kernel if layer.index == 0 else 1)
            if step:
                shape = (channels, output_size([step], shape[1]), output_size([step], shape[2]))
        return shape

    def to_json(self) -> str:
        """As text, for files; `from_json` gives it back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Architecture":
        """Raises ValueError, KeyError or TypeError where the text is no architecture."""
        data = json.loads(text)
        data["convs"] = tuple(Conv(**conv) for conv in data["convs"])
        data["hidden"] = tuple(data["hidden"])
        numbers = [data["kernel"], *data["hidden"], *(getattr(c, k) for c in data["convs"] for k in POSITIVE)]
        if not all(type(n) is int and n > 0 for n in numbers) or not all(c.pad >= 0 for c in data["convs"]):
            raise ValueError("a layer with sizes that are no whole numbers above 0")
        if not data["convs"] or not data["std"] > 0:
            raise ValueError("no layers, or pixels that are divided by 0")
        if data["scales"] is not None:
            data["scales"] = tuple((height, width) for height, width in data["scales"])
        return Architecture(**data)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "fast",
            convs=(
                Conv(96, 11, stride=4, pool=2), Conv(256, 5, pool=2), Conv(512, 3, pad=1),
                Conv(1024, 3, pad=1), Conv(1024, 3, pad=1, pool=2),
            ),
            kernel=6,
            hidden=(3072, 4096),
            short_side=256,
        ),
        Architecture(
            "accurate",
            convs=(
                Conv(96, 7, stride=2, pool=3), Conv(256, 7, pool=2), Conv(512, 3, pad=1),
                Conv(512, 3, pad=1), Conv(1024, 3, pad=1), Conv(1024, 3, pad=1, pool=3),
            ),
            kernel=5,
            hidden=(4096, 4096),
            short_side=256,
            scales=((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569)),
        ),
        Architecture(
            "small",
            convs=(
                Conv(32, 5, stride=2), Conv(64, 3, pool=2), Conv(96, 3), Conv(96, 1), Conv(128, 3),
                Conv(128, 1, pool=3),
            ),
            kernel=2,
            hidden=(256, 256),
            short_side=54,
        ),
    )
}  # fmt: skip

RELEASED_FILES = {"fast": "net_weight_0", "accurate": "net_weight_1"}  # of the 2013 release
