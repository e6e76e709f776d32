"""`Net`: what dense evaluation needs of a network. Built-in (`OverFeat`) and converted nets are nets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overfeat.errors import check_fraction
from overfeat.models.geometry import Geometry, Size, Stride
from overfeat.models.thresholds import DetectionThresholds

Shape = tuple[int, int, int]  # (N, rows, columns) of a map of outputs
RGB_TO_GREY = (19595, 38470, 7471)  # ITU-R 601's weights, in 1/65536, as PIL's


@dataclass(frozen=True)
class InputSpan:
    """The pixels start:stop of one axis that some consecutive outputs depend on.

    Attributes:
        outputs: How many outputs.
        pads: For built-in nets: the (before, after) padding of every feature step.
        cells: For nets on a backbone: (start, stop) of the cells of the span's maps that the outputs depend on.
        offset: For converted nets: pixels of the span before the first output's window, its real neighbours.
    """

    start: int
    stop: int
    outputs: int
    pads: tuple[tuple[int, int], ...] = ()
    cells: tuple[int, int] | None = None
    offset: int = 0


class Net(nn.Module, ABC):
    """A network that gives the same outputs for every window of an image.

    Attributes:
        class_names: One for each output.
        in_channels: Of the images: 3 (RGB), 1 (grey; RGB images are converted) or any other number.
        activation: What turns outputs into probabilities; "none" where they are probabilities already.
        flip: Whether mirror images are part of evaluation by default.
        background: Whether the last class is the background (section 5).
        scale_factors: The scales that the net was trained for, as factors of an image's own size; None: the six scales.
        thresholds: Of a detector, chosen on validation images; None: the defaults of `detect`.
        default_stride: The stride of an evaluation that names none.
        reach: How far windows reach beyond an image's border, over its mean colour: a fraction of the window, 0..1.
        geometry: Window, strides and scales.
        context: None, or the part of a built-in net that sees `ContextFeatures`.
    """

    class_names: list[str]
    in_channels: int = 3
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    flip: bool = False
    background: bool = False
    scale_factors: tuple[float, ...] | None = None
    thresholds: DetectionThresholds | None = None
    default_stride: Stride = "fine"
    reach: float = 0.0
    geometry: Geometry
    context: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.context = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """The divisors of the pixels, of all channels or of each."""
        return (1.0,)

    @property
    def mean_color(self) -> tuple[float, ...]:
        """The colour beyond an image's border, in 0..255, of all channels or of each."""
        return (0.0,)

    @property
    def margin(self) -> Size:
        """Pixels (rows, columns) that windows reach beyond each side of a scaled image: `reach` in fine strides.

        Raises ArgumentError for a reach that is not in 0..1.
        """
        check_fraction("reach", self.reach)
        return self.geometry.margin(self.reach)

    @property
    def num_classes(self) -> int:
        """Number of classes, with the background."""
        return len(self.class_names)

    @property
    def num_foreground_classes(self) -> int:
        """Number of classes that have boxes: all but the background."""
        return self.num_classes - 1 if self.background else self.num_classes

    # Tiles: `dense.evaluate` crops `input_span` of both axes out of the images at one scale, mirrors the crop where the
    # mirror image is evaluated, gets its features, and the scores of several tiles in one call of the head.

    @abstractmethod
    def input_span(self, axis: int, length: int, outputs: slice, stride: Stride) -> InputSpan:
        """The pixels of an axis (0: rows, 1: columns) of `length` pixels that these outputs depend on."""

    def image_spans(self, size: Size, stride: Stride) -> tuple[InputSpan, InputSpan]:
        """The `input_span` of all outputs of an image of (height, width), for rows and for columns."""
        rows, columns = (
            self.input_span(axis, side, slice(0, self.geometry.num_outputs(axis, side, stride)), stride)
            for axis, side in enumerate(size)
        )
        return rows, columns

    @abstractmethod
    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> Any:
        """What the head needs of a tile.

        Args:
            crop: [n, C, h, w] in 0..255, these spans of the images.
        """

    @abstractmethod
    def forward_head_flat(
        self, features: Sequence[Any], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """Flat outputs [positions, classes] of the tiles with these features, and (n, rows, columns) of each tile."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Scores in 0..1 from outputs [N, classes, ...], float32, by `activation`."""
        outputs = outputs.float()
        if self.activation == "softmax":
            return outputs.softmax(dim=1)
        return outputs.sigmoid() if self.activation == "sigmoid" else outputs

    def class_maps(self, images: Tensor) -> Tensor:
        """Outputs [N, classes, h, w] at coarse stride of images [N, C, H, W] in 0..255, at least the window."""
        stride: Stride = "coarse"
        rows, columns = self.image_spans((images.shape[2], images.shape[3]), stride)
        flat, (shape,) = self.forward_head_flat([self.tile_features(images, rows, columns, stride)], stride)
        return flat.view(*shape, -1).permute(0, 3, 1, 2)

    @abstractmethod
    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """Bytes that a tile of so many images needs at most: for its features; for its head with features and outputs.

        Both are proportional to the number of images.
        """

    def tile_bytes_bound(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """As much as `tile_bytes` or more, for nets that have a quicker way to a bound."""
        return self.tile_bytes(images, rows, columns, stride)

    @abstractmethod
    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """MACs for one image of (height, width) by region of `regions`, and the number of its windows."""


class Regressor(nn.Module, ABC):
    """Predicts boxes from the features of a net's tiles (section 4.2).

    Attributes:
        num_classes: One box for each class, or None for one in all.
        box_coder: How a box is written, "xyxy" or "cxcywh"; see `ops.boxes.encode`.
    """

    num_classes: int | None
    box_coder: str

    @property
    def box_channels(self) -> int:
        """Numbers per position."""
        return 4 * (self.num_classes or 1)

    @abstractmethod
    def check_made_for(self, net: Net) -> None:
        """Raises InputError where it was made for another net."""

    @abstractmethod
    def forward_flat(
        self, features: Sequence[Any], stride: Stride = "fine", positions: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Shape]]:
        """Boxes in their windows' frames, from the features of tiles.

        Args:
            positions: Which positions of each tile, of its n * rows * columns; int64 [k] each. None: all.

        Returns:
            [positions, num_classes or 1, 4], and (n, rows, columns) of each tile.
        """


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no dropout. Afterwards every submodule has its own mode again."""
    training = {submodule: submodule.training for module in modules for submodule in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for submodule, mode in training.items():
            submodule.training = mode


def check_tensor(images: object) -> None:
    """Raises TypeError for anything but a tensor: nets themselves take nothing else."""
    if not isinstance(images, Tensor):
        remedy = "overfeat.data.arrays.as_tensor makes one of a path, a PIL image or a NumPy array"
        raise TypeError(f"images must be a tensor, not {type(images).__name__}; {remedy}")


def as_batch(images: Tensor, channels: int | None = 3) -> Tensor:
    """Images [N, C, H, W], or one [C, H, W], as a batch for a net of `channels`; ValueError for other shapes.

    Grey images become RGB by repetition, RGB images grey by ITU-R 601's weights, where the net has 3 channels or 1.
    channels: None: any number of them.
    """
    check_tensor(images)
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        problem = f"images must be a tensor of uint8 or floating point in 0..255, not {images.dtype}"
        raise ValueError(f"{problem}; convert it by .float()")
    batch = images[None] if images.dim() == 3 else images
    actual = batch.shape[1] if batch.dim() == 4 and 0 not in batch.shape[2:] else None
    if actual is not None and channels in (None, actual):
        return batch
    if (actual, channels) == (1, 3):
        return batch.expand(-1, 3, -1, -1)
    if (actual, channels) == (3, 1):
        return _grey(batch)
    count = "C" if channels is None else channels
    expected = f"[N, {count}, H, W] or [{count}, H, W]"
    last = images.dim() == 3 and images.shape[2] in (1, 3, channels)
    remedy = "; images.permute(2, 0, 1) has the channels first" if last else ""
    if (actual, channels) == (4, 3):
        remedy = "; PIL.Image.fromarray(array) is read as RGBA, images[:, :3] leaves the transparency out"
    raise ValueError(f"images must be {expected}; these have shape {tuple(images.shape)}{remedy}")


def _grey(images: Tensor) -> Tensor:
    """RGB images [N, 3, H, W] as [N, 1, H, W]; uint8 stays uint8."""
    dtype = torch.int32 if images.dtype == torch.uint8 else torch.promote_types(images.dtype, torch.float32)
    red, green, blue = (images[:, i : i + 1].to(dtype) * weight for i, weight in enumerate(RGB_TO_GREY))
    total = red + green + blue
    total = (total + (1 << 15)) >> 16 if images.dtype == torch.uint8 else total / (1 << 16)
    return total.to(images.dtype)
