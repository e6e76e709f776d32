"""Patch classifiers for the densify suite: plain PyTorch modules with random weights that map windows to outputs."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.models.squeezenet import SqueezeNet

CLASSES = 1000
NORMALIZATION = {"mean": 118.0, "std": 62.0}  # of pixels in 0..255


class PatchClassifier(nn.Module):
    """Feature maps of a window, flattened or averaged, then fully connected layers.

    Args:
        heads: layers on the same hidden vector, one output each; none: the output of `classifier`.
        average: average the feature maps over the window instead of flattening them.
    """

    def __init__(
        self, features: Sequence[nn.Module], classifier: Sequence[nn.Module], heads: Sequence[nn.Module] = (),
        average: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)
        self.heads, self.average = nn.ModuleList(heads), average

    def forward(self, windows: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.features(windows)
        hidden = self.classifier((F.adaptive_avg_pool2d(maps, 1) if self.average else maps).flatten(1))
        return tuple(head(hidden) for head in self.heads) if self.heads else hidden


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.convs = nn.Sequential(
            _conv(inputs, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            _conv(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.shortcut.extend([_conv(inputs, channels, 1, stride), nn.BatchNorm2d(channels)])

    def forward(self, maps: Tensor) -> Tensor:
        return (self.convs(maps) + self.shortcut(maps)).relu_()


def _conv(inputs: int, channels: int, kernel: int, stride: int = 1, pad: int = 0) -> nn.Conv2d:
    """A convolution before BatchNorm."""
    return nn.Conv2d(inputs, channels, kernel, stride, pad, bias=False)


def _conv_relu(inputs: int, channels: int, kernel: int = 3, stride: int = 1, pad: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inputs, channels, kernel, stride, pad), nn.ReLU(inplace=True)]


def _fully_connected(*widths: int) -> list[nn.Module]:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return layers[:-1]


def lenet() -> PatchClassifier:
    convs = [*_conv_relu(3, 6, 5), nn.MaxPool2d(2), *_conv_relu(6, 16, 5), nn.MaxPool2d(2)]
    return PatchClassifier(convs, _fully_connected(16 * 5**2, 120, 84, 10))


def vgg_like(pad: int, cells: int) -> PatchClassifier:
    """Three blocks of two 3x3 convolutions and a pooling."""
    layers: list[nn.Module] = []
    for inputs, channels in ((3, 32), (32, 64), (64, 128)):
        layers += [*_conv_relu(inputs, channels, pad=pad), *_conv_relu(channels, channels, pad=pad), nn.MaxPool2d(2)]
    return PatchClassifier(layers, _fully_connected(128 * cells**2, 128, 10))


def alexnet_like() -> PatchClassifier:
    """AlexNet's overlapping 3x3 poolings of stride 2, without padding."""
    convs = [
        *_conv_relu(3, 48, 11, stride=4), nn.MaxPool2d(3, 2), *_conv_relu(48, 96, 5), nn.MaxPool2d(3, 2),
        *_conv_relu(96, 128), nn.MaxPool2d(3, 2),
    ]  # fmt: skip
    return PatchClassifier(convs, _fully_connected(128 * 2**2, 256, 10))


def vgg16() -> PatchClassifier:
    layers, inputs = [], 3
    for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += _conv_relu(inputs, channels, pad=1)
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    return PatchClassifier(layers, _fully_connected(512 * 7**2, 4096, 4096, CLASSES))


def resnet18() -> PatchClassifier:
    stem = [_conv(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [BasicBlock(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    return PatchClassifier([*stem, *blocks], _fully_connected(512, CLASSES), average=True)


def squeezenet() -> PatchClassifier:
    net = SqueezeNet()
    first, second, third = [net.conv1, nn.ReLU(), net.pool1], [net.fire2, net.fire3, net.pool3], [net.fire4, net.fire5]
    last = [net.pool5, net.fire6, net.fire7, net.fire8, net.fire9, net.conv10, nn.ReLU()]
    return PatchClassifier([*first, *second, *third, *last], [], average=True)


def r_net() -> PatchClassifier:
    """MTCNN's second net, with poolings in ceil mode: scores of two classes, and a box."""
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    features = [
        nn.Conv2d(3, 28, 3), nn.PReLU(28), pool(), nn.Conv2d(28, 48, 3), nn.PReLU(48), pool(),
        nn.Conv2d(48, 64, 2), nn.PReLU(64),
    ]  # fmt: skip
    return PatchClassifier(features, [nn.Linear(64 * 3**2, 128), nn.PReLU(128)], [nn.Linear(128, 2), nn.Linear(128, 4)])


def o_net() -> PatchClassifier:
    """MTCNN's third net without its landmarks."""
    pool = partial(nn.MaxPool2d, ceil_mode=True)
    features = [
        nn.Conv2d(3, 32, 3), nn.PReLU(32), pool(3, 2), nn.Conv2d(32, 64, 3), nn.PReLU(64), pool(3, 2),
        nn.Conv2d(64, 64, 3), nn.PReLU(64), pool(2, 2), nn.Conv2d(64, 128, 2), nn.PReLU(128),
    ]  # fmt: skip
    return PatchClassifier(
        features, [nn.Linear(128 * 3**2, 256), nn.PReLU(256)], [nn.Linear(256, 2), nn.Linear(256, 4)]
    )


@dataclass(frozen=True)
class PatchNet:
    """A patch classifier of the suite.

    Args:
        cells: of a window's feature maps, along an axis.
        unit: product of the strides up to the feature maps.
        sides: side of the square image at each stride, a whole number of strides more than the window.
        crops: windows along an axis that the baselines crop, so that they take seconds; their time is scaled to all.
        padded: whether cells depend on a window's border: zero padding, or a pooling in ceil mode.
        quick: {stride: side} of a quick run.
        runtimes: whether ONNX Runtime and OpenVINO run it as well.
    """

    name: str
    make: Callable[[], PatchClassifier]
    window: int
    cells: int
    unit: int
    sides: dict[int, int]
    crops: int
    padded: bool = False
    quick: dict[int, int] = field(default_factory=dict)
    runtimes: bool = False

    def module(self) -> PatchClassifier:
        """In eval mode, with random weights that keep the scale of the activations; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.make().eval()
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                elif isinstance(layer, nn.BatchNorm2d):
                    nn.init.normal_(layer.running_mean, std=0.1)
                    nn.init.uniform_(layer.running_var, 0.8, 1.2)
        return module.requires_grad_(False)


PATCH_NETS = (
    PatchNet("LeNet-like", lenet, 32, 5, 4, {1: 256, 8: 1024}, 128, quick={1: 64}),
    PatchNet("VGG-like, no padding", partial(vgg_like, 0, 5), 68, 5, 8, {1: 256, 8: 516, 32: 1028}, 32),
    PatchNet("AlexNet-like, 3/2 pools", alexnet_like, 163, 2, 32, {1: 352, 8: 515, 32: 1155}, 40, quick={8: 227}),
    PatchNet("VGG-like, padded", partial(vgg_like, 1, 12), 96, 12, 8, {1: 160, 8: 256, 32: 480}, 20, padded=True,
             quick={8: 128}),
    PatchNet("VGG-16", vgg16, 224, 7, 32, {8: 256, 32: 512}, 4, padded=True),
    PatchNet("ResNet-18", resnet18, 224, 7, 32, {8: 304, 32: 512}, 8, padded=True, runtimes=True),
    PatchNet("SqueezeNet 1.1", squeezenet, 227, 13, 16, {8: 331, 32: 611}, 12, padded=True, runtimes=True),
    PatchNet("R-Net", r_net, 24, 3, 4, {1: 128, 8: 512}, 64, padded=True, quick={1: 48}),
    PatchNet("O-Net", o_net, 48, 3, 8, {1: 128, 8: 384}, 40, padded=True),
)  # fmt: skip
