"""The networks: `OverFeat` is the one module that runs any `Architecture`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import ops
from overfeat.errors import InputError, check_flag, check_names, in_one_line, is_whole
from overfeat.models.architecture import ARCHITECTURES, Architecture, Layer
from overfeat.models.backbone import FeatureLayers
from overfeat.models.fc_layers import ContextLogits, ConvList, fc_flat, first_fc
from overfeat.models.flops import region_macs
from overfeat.models.geometry import Size, Stride
from overfeat.models.layers import BuiltInLayer
from overfeat.models.memory import feature_bytes, head_bytes
from overfeat.models.net import InputSpan, Net, Shape, as_batch, check_tensor
from overfeat.models.receptive_field import input_span
from overfeat.ops.chain import ChainedLayer, run_chain
from overfeat.regions import FIRST_FC, region

Module = TypeVar("Module", bound=nn.Module)
Pads = Sequence[Sequence[tuple[int, int]]]  # for rows and for columns, (before, after) of every feature step


def build(architecture: str | Architecture, classes: int = 1000) -> "OverFeat":
    """A new `OverFeat` with freshly initialised weights and this number of classes, at least one.

    architecture: "fast", "accurate", "small", or an `Architecture`; InputError for an unknown name.
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise InputError(f"no net is called {architecture!r}; there are {', '.join(ARCHITECTURES)}")
        architecture = ARCHITECTURES[architecture]
    if not isinstance(architecture, Architecture):
        raise TypeError(f"architecture must be a name or an Architecture, not {type(architecture).__name__}")
    return OverFeat(architecture, classes)


@dataclass(frozen=True)
class ContextFeatures:
    """What the positions of one map see of their surroundings: twice as far, at half the resolution."""

    maps: Tensor | None  # the last maps there, [N, C, h, w], or None where the image is too small
    # int64, for every position of the map, row by row: the position of `maps` whose window has nearly the same centre;
    # -1 for all where there are no maps.
    positions: Tensor


class OverFeat(Net):
    """A network that gives one output for every window of an image (sections 3.1, 3.3 and 3.5).

    Args:
        architecture: Its layers.
        classes: Number of outputs.
        context: Whether it sees each position at half the resolution as well.
        backbone: Of an architecture with a backbone, the feature layers; None: new ones with random weights.

    Attributes:
        class_names: One for each output.
        flip: Whether mirror images were part of training, and so are part of evaluation by default.
        background: Whether the last class is the background (section 5).
        scale_factors: The scales that the net was trained for, as factors of an image's own size; None: the six scales.
        reach: How far windows reach beyond an image's border, see `Net`.
        dropout: Probability at the inputs of all fully connected layers but the first, in training.
        context: None, or the part of the first fully connected layer that sees `ContextFeatures`.
        features_id: Of the feature layers' weights: equal to that of the box regressor that was trained on them, of
            which it is a digest in files; None: unknown.
    """

    context: nn.Conv2d | None

    def __init__(
        self, architecture: Architecture, classes: int = 1000, context: bool = False,
        backbone: FeatureLayers | None = None,
    ):  # fmt: skip
        super().__init__()
        check_architecture(architecture)
        check_flag("context", context)
        _check_classes(classes)
        if backbone is not None and not isinstance(backbone, FeatureLayers):
            raise TypeError(f"backbone must be an overfeat.Backbone, not {type(backbone).__name__}")
        if backbone is not None and backbone.graph != architecture.backbone:
            raise InputError(
                f"the backbone is not that of the architecture {architecture.name}; take its `architecture`"
            )
        self.architecture, self.geometry = architecture, architecture.geometry
        self._steps = architecture.feature_layers  # torch.compile cannot read a cached property
        self.class_names = [f"class {i}" for i in range(classes)]
        self.flip = True
        self.background = False
        self.scale_factors = None
        self.dropout = 0.5
        self.features_id: str | None = None
        self.in_channels = channels = architecture.in_channels
        self.backbone = None if architecture.backbone is None else FeatureLayers(architecture.backbone)
        self.conv_layers = ConvList()
        for conv in architecture.convs:
            self.conv_layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.pad))
            channels = conv.channels
        channels = architecture.channels
        self.fc_layers = ConvList()
        for i, width in enumerate((*architecture.hidden, classes)):
            self.fc_layers.append(nn.Conv2d(channels, width, architecture.kernel if i == 0 else 1))
            channels = width
        self.context = self._context_layer() if context else None
        channels_last(self)
        self.init_weights()  # a seed's weights depend on the memory format
        if backbone is not None:
            self.backbone = channels_last(backbone)

    def add_context(self) -> None:
        """Let every position see its surroundings too; until training they contribute nothing."""
        self.context = channels_last(self._context_layer()).to(self.fc_layers[0].weight)
        nn.init.zeros_(self.context.weight)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.features_id = None  # whose these are is unknown

    def _context_layer(self) -> nn.Conv2d:
        first = self.fc_layers[0]
        return nn.Conv2d(first.in_channels, first.out_channels, self.architecture.kernel, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fc_layers[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.fc_layers[0].weight.dtype

    @property
    def feature_layers(self) -> nn.Module:
        """The layers up to the last maps, whose weights training may freeze."""
        return self.conv_layers if self.backbone is None else self.backbone

    @property
    def num_classes(self) -> int:
        """Number of classes, with the background."""
        return self.fc_layers[-1].out_channels

    def init_weights(self) -> None:
        """Initialise all weights by the architecture's `init_std` (section 3.1), biases to 0."""
        for layer in (*self.conv_layers, *self.fc_layers, *([self.context] if self.context else [])):
            initialise(layer, self.architecture.init_std)
        if self.backbone is not None:
            self.backbone.init_weights()

    def reset_classifier(self, names: Sequence[str]) -> None:
        """Replace the last layer by a new one for these classes, N(0, 0.01) by default; every other weight stays."""
        check_names("names", names)
        _check_classes(len(names))
        old = self.fc_layers[-1]
        new = nn.Conv2d(old.in_channels, len(names), 1, device=old.weight.device, dtype=old.weight.dtype)
        # He's scaling is for layers before a ReLU: it would make the first losses several times too large.
        initialise(new, self.architecture.init_std or 0.01)
        self.fc_layers[-1] = new
        self.class_names = list(names)

    def forward(self, images: Tensor, stride: Stride = "coarse") -> Tensor:
        """Class scores (logits) of every window, without context.

        Args:
            images: Float or uint8 [N, 3, H, W], RGB in 0..255, at least the window; else ValueError.
            stride: "coarse" or "fine".

        Returns:
            [N, classes, h, w]; output (i, j) sees the window that starts at pixel architecture.stride(stride) * (i, j).
        """
        return self.classifier(self.features(images), stride)

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """See `Net.pixel_std`."""
        std = self.architecture.std
        return std if isinstance(std, tuple) else (std,)

    @property
    def mean_color(self) -> tuple[float, ...]:
        """See `Net.mean_color`."""
        mean = self.architecture.mean
        return mean if isinstance(mean, tuple) else (mean,)

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std, in the dtype of the weights, channels last."""
        mean, std = (v if isinstance(v, tuple) else (v,) for v in (self.architecture.mean, self.architecture.std))
        return ops.normalise(images, mean, std, self.dtype)

    def features(self, images: Tensor, pads: Pads | None = None) -> Tensor:
        """The last maps, before the last pooling: [N, C, h, w].

        Args:
            images: As in `forward`.
            pads: For rows and for columns, the `InputSpan.pads` of a crop of larger images; None: the net's own
                padding.
        """
        if self.in_channels == 1:  # training images are RGB
            images = as_batch(images, 1)
        self._check(images, check_size=pads is None)
        if self.backbone is not None:
            return self.backbone(self._normalised(images))
        return self.run_layers(images, self._steps, pads)

    @overload
    def classifier(self, maps: Tensor, stride: Stride = "coarse") -> Tensor: ...
    @overload
    def classifier(self, maps: Sequence[Tensor], stride: Stride = "coarse") -> list[Tensor]: ...
    def classifier(self, maps: Tensor | Sequence[Tensor], stride: Stride = "coarse") -> Tensor | list[Tensor]:
        """Class scores from the last maps: [N, C, h, w] -> [N, classes, h', w'].

        A list of maps of different sizes gives the list of their scores, in one pass over the weights. Fine stride
        pools at every offset (section 3.3), coarse stride at the first.
        """
        if isinstance(maps, Tensor):
            return self.classifier([maps], stride)[0]
        flat, shapes = self.forward_head_flat(maps, stride)
        split = flat.split([n * height * width for n, height, width in shapes])
        return [s.view(*shape, self.num_classes).permute(0, 3, 1, 2) for s, shape in zip(split, shapes, strict=True)]

    def input_span(self, axis: int, length: int, outputs: slice, stride: Stride) -> InputSpan:
        """The pixels of an axis that these outputs depend on; of all outputs, the whole axis with the net's padding."""
        steps, count = self.architecture.feature_steps, outputs.stop - outputs.start
        if self.architecture.backbone is not None:
            (start, stop), cells = self.architecture.backbone.span(
                length, *self.architecture.maps_span(outputs, stride)
            )
            return InputSpan(start, stop, count, cells=cells)
        if count == self.geometry.num_outputs(axis, length, stride):
            return InputSpan(0, length, count, tuple((step.pad, step.pad) for step in steps))
        span, pads = input_span(steps, length, *self.architecture.maps_span(outputs, stride))
        return InputSpan(*span, count, tuple(pads))

    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> Tensor:
        """The last maps of a tile [n, C, h, w], which equal a crop of the whole images' maps."""
        if self.backbone is not None:
            images = as_batch(crop, self.in_channels)  # training images are RGB
            return self.backbone(self._normalised(images), rows.cells, columns.cells)
        own = tuple((step.pad, step.pad) for step in self.architecture.feature_steps)
        return self.features(crop, None if rows.pads == columns.pads == own else (rows.pads, columns.pads))

    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """Bounds on the bytes of a tile as float32: on the way to its last maps, and from them to the outputs."""
        sides, outputs = (rows.stop - rows.start, columns.stop - columns.start), (rows.outputs, columns.outputs)
        widths = [layer.out_channels for layer in self.fc_layers]
        context = 0 if self.context is None else widths[0]
        head = head_bytes(self.architecture, outputs, stride, max(widths), context)
        return images * feature_bytes(self.architecture, sides), images * head

    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """MACs for one image of (height, width) by region of `regions`, and the number of its windows."""
        return region_macs(self.architecture, *size, self.num_classes, stride)

    def forward_head_flat(
        self, maps: Sequence[Tensor], stride: Stride = "coarse", context: Sequence[ContextFeatures] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """The scores of `classifier` as flat logits [positions, classes], and (N, h', w') of each map.

        context: for a net with context, what the positions of each map see of their surroundings; nothing by default.
        """
        dropout = self.dropout if self.training else 0.0
        return fc_flat(
            self.fc_layers, maps, self.architecture.pool, self.architecture.maps_stride(stride),
            dropout=dropout, context=self._context_logits(context, stride),
        )  # fmt: skip

    def forward_windows(
        self, windows: Tensor, stride: Stride = "coarse", context: Sequence[ContextFeatures] = ()
    ) -> Tensor:
        """Logits [n, classes] of single windows of the pooled maps [n, C, kernel, kernel]; see `gather_windows`.

        stride: That of the context's maps; context: as in `forward_head_flat`.
        """
        dropout = self.dropout if self.training else 0.0
        context_logits = self._context_logits(context, stride)
        logits, _ = fc_flat(self.fc_layers, [windows], 1, 1, dropout=dropout, context=context_logits)
        return logits

    def _context_logits(self, context: Sequence[ContextFeatures], stride: Stride) -> ContextLogits | None:
        """What context adds to the first fully connected layer at every position; None for nothing."""
        if self.context is None or all(c.maps is None for c in context):
            return None
        with region(FIRST_FC):
            coarse = [c.maps for c in context if c.maps is not None]
            seen, shapes = first_fc(self.context, coarse, self.architecture.pool, self.architecture.maps_stride(stride))
        starts = itertools.accumulate((n * h * w for n, h, w in shapes), initial=0)
        shifted = [c.positions if c.maps is None else c.positions + next(starts) for c in context]
        # Positions without context, of images that are too small for it, are -1: the row of zeros at the end.
        logits = seen if len(coarse) == len(context) else F.pad(seen, (0, 0, 0, 1))
        return ContextLogits(logits, torch.cat(shifted))

    def layer_output(self, images: Tensor, number: int) -> Tensor:
        """Output [N, channels, h, w] of one layer at coarse stride, numbered from 0 as in the released program.

        Args:
            images: As in `forward`.
            number: Index into `architecture.layers`; InputError for one that the net does not have.
        """
        layer = BuiltInLayer(self, number)
        self._check(images)
        rows, columns = (
            layer.input_span(axis, side, slice(0, layer.num_outputs(axis, side)))
            for axis, side in enumerate(images.shape[2:])
        )
        output = layer.run(images, rows, columns)
        return F.pad(output, [layer.pad] * 4) if layer.pad else output

    def _normalised(self, images: Tensor) -> Tensor:
        with region("normalise"):
            return self.normalise(images)

    def run_layers(self, x: Tensor, layers: Sequence[Layer], pads: Pads | None = None) -> Tensor:
        """Run feature layers; padding, convolution, ReLU and pooling are one op where all of them are asked for.

        pads: As in `features`.
        """
        pad, step = 0, 0
        for number, layer in enumerate(layers):
            following = layers[number + 1].kind if number + 1 < len(layers) else None
            spec, name = self.architecture.convs[layer.index], f"{layer.kind} {layer.index + 1}"
            if layer.kind == "normalise":
                x = self._normalised(x)
                if (chained := self._chained(x, layers, pads)) is not None:
                    return chained
            elif layer.kind == "pad" and pads is None and following == "conv":
                pad = spec.pad
            elif layer.kind == "pad":
                (top, bottom), (left, right) = [axis[step] for axis in pads] if pads else [(spec.pad, spec.pad)] * 2
                with region(name):
                    x = F.pad(x, (left, right, top, bottom))
            elif layer.kind == "conv":
                conv = self.conv_layers[layer.index]
                with region(name):
                    if [later.kind for later in layers[number + 1 : number + 3]] == ["threshold", "pool"]:
                        x = ops.convolution_pool(x, conv.weight, conv.bias, spec.stride, pad, spec.pool)
                    else:
                        x = ops.convolution(x, conv.weight, conv.bias, spec.stride, pad, relu=following == "threshold")
                pad, step = 0, step + 1
            elif layer.kind == "pool":
                step += 1  # pooled with its convolution
        return x

    def _chained(self, x: Tensor, layers: Sequence[Layer], pads: Pads | None) -> Tensor | None:
        """All feature layers but the normalisation in one call of a backend, if one has it and nothing is padded."""
        specs = self.architecture.convs
        if torch.is_grad_enabled() or layers is not self._steps or any(spec.pad for spec in specs):
            return None
        if pads is not None and any(width for axis in pads for pad in axis for width in pad):
            return None
        last = len(specs) - 1
        chain = [
            ChainedLayer(conv.weight, conv.bias, spec.stride, pool=1 if number == last else spec.pool)
            for number, (conv, spec) in enumerate(zip(self.conv_layers, specs, strict=True))
        ]
        result = run_chain([x], chain)
        if result is None:
            return None
        flat, (shape,) = result
        return flat.view(*shape, -1).permute(0, 3, 1, 2)

    def _check(self, images: Tensor, check_size: bool = True) -> None:
        check_tensor(images)
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be [N, {self.in_channels}, H, W]; these have shape {tuple(images.shape)}")
        window = self.architecture.window
        if check_size and min(images.shape[2:]) < window:
            raise ValueError(
                f"an image of {images.shape[2]}x{images.shape[3]} is smaller than the "
                f"{self.architecture.name} net's window of {window}x{window}; enlarge it first"
            )


def check_architecture(architecture: object) -> None:
    """Raises TypeError for anything but an `Architecture`."""
    if not isinstance(architecture, Architecture):
        raise TypeError(f"architecture must be an Architecture, not {type(architecture).__name__}")


def _check_classes(count: int) -> None:
    if not is_whole(count) or not 1 <= count < 1 << 31:
        raise InputError(f"a net needs at least one class, not {in_one_line(count)}")


def initialise(layer: nn.Conv2d, std: float | None) -> None:
    """Draw new weights from N(0, std), or with He's scaling where std is None; biases are 0.

    Not on the meta device, for which torch would import its compiler, of 100 MiB.
    """
    if layer.weight.is_meta:
        return
    if std is None:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def channels_last(module: Module) -> Module:
    """The module with its weights in channels-last memory format."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
