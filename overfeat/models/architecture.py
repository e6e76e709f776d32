"""The networks as data: an `Architecture` describes the layers; window, strides and sizes follow. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

from overfeat.models.feature_graph import FeatureGraph
from overfeat.models.geometry import Geometry, Stride
from overfeat.models.metadata import MAX_LEVEL, MAX_SIZE, MAX_STEP, entries, items, parse, real, title, whole
from overfeat.models.receptive_field import SlidingWindow, input_size, output_size, total_stride

MAX_LAYERS = 1000  # that a file may ask for


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

    kind: Literal["normalise", "backbone", "pad", "conv", "threshold", "pool", "full"]
    index: int = 0


@dataclass(frozen=True)
class Architecture:
    """A network as data; window, strides and layer sizes are derived from it."""

    name: str  # in messages and files
    convs: tuple[Conv, ...]  # the feature layers, the last with the pooling that fine stride applies at every offset
    kernel: int  # of the first fully connected layer, over the pooled maps
    hidden: tuple[int, ...]  # channels of the fully connected layers but the last, which has one per class
    short_side: int  # what training resizes an image's shorter side to, in pixels
    mean: float | tuple[float, ...] = 118.380948  # (x - mean) / std for RGB in 0..255, of all channels or of each
    std: float | tuple[float, ...] = 61.896913
    scales: tuple[tuple[int, int], ...] | None = None  # the six, landscape (height, width); None: `dense.scales`
    init_std: float | None = 0.01  # weights are drawn from N(0, init_std) (section 3.1), or by He's scaling if None
    backbone: FeatureGraph | None = None  # the feature layers of another network, in place of convs
    backbone_pool: int = 1  # the last pooling, over the backbone's maps

    @cached_property
    def feature_steps(self) -> list[SlidingWindow]:
        """The convolutions and poolings up to the last maps, which are unpooled; a backbone is one step."""
        if self.backbone is not None:
            return [self.backbone.step]
        steps = []
        for i, conv in enumerate(self.convs):
            steps.append(SlidingWindow(conv.kernel, conv.stride, conv.pad))
            if conv.pool > 1 and i < len(self.convs) - 1:
                steps.append(SlidingWindow(conv.pool, conv.pool))
        return steps

    @property
    def pool(self) -> int:
        """Size of the last pooling: the number of offsets along an axis."""
        return self.convs[-1].pool if self.backbone is None else self.backbone_pool

    @property
    def channels(self) -> int:
        """Number of channels of the last maps."""
        return self.convs[-1].channels if self.backbone is None else self.backbone.channels

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return 3 if self.backbone is None else self.backbone.in_channels

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

    @cached_property
    def geometry(self) -> Geometry:
        """Where its windows lie."""
        window = (self.window, self.window)
        return Geometry(self.name, window, self.fine_stride, self.pool, self.short_side, self.scales)

    def stride(self, stride: Stride = "coarse") -> int:
        """Pixels between outputs. Raises ArgumentError for a stride that it does not have."""
        return self.geometry.stride(stride)

    def maps_stride(self, stride: Stride) -> int:
        """Cells of the last, unpooled maps between outputs: 1 at fine stride, `pool` at coarse."""
        return self.stride(stride) // self.fine_stride

    def maps_span(self, outputs: slice, stride: Stride) -> tuple[int, int]:
        """Which cells of the last, unpooled maps these outputs of one axis depend on: (start, stop)."""
        step = self.maps_stride(stride)
        return outputs.start * step, (outputs.stop - 1) * step + self.kernel * self.pool

    def with_input_size(self, size: int, hidden: Sequence[int] | None = None) -> "Architecture":
        """The same feature layers, with a first fully connected layer over all of an image of this size, in pixels.

        The window becomes the size or a little less; ValueError if that is less than one output needs. hidden: channels
        of the hidden fully connected layers, by default the same.
        """
        kernel = output_size([*self.feature_steps, SlidingWindow(self.pool, self.pool)], size)
        if kernel < 1:
            raise ValueError(f"an image of {size} px is too small for the {self.name} net")
        return replace(self, kernel=kernel, hidden=tuple(self.hidden if hidden is None else hidden), scales=None)

    @cached_property
    def layers(self) -> list[Layer]:
        """Every layer, in the order in which the released program numbers their outputs."""
        layers = [Layer("normalise")]
        for i, conv in enumerate(self.convs):
            if conv.pad:
                layers.append(Layer("pad", i))
            layers += [Layer("conv", i), Layer("threshold", i)]
            if conv.pool > 1:
                layers.append(Layer("pool", i))
        if self.backbone is not None:
            layers += [Layer("backbone"), *([Layer("pool")] if self.pool > 1 else [])]
        for i in range(len(self.hidden)):
            layers += [Layer("full", i), Layer("threshold", i)]
        return [*layers, Layer("full", len(self.hidden))]

    @cached_property
    def feature_layers(self) -> list[Layer]:
        """The layers up to the last maps, which are unpooled."""
        return self.layers[: self.layers.index(Layer("full", 0)) - (self.pool > 1)]

    @property
    def feature_layer(self) -> int:
        """Number of the layer that the released program outputs as features: the last hidden fully connected one."""
        return len(self.layers) - 3

    def to_json(self) -> str:
        """As text, for files; `from_json` gives it back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Architecture":
        """What `to_json` wrote. Raises ValueError for any other text."""
        required = ("name", "convs", "kernel", "hidden", "short_side", "mean", "std", "scales")
        data = entries(parse(text), "the architecture", required, ("init_std", "backbone", "backbone_pool"))
        scales, init_std = data["scales"], data.get("init_std", Architecture.init_std)
        backbone = data.get("backbone")
        architecture = Architecture(
            title(data["name"], "name"),
            tuple(_read_conv(conv) for conv in items(data["convs"], "convs", MAX_LAYERS)),
            whole(data["kernel"], "kernel", maximum=MAX_STEP),
            tuple(whole(number, "hidden") for number in items(data["hidden"], "hidden", MAX_LAYERS)),
            whole(data["short_side"], "short_side"),
            _read_levels(data["mean"], "mean", -MAX_LEVEL),
            _read_levels(data["std"], "std", 1 / MAX_LEVEL),
            None if scales is None else tuple(_read_size(size) for size in items(scales, "scales")),
            None if init_std is None else real(init_std, "init_std", 0),
            None if backbone is None else FeatureGraph.from_dict(backbone),
            whole(data.get("backbone_pool", 1), "backbone_pool", maximum=MAX_STEP),
        )
        architecture._check()
        return architecture

    def _check(self) -> None:
        """Raises ValueError for what only a broken file has."""
        if bool(self.convs) == bool(self.backbone):
            raise ValueError("there are no feature layers, or two kinds")
        by_channel = [value for value in (self.mean, self.std) if isinstance(value, tuple)]
        if not all(len(value) == self.in_channels for value in by_channel):
            raise ValueError("mean and std are not of the image's channels")
        size = 1
        for step in reversed(self.steps):  # the cells before it that an output sees
            size = input_size([step], size)
            if not 0 < size <= MAX_SIZE:
                raise ValueError(f"a window sees no cell before a layer, or more than {MAX_SIZE:,}")
        if self.scales is not None and (len(self.scales) != 6 or min(map(min, self.scales)) < self.window):
            raise ValueError(f"scales are not six sizes of {self.window} px, the window, or more")


def _read_conv(value: object) -> Conv:
    data = entries(value, "a convolution", ("channels", "kernel"), ("stride", "pad", "pool"))
    sizes = {key: whole(data[key], key, maximum=MAX_STEP) for key in ("kernel", "stride", "pool") if key in data}
    return Conv(whole(data["channels"], "channels"), pad=whole(data.get("pad", 0), "pad", 0, MAX_STEP), **sizes)


def _read_levels(value: object, what: str, minimum: float) -> float | tuple[float, ...]:
    """A number of all channels, or one of each."""
    if isinstance(value, list):
        return tuple(real(number, what, minimum) for number in items(value, what))
    return real(value, what, minimum)


def _read_size(value: object) -> tuple[int, int]:
    if len(items(value, "scales", 2)) != 2:
        raise ValueError("scales are not of two numbers, height and width")
    height, width = (whole(side, "scales") for side in value)  # type: ignore[attr-defined]
    return height, width


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "fast", kernel=6, hidden=(3072, 4096), short_side=256,
            convs=(
                Conv(96, 11, stride=4, pool=2), Conv(256, 5, pool=2), Conv(512, 3, pad=1),
                Conv(1024, 3, pad=1), Conv(1024, 3, pad=1, pool=2),
            ),
        ),
        Architecture(
            "accurate", kernel=5, hidden=(4096, 4096), short_side=256,
            convs=(
                Conv(96, 7, stride=2, pool=3), Conv(256, 7, pool=2), Conv(512, 3, pad=1),
                Conv(512, 3, pad=1), Conv(1024, 3, pad=1), Conv(1024, 3, pad=1, pool=3),
            ),
            scales=((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569)),
        ),
        Architecture(
            "small", kernel=2, hidden=(256, 256), short_side=54, init_std=None,
            convs=(
                Conv(32, 5, stride=2), Conv(64, 3, pool=2), Conv(96, 3), Conv(96, 1), Conv(128, 3),
                Conv(128, 1, pool=3),
            ),
        ),
    )
}  # fmt: skip
RELEASED_FILES = {"fast": "net_weight_0", "accurate": "net_weight_1"}  # of the 2013 release
# DeepMultiBox's networks. The small net's window is small: this one has more layers, and sees a larger square.
MULTIBOX_ARCHITECTURES = {
    **ARCHITECTURES,
    "small": replace(
        ARCHITECTURES["small"], name="small multibox", kernel=10, hidden=(),
        convs=(*ARCHITECTURES["small"].convs, Conv(192, 3, pad=1), Conv(128, 3, pad=1), Conv(64, 1)),
    ),
}  # fmt: skip
