"""The networks: `OverFeat` is the one module that runs any `Architecture`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import ops, regions
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, Architecture, Layer, Stride
from overfeat.ops import layout


def build(architecture: str | Architecture, classes: int = 1000) -> "OverFeat":
    """A new network with freshly initialised weights.

    architecture: "fast", "accurate", "small", or an `Architecture`. Raises InputError for an
    unknown name.
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise InputError(f"no net is called {architecture!r}; there are {', '.join(ARCHITECTURES)}")
        architecture = ARCHITECTURES[architecture]
    return OverFeat(architecture, classes)


@dataclass(frozen=True)
class ContextFeatures:
    """What the places of one map see of their surroundings: twice as far, at half the resolution.

    maps: the last maps there, [N, C, h, w], or None where the image is too small. places: int64, for
    every place of the map, line by line, the place of `maps` whose window has nearly the same
    centre; -1 for none.
    """

    maps: Tensor | None
    places: Tensor


class OverFeat(nn.Module):
    """A network that gives one output for every window of an image (sections 3.1, 3.3 and 3.5).

    Attributes: architecture; class_names, one per output; flip, whether mirror images were part
    of training, so whether voting should use them; dropout, applied to the hidden full layers;
    background, whether the last class is none of the others (section 5); scale_factors, the sizes that the
    net was trained for, as factors of an image's own, or None for the six scales; context, None or
    the part of the first full layer that sees each place at half the resolution (`ContextFeatures`).
    """

    def __init__(self, architecture: Architecture, classes: int = 1000, context: bool = False):
        super().__init__()
        _check_classes(classes)
        self.architecture = architecture
        self.class_names = [f"class {i}" for i in range(classes)]
        self.flip = True
        self.background = False
        self.scale_factors: tuple[float, ...] | None = None
        self.dropout = 0.5
        channels = 3
        self.conv_layers = nn.ModuleList()
        for conv in architecture.convs:
            self.conv_layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.pad))
            channels = conv.channels
        self.fc_layers = nn.ModuleList()
        for i, width in enumerate((*architecture.hidden, classes)):
            self.fc_layers.append(nn.Conv2d(channels, width, architecture.kernel if i == 0 else 1))
            channels = width
        self.context = self._context_layer() if context else None
        self.to(memory_format=torch.channels_last)
        self.init_weights()

    def add_context(self) -> None:
        """Let every place see its surroundings too; what it sees counts nothing until it is trained."""
        self.context = self._context_layer().to(self.fc_layers[0].weight, memory_format=torch.channels_last)
        nn.init.zeros_(self.context.weight)

    def _context_layer(self) -> nn.Conv2d:
        first = self.fc_layers[0]
        return nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv_layers[0].weight.device

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.fc_layers[-1].out_channels

    @property
    def num_foreground_classes(self) -> int:
        """Number of classes that have boxes: all but the background."""
        return self.num_classes - 1 if self.background else self.num_classes

    def init_weights(self, std: float | None = 0.01) -> None:
        """New weights: N(0, std) as in section 3.1, or He's scaling where std is None; biases 0."""
        for layer in (*self.conv_layers, *self.fc_layers, *([self.context] if self.context else [])):
            initialise(layer, std)

    def reset_classifier(self, names: Sequence[str], std: float | None = 0.01) -> None:
        """A new last layer for other classes; every other weight stays."""
        _check_classes(len(names))
        old = self.fc_layers[-1]
        new = nn.Conv2d(old.in_channels, len(names), 1, device=old.weight.device, dtype=old.weight.dtype)
        initialise(new, std)
        self.fc_layers[-1] = new
        self.class_names = list(names)

    def forward(self, images: Tensor, stride: Stride = "coarse") -> Tensor:
        """Class scores (logits) of every window.

        images: float or uint8 [N, 3, H, W], RGB in 0..255, at least the window. Gives
        [N, classes, h, w]; output (i, j) sees the window that starts at pixel s*(i, j), with
        s = architecture.stride(stride). Without context, if the net has any. Raises ValueError for other shapes.
        """
        return self.classifier(self.features(images), stride)

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std, in the dtype of the weights, channels last."""
        dtype = self.conv_layers[0].weight.dtype
        # In at least float32: bfloat16 would round the pixels before the mean is taken off.
        images = images.to(torch.promote_types(dtype, torch.float32), memory_format=torch.channels_last)
        return ((images - self.architecture.mean) / self.architecture.std).to(dtype)

    def features(self, images: Tensor, pads: Sequence[Sequence[tuple[int, int]]] | None = None) -> Tensor:
        """The last maps, before the last pooling: [N, C, h, w].

        pads: for rows and for columns, the (low, high) padding of every feature step, from
        geometry.input_span, where `images` is a part of a larger image; by default the net's own.
        """
        self._check(images, whole=pads is None)
        maps = regions.run("normalise", self.normalise, images)
        step = 0
        for number, (conv, spec) in enumerate(zip(self.conv_layers, self.architecture.convs, strict=True), 1):
            pad = spec.pad
            if pads is not None:
                (top, bottom), (left, right) = pads[0][step], pads[1][step]
                maps, pad = regions.run(f"pad {number}", F.pad, maps, (left, right, top, bottom)), 0
            maps = regions.run(f"conv {number}", ops.convolution, maps, conv.weight, conv.bias, spec.stride, pad)
            step += 1
            if spec.pool > 1 and conv is not self.conv_layers[-1]:
                maps = regions.run(f"pool {number}", F.max_pool2d, maps, spec.pool)
                step += 1
        return maps

    def classifier(self, maps: Tensor | Sequence[Tensor], stride: Stride = "coarse"):
        """Class scores from the last maps: [N, C, h, w] -> [N, classes, h', w'].

        A list of maps of different sizes gives the list of their scores, in one pass over the
        weights. Fine stride pools at every offset (section 3.3), coarse stride at the first.
        """
        if isinstance(maps, Tensor):
            return self.classifier([maps], stride)[0]
        rows, shapes = self.forward_head_flat(maps, stride)
        parts = rows.split([n * height * width for n, height, width in shapes])
        return [p.view(*shape, self.num_classes).permute(0, 3, 1, 2) for p, shape in zip(parts, shapes, strict=True)]

    def forward_head_flat(
        self, maps: Sequence[Tensor], stride: Stride = "coarse", around: Sequence["ContextFeatures"] = ()
    ) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """The same scores as one matrix [places, classes], and (N, h', w') of each map.

        around: for a net with context what its places see of their surroundings, one for each map;
        without it they see none.
        """
        dropout, pool = self.dropout if self.training else 0.0, self.architecture.pool
        extra = None
        if self.context is not None and any(a.maps is not None for a in around):
            maps_around = [a.maps for a in around if a.maps is not None]
            seen, shapes = regions.run(regions.FULL[0], first_fc, self.context, maps_around, pool, stride)
            counts = iter(n * height * width for n, height, width in shapes)
            places, start = [], 0
            for a in around:
                places.append(torch.where(a.places < 0, len(seen), a.places + start))
                start += next(counts) if a.maps is not None else 0
            extra = F.pad(seen, (0, 0, 0, 1))[torch.cat(places)]
        return forward_fc_flat(self.fc_layers, maps, pool, stride, dropout, regions.FULL, extra)

    def layer_output(self, images: Tensor, number: int) -> Tensor:
        """Output of one layer as the released program numbers them (architecture.layers), from 0.

        images as in `forward`; gives [N, channels, h, w], at coarse stride.
        """
        layers = self.architecture.layers
        if not 0 <= number < len(layers):
            raise InputError(
                f"the {self.architecture.name} net has layers 0..{len(layers) - 1}, not {number}; "
                f"its features are layer {self.architecture.feature_layer}"
            )
        self._check(images)
        for layer in layers[: number + 1]:
            images = self._run(layer, images)
        return images

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.kind == "normalise":
            return self.normalise(x)
        if layer.kind == "threshold":
            return x.relu_()  # the convolution's output, which nobody else holds
        if layer.kind == "full":
            full = self.fc_layers[layer.index]
            return ops.skip_classifier(x, full.weight, full.bias, size=1, relu=False)
        spec = self.architecture.convs[layer.index]
        if layer.kind == "pad":
            return F.pad(x, (spec.pad,) * 4)
        if layer.kind == "pool":
            return F.max_pool2d(x, spec.pool)
        conv = self.conv_layers[layer.index]
        return F.conv2d(x, conv.weight, conv.bias, conv.stride)

    def _check(self, images: Tensor, whole: bool = True) -> None:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [N, 3, H, W]; these have shape {tuple(images.shape)}")
        window = self.architecture.window
        if whole and min(images.shape[2:]) < window:
            raise ValueError(
                f"an image of {images.shape[2]}x{images.shape[3]} is smaller than the "
                f"{self.architecture.name} net's window of {window}x{window}; enlarge it first"
            )


def forward_fc_flat(
    layers: Sequence[nn.Conv2d],
    maps: Sequence[Tensor],
    size: int,
    stride: Stride,
    dropout: float,
    names: tuple[str, str],
    extra: Tensor | None = None,
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Full layers over unpooled maps: one matrix [places, outputs], and (N, h', w') of each map.

    size: of the pooling before them, at every offset or, at coarse stride, at the first. A ReLU and
    dropout follow all layers but the last. names: of the first layer and of the others, as stages. extra:
    [places, hidden], added before the first ReLU.
    """
    relu = len(layers) > 1
    x, shapes = regions.run(names[0], first_fc, layers[0], maps, size, stride, relu and extra is None)
    if extra is not None:
        x = x + extra
        x = x.relu_() if relu else x
    return regions.run(names[1], remaining_fc, layers, x, dropout), shapes


def remaining_fc(layers: Sequence[nn.Conv2d], x: Tensor, dropout: float) -> Tensor:
    """The full layers after the first, whose output is x [places, channels]."""
    for layer in layers[1:]:
        x = F.dropout(x, dropout, training=dropout > 0)
        x = ops.linear(x, layer.weight, layer.bias, relu=layer is not layers[-1])
    return x


def first_fc(
    layer: nn.Conv2d, maps: Sequence[Tensor], size: int, stride: Stride, relu: bool = False
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """`forward_fc_flat` of the first full layer. From here on every place is on its own, a row of one matrix."""
    need = size * layer.kernel_size[0]
    for m in maps:
        if min(m.shape[2:]) < need:
            raise ValueError(f"maps of {m.shape[2]}x{m.shape[3]} are smaller than a window's {need}x{need}")
    if stride == "coarse":
        maps, size = [F.max_pool2d(m, size) for m in maps], 1
    elif stride != "fine":
        raise ValueError(f"stride is 'coarse' or 'fine', not {stride!r}")
    rows = ops.skip_classifier_flat(maps, layer.weight, layer.bias, size, relu=relu)
    return rows, layout.output_shapes(maps, layer.kernel_size[0], size)


def _check_classes(count: int) -> None:
    if count < 1:
        raise InputError(f"a net needs at least one class, not {count}")


def initialise(layer: nn.Conv2d, std: float | None) -> None:
    """New weights: N(0, std), or He's scaling where std is None; biases 0."""
    if std is None:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no dropout."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)


def as_batch(images: Tensor) -> Tensor:
    """[3, H, W] as a batch of one; checks the shape of either."""
    if not isinstance(images, Tensor) or not (images.is_floating_point() or images.dtype == torch.uint8):
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of uint8 or floating point in 0..255, not {what}")
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must be [N, 3, H, W] or [3, H, W]; these have shape {tuple(images.shape)}")
    return images
