"""Small random nets from all operators: chains with branches, shared layers, views and in-place operators."""

import random

import torch
import torch.nn.functional as F
from cropping import Apply, randomise
from torch import Tensor, nn

CLASSES = 2


class Residual(nn.Module):
    """The input, cropped or strided like the branch's output, plus the branch."""

    def __init__(self, branch, skip):
        super().__init__()
        self.branch, self.skip = branch, skip

    def forward(self, x):
        skip, branch = self.skip(x), self.branch(x)
        down, across = (a - b for a, b in zip(skip.shape[2:], branch.shape[2:], strict=True))
        top, left = down // 2, across // 2
        return branch + skip[:, :, top : top + branch.shape[2], left : left + branch.shape[3]]


class Concat(nn.Module):
    """The branches' outputs, cut to the smallest of them, beside each other."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        maps = [branch(x) for branch in self.branches]
        height, width = (min(m.shape[axis] for m in maps) for axis in (2, 3))
        return torch.cat([m[:, :, :height, :width] for m in maps], dim=1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.conv(F.adaptive_avg_pool2d(x, 1)).sigmoid()


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1].mul_(2).add_(0.1)
    y[..., 1:] += 0.3
    return y.relu_()


class Members(nn.Module):
    """Several nets for one window; their outputs beside each other."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x):
        return torch.cat([net(x).flatten(1) for net in self.nets], dim=1)


class Generator:
    """Draws nets of one window; the same seed gives the same nets."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.window = (self.random.randint(7, 18), self.random.randint(7, 18))
        self.channels = self.random.choice([1, 3, 3, 4])
        self.made: list[nn.Module] = []

    def net(self) -> nn.Module:
        """A net [N, channels, *window] -> [N, CLASSES] in float64 and evaluation mode."""
        self.made = []
        body = self.chain(torch.zeros(2, self.channels, *self.window), self.random.randint(2, 6), depth=0)
        shape = body(torch.zeros(2, self.channels, *self.window)).shape[1:]
        return randomise(nn.Sequential(*body, *self.head(*shape)), self.random.randint(0, 10**6))

    def chain(self, x: Tensor, length: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        while len(layers) < length:
            make = self.random.choice([self.sliding, self.sliding, self.pool, self.pointwise, self.other, self.block])
            if make == self.block and depth == 2:
                continue
            try:
                layer = (make(x, depth) if make == self.block else make(x)).eval()
                with torch.no_grad():
                    y = layer(x)
            except (RuntimeError, ValueError, IndexError):  # too small for it
                continue
            if y.dim() == 4 and 0 < y[0].numel() < 1500 and y.shape[1] <= 12:
                layers.append(layer)
                x = y
        return nn.Sequential(*layers)

    def size(self, largest: int) -> int | tuple[int, int]:
        one, other = self.random.randint(1, largest), self.random.randint(1, largest)
        return self.random.choice([one, one, (one, other)])

    def sliding(self, x: Tensor) -> nn.Module:
        channels, r = x.shape[1], self.random
        shared = [layer for layer in self.made if layer.in_channels == channels]
        if shared and r.random() < 0.2:
            return r.choice(shared)
        groups = r.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        kernel, out = self.size(4), groups * r.randint(1, 4 if groups == 1 else 1)
        padding = r.choice([0, 0, 1, 1, (1, 0), 2, 3, "same"])
        stride = 1 if padding == "same" else self.size(3)
        mode = r.choice(["zeros"] * 9 + ["reflect", "replicate", "circular"])
        conv = nn.Conv2d(
            channels, out, kernel, stride, padding, r.choice([1, 1, 1, 2, (1, 2)]), groups, r.random() < 0.8, mode
        )
        self.made.append(conv)
        return conv

    def pool(self, x: Tensor) -> nn.Module:
        r, kernel, stride, ceil = self.random, self.size(4), self.size(3), self.random.random() < 0.4
        padding = r.randint(0, min(kernel) // 2 if isinstance(kernel, tuple) else kernel // 2)
        return r.choice([
            lambda: nn.MaxPool2d(kernel, stride, padding, r.choice([1, 1, 2]), ceil_mode=ceil),
            lambda: nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil),
            lambda: nn.MaxPool2d(r.choice([2, 3]), 2, ceil_mode=ceil),
            lambda: nn.AvgPool2d(kernel, stride, padding, ceil, r.random() < 0.5, r.choice([None, None, None, 5])),
            lambda: nn.AdaptiveAvgPool2d(self.size(4)),
            lambda: nn.AdaptiveMaxPool2d(self.size(4)),
        ])()  # fmt: skip

    def pointwise(self, x: Tensor) -> nn.Module:
        channels = x.shape[1]
        return self.random.choice([
            nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.1, inplace=True), nn.Sigmoid, nn.Tanh,
            nn.SiLU, nn.GELU, nn.Hardswish, nn.Dropout, lambda: nn.PReLU(channels), lambda: nn.Softmax(1),
            lambda: nn.BatchNorm2d(channels), lambda: nn.BatchNorm2d(channels),
            lambda: Apply(lambda x: x * 0.5 - x.abs()), lambda: Apply(lambda x: x.clamp(min=-0.3) / 2),
            lambda: Apply(lambda s, x: x * s.scale, scale=torch.rand(channels, 1, 1).double()),
        ])()  # fmt: skip

    def other(self, x: Tensor) -> nn.Module:
        r, (channels, height, width) = self.random, x.shape[1:]
        pads = [r.randint(-1, 2) for _ in range(4)]
        first, step, axis = r.randint(0, 2), r.randint(1, 2), r.choice([2, 3])
        return r.choice([
            lambda: nn.ConstantPad2d(pads, r.choice([0.0, 0.0, 0.5])),
            lambda: nn.ZeroPad2d([max(p, 0) for p in pads]),
            lambda: nn.ReflectionPad2d(1),
            lambda: Apply(lambda x: x[:, :, first::step, first : -first or None]),
            lambda: Apply(lambda x: x[:, ::step]),
            lambda: Apply(lambda x: torch.cat(x.split(1, 1)[::-1], 1)),
            lambda: Apply(lambda x: x.narrow(axis, first, 3)),
            lambda: Apply(lambda x: x.transpose(2, 3)),
            lambda: Apply(lambda x: x.flip(axis)),
            lambda: Apply(lambda x: x.flatten(1).view(-1, channels, height, width)),
            lambda: Apply(lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)),
            lambda: Apply(lambda x: x - x.mean(axis, keepdim=True)),
            lambda: Apply(lambda x: x - x.mean(1, keepdim=True)),
            lambda: Apply(lambda x: torch.cat([x, x.amax((2, 3), keepdim=True).expand_as(x)], 1)),
            lambda: Apply(in_place),
            lambda: nn.GroupNorm(1, channels),
            lambda: Gate(channels),
            lambda: nn.Upsample(scale_factor=2),
        ])()  # fmt: skip

    def block(self, x: Tensor, depth: int) -> nn.Module:
        r, channels = self.random, x.shape[1]
        branches = [self.chain(x, r.randint(1, 3), depth + 1) for _ in range(2)]
        if r.random() < 0.5:
            return Concat(*branches[: r.randint(1, 2)], *([nn.Identity()] if r.random() < 0.5 else []))
        with torch.no_grad():
            y = branches[0].eval()(x)
        strides = [max(1, -(-a // b)) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
        plain = y.shape[1] == channels and strides == [1, 1]
        return Residual(branches[0], nn.Identity() if plain else nn.Conv2d(channels, y.shape[1], 1, strides))

    def head(self, channels: int, height: int, width: int) -> list[nn.Module]:
        r, inputs = self.random, channels * height * width
        full = [nn.Flatten(), nn.Linear(inputs, CLASSES)]
        return r.choice([
            lambda: full,
            lambda: full,
            lambda: [nn.Flatten(), nn.Linear(inputs, 5), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(5, CLASSES)],
            lambda: [nn.Conv2d(channels, 5, (height, width)), nn.ReLU(), nn.Conv2d(5, CLASSES, 1), nn.Flatten()],
            lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)],
            lambda: [nn.Conv2d(channels, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()],
            lambda: [nn.AdaptiveMaxPool2d(1), nn.Conv2d(channels, CLASSES, 1)],
            lambda: [Apply(lambda x: x.permute(0, 3, 1, 2).reshape(x.size(0), -1)), nn.Linear(inputs, CLASSES)],
            lambda: [Apply(lambda x: x.mean((2, 3))), nn.Linear(channels, CLASSES), nn.Softmax(-1)],
            lambda: [nn.Flatten(2), Apply(lambda x: x.amax(-1)), nn.LayerNorm(channels), nn.Linear(channels, CLASSES)],
        ])()  # fmt: skip
