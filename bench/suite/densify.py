"""The densify suite: patch classifiers at every window, by cropping, by sharing work, and by `overfeat.densify`."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.suite.baselines import cropped_windows, monai_patches
from bench.suite.fragments import fragments, fully_convolutional
from bench.suite.machine import IMAGE, Machine, baseline
from bench.suite.names import EAGER, EXACT, FRAGMENTS, MONAI, NAIVE, NAIVE_LAST, NEIGHBOURS, OURS
from bench.suite.patch_nets import NORMALIZATION, PATCH_NETS, PatchClassifier, PatchNet
from bench.suite.runner import Case, Implementation
from bench.suite.runtimes import BATCH_SIZE, IMAGE_SIZE, Exported
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.net import Net
from overfeat.models.overfeat import OverFeat

BATCH_PIXELS = 2**17  # of a batch of crops: larger ones leave the caches and take longer


@dataclass(eq=False)
class Converted:
    """A patch classifier and its conversions, made when first used."""

    net: PatchNet
    device: torch.device

    @cached_property
    def module(self) -> PatchClassifier:
        """In PyTorch's default memory format."""
        return self.net.module().to(self.device)

    @cached_property
    def channels_last(self) -> PatchClassifier:
        """With the same weights."""
        return copy.deepcopy(self.module).to(memory_format=torch.channels_last)

    @cached_property
    def exported(self) -> Exported:
        """For other runtimes: normalised windows, any number of them -> outputs."""
        return Exported(lambda: self.module, lambda: [torch.zeros(2, 3, *2 * (self.net.window,))], [BATCH_SIZE])

    @cached_property
    def exact(self) -> Net:
        from overfeat.densify.convert import densify

        return densify(self.module, self.net.window, **NORMALIZATION, check=False)

    @cached_property
    def neighbours(self) -> Net:
        return self.exact.with_borders(NEIGHBOURS)


@dataclass(eq=False)
class EveryWindow:
    """All windows of a square image at a stride. Every function gives the outputs of the last `block` of them.

    Args:
        pixels: gives [1, 3, side, side] in 0..255.
    """

    converted: Converted
    stride: int
    side: int
    pixels: Callable[[], Tensor]

    @property
    def net(self) -> PatchNet:
        return self.converted.net

    @property
    def count(self) -> int:
        """Windows along an axis."""
        return (self.side - self.net.window) // self.stride + 1

    @property
    def block(self) -> int:
        """Windows along an axis that are cropped, and whose outputs are compared."""
        return min(self.count, self.net.crops)

    @property
    def portion(self) -> float:
        return (self.block / self.count) ** 2

    @property
    def image(self) -> Tensor:
        """Normalised, channels-last."""
        pixels = self.pixels().to(torch.float32, memory_format=torch.channels_last)
        return (pixels - NORMALIZATION["mean"]) / NORMALIZATION["std"]

    @property
    def corner(self) -> Tensor:
        """The part of the image that has the last `block` windows."""
        skipped = (self.count - self.block) * self.stride
        return self.image[:, :, skipped:, skipped:]

    @property
    def batch(self) -> int:
        """Of cropped windows."""
        return max(8, BATCH_PIXELS // self.net.window**2)

    def by_cropping(self, crop: Callable[..., Tensor], memory_format: torch.memory_format) -> Tensor:
        """`crop`: `cropped_windows` or `monai_patches`."""
        last = memory_format == torch.channels_last
        module = self.converted.channels_last if last else self.converted.module

        def evaluate(crops: Tensor) -> Tensor:
            return outputs(module, crops.contiguous(memory_format=memory_format))

        return crop(evaluate, self.corner, self.net.window, self.stride, self.batch)

    def cropped_for(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run`: the exported classifier in another runtime."""
        return cropped_windows(run, self.corner, self.net.window, self.stride, self.batch)

    def by_fragments(self) -> Tensor:
        return self._last(fragments(self.converted.channels_last, self.image, self.net.window, self.stride))

    def by_convolution(self) -> Tensor:
        units = self.stride // self.net.unit
        return self._last(fully_convolutional(self.converted.channels_last, self.image, self.net.cells, units))

    def convolved_by(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run`: `convolutions` in another runtime."""
        return self._last(run(self.pixels()))

    @cached_property
    def convolutions(self) -> Exported:
        """For other runtimes: `by_convolution` of an image in 0..255, with its normalisation."""
        return Exported(lambda: _Convolutions(self), lambda: [self.pixels()], [IMAGE_SIZE])

    def densified(self, borders: str) -> Tensor:
        return self._last(outputs(getattr(self.converted, borders), self.pixels(), self.stride))

    def _last(self, scores: Tensor) -> Tensor:
        return scores[:, :, -self.block :, -self.block :]

    # Floating-point operations for all windows

    def cropping_flop(self) -> float:
        window = torch.empty(1, 3, self.net.window, self.net.window, device="meta")
        return self.count**2 * _counted(self._on_meta, window)

    def fragments_flop(self) -> float:
        run = partial(fragments, self._on_meta, window=self.net.window, stride=self.stride)
        return _counted(run, self.image.to("meta"))

    def convolution_flop(self) -> float:
        run = partial(fully_convolutional, self._on_meta, cells=self.net.cells, stride=self.stride // self.net.unit)
        return _counted(run, self.image.to("meta"))

    def densified_flop(self, borders: str) -> float:
        macs, windows = getattr(self.converted, borders).region_macs((self.side, self.side), self.stride)
        assert windows == self.count**2
        return 2.0 * sum(macs.values())

    @cached_property
    def _on_meta(self) -> PatchClassifier:
        with torch.device("meta"):
            return self.net.make().eval()


class _Convolutions(nn.Module):
    """A patch classifier as convolutions over images [N, 3, H, W] in 0..255."""

    def __init__(self, windows: EveryWindow):
        super().__init__()
        self.classifier, self.cells = windows.converted.module, windows.net.cells
        self.units = windows.stride // windows.net.unit

    def forward(self, pixels: Tensor) -> Tensor:
        image = (pixels - NORMALIZATION["mean"]) / NORMALIZATION["std"]
        return fully_convolutional(self.classifier, image, self.cells, self.units)


def outputs(net: nn.Module, *arguments: object) -> Tensor:
    """The outputs of a net, several concatenated along the channels."""
    result = net(*arguments)
    return result if isinstance(result, Tensor) else torch.cat(result, dim=1)


@torch.no_grad()
def _counted(run: Callable[[Tensor], object], image: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        run(image)
    return counter.get_total_flops()


def densify(machine: Machine) -> Iterator[Case]:
    """Patch classifiers at every window, and built-in nets natively and converted."""
    for net in PATCH_NETS:
        converted = Converted(net, machine.device)
        for stride, side in (net.quick if machine.quick else net.sides).items():
            yield _every_window(machine, EveryWindow(converted, stride, side, partial(machine.pixels, 1, side, side)))
    yield _built_in(machine, "small", EXACT, partial(machine.pixels, 1, *IMAGE))
    if not machine.quick:
        yield _built_in(machine, "accurate", NEIGHBOURS, partial(machine.scaled, 3))


def _every_window(machine: Machine, windows: EveryWindow) -> Case:
    """A patch classifier on one image at one stride."""
    net, stride = windows.net, windows.stride
    sampled = {
        "cold": True, "portion": windows.portion, "flop": windows.cropping_flop,
        "remark": "" if windows.block == windows.count else f"{windows.block**2} windows, time scaled to all",
    }  # fmt: skip
    contiguous = torch.contiguous_format
    implementations = {
        NAIVE: baseline(partial(windows.by_cropping, cropped_windows, contiguous), **sampled),
        NAIVE_LAST: baseline(partial(windows.by_cropping, cropped_windows, torch.channels_last), **sampled),
    }
    if stride <= net.window and machine.has("monai.inferers", MONAI):
        implementations[MONAI] = baseline(partial(windows.by_cropping, monai_patches, contiguous), **sampled)
    if not net.padded:
        implementations[FRAGMENTS] = baseline(windows.by_fragments, flop=windows.fragments_flop)
    differ = "padding sees the window's neighbours: scores differ by design" if net.padded else ""
    convolves = stride % net.unit == 0
    if convolves:
        implementations[EAGER] = baseline(
            windows.by_convolution, flop=windows.convolution_flop, remark=differ, compare_with="" if differ else None
        )
    if net.runtimes and not machine.quick:
        implementations |= _runtimes(machine, windows, sampled["remark"], differ if convolves else None)
    for borders in (EXACT, NEIGHBOURS) if net.padded else (EXACT,):
        ours = machine.ours(partial(windows.densified, borders))
        for name, implementation in ours.items():
            more: dict = {"flop": partial(windows.densified_flop, borders)}
            if borders == NEIGHBOURS:
                other = EAGER if convolves else "" if name == OURS else f"{OURS}-{borders}"
                more |= {"compare_with": other, "remark": differ}
            implementations[f"{name}-{borders}"] = replace(implementation, **more)
    shape = f"{windows.side}x{windows.side}, stride {stride}, {windows.count**2} windows of {net.window}"
    return Case("densify", net.name, shape, NAIVE, implementations, windows.pixels)


def _runtimes(machine: Machine, windows: EveryWindow, sampled: str, differ: str | None) -> dict[str, Implementation]:
    """Other runtimes: cropped windows, which give the exact scores; the net as convolutions, which sees neighbours.

    differ: the remark of the second, None for a stride that it does not have.
    """
    remark = f"cropped windows: {sampled}" if sampled else "cropped windows"
    implementations = machine.runtimes(
        windows.converted.exported, windows.cropped_for, suffix=f"-{EXACT}",
        portion=windows.portion, flop=windows.cropping_flop, remark=remark,
    )  # fmt: skip
    if differ is not None:
        implementations |= machine.runtimes(
            windows.convolutions, windows.convolved_by, suffix=f"-{NEIGHBOURS}",
            flop=windows.convolution_flop, remark=differ, compare_with=EAGER,
        )  # fmt: skip
    return implementations


def _built_in(machine: Machine, name: str, borders: str, image: Callable[[], Tensor]) -> Case:
    """A built-in net natively, and its layers as a module that is converted, at fine stride."""
    architecture = ARCHITECTURES[name]

    @functools.cache
    def converted() -> Net:
        from overfeat.densify.convert import densify

        net = machine.net(name, torch.float32)
        scaling = {"mean": architecture.mean, "std": architecture.std}
        return densify(as_module(net), architecture.window, **scaling, borders=borders, check=False)

    def flop(net: Callable[[], Net]) -> float:
        return 2.0 * sum(net().region_macs(image().shape[2:], architecture.fine_stride)[0].values())

    native = partial(machine.net, name, torch.float32)
    implementations = {}
    for suffix, net in (("", native), (f"-{borders}", converted)):
        run = partial(_at_fine_stride, net, image, architecture.fine_stride)
        for backend, implementation in machine.ours(run).items():
            implementations[backend + suffix] = replace(implementation, flop=partial(flop, net))
    return Case("densify", f"{name} net", "fine stride", OURS, implementations, native)


def _at_fine_stride(net: Callable[[], Net], image: Callable[[], Tensor], stride: int) -> Tensor:
    return net()(image(), stride)


def as_module(net: OverFeat) -> nn.Sequential:
    """The layers of a built-in net as a module on windows, with the same weights."""
    layers: list[nn.Module] = []
    inputs = 3
    for conv, spec in zip(net.conv_layers, net.architecture.convs, strict=True):
        with torch.device("meta"):
            layer = nn.Conv2d(inputs, spec.channels, spec.kernel, spec.stride, spec.pad)
        layer.weight, layer.bias, inputs = conv.weight, conv.bias, spec.channels
        layers += [layer, nn.ReLU()] + [nn.MaxPool2d(spec.pool)] * (spec.pool > 1)
    layers.append(nn.Flatten())
    for full in net.fc_layers:
        flat = full.weight.detach().flatten(1)
        with torch.device("meta"):
            layer = nn.Linear(flat.shape[1], len(flat))
        layer.weight, layer.bias = nn.Parameter(flat), full.bias
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()
