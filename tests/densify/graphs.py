"""Nets whose graph is no chain: branches, shared modules, in-place operators, views, buffers."""

import torch
import torch.nn.functional as F
from cropping import Apply, numbers
from torch import nn

WINDOW = (14, 11)


class DenseBlocks(nn.Module):
    """Every layer sees the outputs of all layers before it (DenseNet)."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * i) for i in range(4))
        self.head = nn.Linear(11, 3)

    def forward(self, x):
        maps = [x]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(conv(norm(torch.cat(maps, 1)).relu()))
        return self.head(F.adaptive_avg_pool2d(torch.cat(maps, 1), 1).flatten(1))


class Fire(nn.Module):
    def __init__(self, padding):
        super().__init__()
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.one, self.three = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1)
        self.stem = nn.Conv2d(3, 4, 3, 2, padding)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, ceil_mode=True)
        x = F.relu_(self.squeeze(x))
        x = torch.cat([F.relu(self.one(x), inplace=True), F.relu(self.three(x), inplace=True)], 1)
        return F.adaptive_avg_pool2d(self.head(x).relu(), (1, 1)).view(x.size(0), 5)


class Inception(nn.Module):
    """Branches with different paddings and an average pool."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 2, 1, 2)
        self.b = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(True), nn.Conv2d(2, 3, 5, 2, 2))
        self.c = nn.Sequential(nn.Conv2d(3, 2, (1, 5), padding=(0, 2)), nn.Conv2d(2, 2, (5, 1), 2, padding=(2, 0)))
        self.d = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(3, 1, 1))
        self.head = nn.Linear(8 * 7 * 6, 3)

    def forward(self, x):
        return self.head(torch.cat([branch(x) for branch in (self.a, self.b, self.c, self.d)], 1).flatten(1))


class Residuals(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 4, 3, 1, 1))
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(True), nn.Conv2d(6, 6, 3, 1, 1))
        self.down, self.head = nn.Conv2d(4, 6, 1, 2), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        identity = x
        x = self.one(x)
        x += identity
        x = F.relu(x, inplace=True)
        x = (self.two(x) + self.down(x)).relu_()
        return self.head(x.mean((2, 3)))


class SharedTwice(nn.Module):
    """One convolution used three times, on maps of different sizes and tap distances."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 3 * 2, 3)

    def forward(self, x):
        x = F.max_pool2d(self.conv(self.stem(x)), 2)
        x = F.max_pool2d(self.conv(x), 2)
        return self.head(self.conv(x).flatten(1))


class Pyramid(nn.Module):
    """Two resolutions of the window itself, and a coarse map brought up to a fine one."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 14 * 10, 3)

    def forward(self, x):
        low = self.coarse(F.avg_pool2d(x, 2))
        up = F.interpolate(low, scale_factor=2.0)
        return self.head((self.fine(x)[..., :10] + up[:, :, :14]).relu().flatten(1))


class Recurrent(nn.Module):
    """A loop over the same layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.step, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3 * 12 * 9, 2)

    def forward(self, x):
        state = self.stem(x)
        for _ in range(3):
            state = torch.tanh(state + self.step(state))
        return self.head(state.flatten(1))


class Transformer(nn.Module):
    """A class token, position embedding and one encoder layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, (7, 5), stride=(7, 5))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(0.1 * torch.randn(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.layer(x)[:, 0])


class InPlace(nn.Module):
    """Writes into clones, views, its own input and a new tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 14 * 11, 3)

    def forward(self, x):
        x.sub_(0.5)
        x[:, 0] *= 2
        y = self.conv(x)
        y[:, 1:3].relu_()
        y[:, :, 2:, ::2].add_(1)
        first = y[:, :1]
        y.mul_(0.5)
        new = torch.empty_like(y)
        new[:, :2] = y[:, 2:]
        new[:, 2:] = y[:, :2] + first
        new[:, :, -1] = 0
        return self.head(new.flatten(1))


class Buffers(nn.Module):
    """Normalises by buffers, counts its calls, and adds constants that it makes itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", numbers(1, 3, 1, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", (numbers(14, 11, seed=1) > 0).double(), persistent=False)
        self.conv, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4 * 12 * 9, 3)

    def forward(self, x):
        self.calls += 1
        x = (x - self.mean) * self.mask
        rows = torch.arange(14, dtype=x.dtype).view(1, 1, 14, 1).expand(x.shape[0], 1, 14, 11)
        return self.head(self.conv(torch.cat([x, rows / 14], 1)).flatten(1))


class Heads(nn.Module):
    """Classifiers at three depths, added."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(4 * 6 * 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        y = F.max_pool2d(self.one(x), 2)
        return self.a(x.mean((2, 3))) + self.b(y.flatten(1)) * self.c(self.two(y).amax((2, 3))).sigmoid()


class Unused(nn.Module):
    """Has outputs that nothing uses, and a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.never, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(9, 9, 3), nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x)
        y.mean((2, 3))
        best, _ = y.flatten(2).max(-1)
        assert best.shape[1] == 4
        return self.head(best)


class Reused(nn.Module):
    """The head sees the image twice, and a map that the features go on from."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(3, 2), nn.Linear(4 * 2 * 2 + 4 * 6 * 5, 3)

    def forward(self, x):
        y = self.conv(x - x.flip(1)).relu_()
        return self.head(torch.cat([self.pool(y).flatten(1), y.flatten(1)], 1))


GRAPHS = [
    DenseBlocks, lambda: Fire(0), lambda: Fire(1), Inception, Residuals, SharedTwice, Pyramid, Recurrent, Transformer,
    InPlace, Buffers, Heads, Unused, Reused,
]  # fmt: skip

# name: (module, window)
EDGES = {
    "scores of the image itself": (Apply(lambda s, x: x.flatten(1)[:, :5] * s.one, one=numbers(1)), (4, 4)),
    "one pixel": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), (1, 1)),
    "one row": (nn.Sequential(nn.Conv2d(3, 4, (1, 3)), nn.Flatten(), nn.Linear(4 * 5, 2)), (1, 7)),
    "a window smaller than the kernel": (
        nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.Flatten(), nn.Linear(64, 2)), (4, 4),
    ),
    "one class": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1)), (4, 4)),
    "Linear alone": (nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 6, 4)), (5, 6)),
    "max pool of the image": (nn.Sequential(nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(3 * 9, 4)), (7, 7)),
    "last axes of one": (nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)), (6, 7)),
    "a column that the pool leaves out": (
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(4 * 2 * 2, 2)), (9, 8),
    ),
    "strides with a common factor": (
        nn.Sequential(nn.Conv2d(3, 4, 3, 6), nn.Conv2d(4, 4, 2, 4), nn.Flatten(), nn.Linear(4, 2)), (32, 30),
    ),
    "a scalar for a result": (Apply(lambda s, x: s.table[:, :2].expand(x.shape[0], 2) * x.mean((1, 2, 3))[:, None],
                                    table=numbers(1, 3)), (6, 5)),
}  # fmt: skip
