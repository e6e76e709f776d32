"""Every operator with a rule, and operators without: a small net each, against cropped windows."""

import pytest
import torch
import torch.nn.functional as F
from cropping import Apply, assert_like_crops, numbers, randomise, with_classifier
from torch import nn

import overfeat

WINDOW = (13, 12)
C, H, W = 4, 11, 10  # of the maps that an operator sees


class Operators(nn.Module):
    """Operators on maps that all windows share, and on maps whose edges saw the window's zero padding."""

    def __init__(self, names):
        super().__init__()
        self.shared = nn.Conv2d(3, C, 3)
        self.padded = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, C, 3))
        make = [OPERATORS[name] for name in names for _ in range(2)]
        self.branches = nn.ModuleList(with_classifier(make_operator(), C, H, W) for make_operator in make)

    def forward(self, x):
        maps = self.shared(x), self.padded(x)
        return torch.cat([branch(maps[i % 2]) for i, branch in enumerate(self.branches)], dim=1)


def conv(*args, **options):
    return lambda: nn.Conv2d(C, *args, **options)


def apply(function, **buffers):
    return lambda: Apply(function, **buffers)


CONVOLUTIONS = {
    "3x3": conv(5, 3),
    "1x1": conv(5, 1),
    "stride 2": conv(5, 3, stride=2),
    "stride 3": conv(5, 2, stride=3),
    "stride by axis": conv(5, 3, stride=(2, 1)),
    "stride beyond the kernel": conv(5, 1, stride=4),
    "dilation 2": conv(5, 3, dilation=2),
    "dilation by axis, stride 2": conv(5, 3, dilation=(1, 3), stride=2),
    "groups": conv(6, 3, groups=2),
    "depthwise": conv(8, 3, groups=4, padding=1),
    "no bias": conv(5, 3, bias=False, padding=1),
    "1x3": conv(5, (1, 3), padding=(0, 1)),
    "5x1": conv(5, (5, 1), padding=(2, 0)),
    "even kernel": conv(5, 4, padding=1),
    "whole window": conv(5, (H, W)),
    "padding 1": conv(5, 3, padding=1),
    "padding 1, stride 2": conv(5, 3, padding=1, stride=2),
    "padding 2, dilation 2": conv(5, 3, padding=2, dilation=2),
    "padding beyond the kernel": conv(5, 3, padding=4),
    "padding beyond the kernel, stride 3": conv(5, 2, padding=3, stride=3),
    "padding by axis": conv(5, 3, padding=(2, 0), stride=(1, 2)),
    "wide": conv(5, 9, padding=4),
    "same": conv(5, 3, padding="same"),
    "same, even kernel": conv(5, (4, 2), padding="same"),
    "same, even kernel, dilation": conv(5, 4, padding="same", dilation=3),
    "valid": conv(5, 3, padding="valid"),
    "reflect": conv(5, 3, padding=1, padding_mode="reflect"),
    "replicate": conv(5, 3, padding=(2, 1), padding_mode="replicate"),
    "circular": conv(5, 3, padding=2, padding_mode="circular"),
    "two, padded": lambda: nn.Sequential(nn.Conv2d(C, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, 2, 1)),
    "three, padded": lambda: nn.Sequential(*(nn.Conv2d(C, C, 3, 1, 1) for _ in range(3)), nn.MaxPool2d(3, 2, 1)),
    "transposed": lambda: nn.ConvTranspose2d(C, 5, 3, stride=2),
    "unfold": lambda: nn.Unfold(3, stride=2),
    "one channel": lambda: nn.Sequential(nn.Conv2d(C, 1, 3, padding=1), nn.Conv2d(1, 2, 2)),
}

POOLS = {
    "max 2": lambda: nn.MaxPool2d(2),
    "max 3/2": lambda: nn.MaxPool2d(3, 2),
    "max 2/1": lambda: nn.MaxPool2d(2, 1),
    "max 1/3": lambda: nn.MaxPool2d(1, 3),
    "max 2/4": lambda: nn.MaxPool2d(2, 4),
    "max 3/2, padded": lambda: nn.MaxPool2d(3, 2, 1),
    "max 5/1, padded": lambda: nn.MaxPool2d(5, 1, 2),
    "max, dilation": lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
    "max by axis": lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
    "max, ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "max 3/2, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "max 4/3, ceil, padded": lambda: nn.MaxPool2d(4, 3, 1, ceil_mode=True),
    "max of negative numbers, padded": lambda: nn.Sequential(Apply(lambda x: -1 - x.abs()), nn.MaxPool2d(3, 2, 1)),
    "max, indices": apply(lambda x: torch.cat([t.double() for t in F.max_pool2d(x, 2, return_indices=True)], 1)),
    "max, all": lambda: nn.MaxPool2d((H, W)),
    "average 2": lambda: nn.AvgPool2d(2),
    "average 3/2": lambda: nn.AvgPool2d(3, 2),
    "average 3/2, padded": lambda: nn.AvgPool2d(3, 2, 1),
    "average 3/2, padded, without padding in the count": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "average, ceil, padded": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average, ceil, padded, without": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average by axis": lambda: nn.AvgPool2d((2, 3), (1, 2), (0, 1)),
    "average, divisor": lambda: nn.AvgPool2d(3, 2, 1, divisor_override=7),
    "average, all": lambda: nn.AvgPool2d((H, W)),
    "average of one cell": lambda: nn.AvgPool2d(1, 2),
    "adaptive average 1": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive average, divides": lambda: nn.AdaptiveAvgPool2d((H, 5)),
    "adaptive average, does not divide": lambda: nn.AdaptiveAvgPool2d((3, 4)),
    "adaptive average, more than there are": lambda: nn.AdaptiveAvgPool2d(14),
    "adaptive average, an axis": lambda: nn.AdaptiveAvgPool2d((None, 1)),
    "adaptive max 1": lambda: nn.AdaptiveMaxPool2d(1),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((2, 5)),
    "L2": lambda: nn.LPPool2d(2, 3, 2),
    "two max 3/2": lambda: nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(C, 5, 2), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max, average, max": lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(2, 1, 1)),
}

POINTWISE = {
    type(layer).__name__: (lambda layer=layer: layer)
    for layer in (
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.GELU(), nn.SiLU(),
        nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 0.5), nn.Sigmoid(), nn.Tanh(), nn.Softplus(),
        nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink(), nn.Softshrink(0.1), nn.Hardshrink(0.1), nn.Threshold(0.1, 2.0),
        nn.Dropout(), nn.Dropout2d(), nn.Identity(), nn.GLU(dim=1),
    )
}  # fmt: skip
POINTWISE |= {
    "PReLU by channel": lambda: nn.PReLU(C),
    "tanh GELU": lambda: nn.GELU(approximate="tanh"),
    "clamp": apply(lambda x: x.clamp(-0.2, 0.4)),
    "clamp min": apply(lambda x: x.clamp(min=0.1)),
    "scalars": apply(lambda x: 1 - 2 * x / 3 + 0.5),
    "scalar over map": apply(lambda x: 1 / (x.abs() + 1)),
    "powers": apply(lambda x: x**2 + x.abs() ** 0.5 + 2.0**x),
    "square root": apply(lambda x: torch.sqrt(x.abs() + 1) + torch.rsqrt(x * x + 1) + torch.log1p(x.abs())),
    "comparison": apply(lambda x: x * (x > 0.1)),
    "where": apply(lambda x: torch.where(x < 0, x * 0.1, x.exp())),
    "masked fill": apply(lambda x: x.masked_fill(x < 0, 0.25)),
    "to its own dtype": apply(lambda x: x.double().to(x.dtype).type_as(x) + (x > 0).to(x.dtype)),
    "round": apply(lambda x: (4 * x).floor() + x),
    "contiguous, clone, detach": apply(lambda x: x.contiguous().clone().detach()),
    "channels last": apply(lambda x: x.to(memory_format=torch.channels_last) + 1),
}

NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(C),
    "batch norm without scale": lambda: nn.BatchNorm2d(C, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(C, affine=True),
    "group norm": lambda: nn.GroupNorm(2, C),
    "layer norm over all": lambda: nn.LayerNorm([C, H, W]),
    "layer norm over space": lambda: nn.LayerNorm([H, W]),
    "layer norm over channels": apply(
        lambda s, x: s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(C)
    ),
    "local response": lambda: nn.LocalResponseNorm(3),
    "unit length": apply(lambda x: F.normalize(x, dim=1)),
    "softmax over channels": lambda: nn.Softmax(1),
    "softmax2d": lambda: nn.Softmax2d(),
    "log softmax over channels": lambda: nn.LogSoftmax(1),
    "softmax over a row": lambda: nn.Softmax(3),
    "softmax over the window": apply(lambda x: x.flatten(2).softmax(-1).view(x.shape)),
    "channel mean": apply(lambda x: x - x.mean(1, keepdim=True)),
    "channel maximum": apply(lambda x: torch.cat([x, x.amax(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)),
    "maxout": apply(lambda x: torch.max(x[:, :2], x[:, 2:])),
}  # fmt: skip

PADS = {
    "zeros": lambda: nn.ZeroPad2d(1),
    "zeros, asymmetric": lambda: nn.ZeroPad2d((0, 1, 2, 0)),
    "constant": lambda: nn.ConstantPad2d(1, 0.7),
    "crop": lambda: nn.ZeroPad2d(-1),
    "pad and crop": lambda: nn.ZeroPad2d((-1, 2, 1, -2)),
    "reflect": lambda: nn.ReflectionPad2d(2),
    "replicate": lambda: nn.ReplicationPad2d((1, 0, 2, 3)),
    "circular": lambda: nn.CircularPad2d(1),
    "TF same, stride 2": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(C, 5, 3, 2)),
    "zeros, then max": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
    "minus infinity, then max": lambda: nn.Sequential(nn.ConstantPad2d(1, -torch.inf), nn.MaxPool2d(3, 2)),
    "constant, then padded convolution": lambda: nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(C, 3, 3, 1, 1)),
    "channels": apply(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    "channels and space": apply(lambda x: F.pad(x, (1, 0, 0, 1, 0, 2), value=0.5)),
}

SHAPES = {
    "slice of rows": apply(lambda x: x[:, :, 1:-2]),
    "slice with a step": apply(lambda x: x[:, :, 1::2, ::3]),
    "slice of both and channels": apply(lambda x: x[:, 1:3, 2:, :-1]),
    "ellipsis": apply(lambda x: x[..., 2:7]),
    "one cell": apply(lambda x: x[:, :, 5, 4]),
    "one row": apply(lambda x: x[:, :, -1]),
    "narrow": apply(lambda x: x.narrow(2, 3, 4).narrow(-1, 1, 2)),
    "channels by index": apply(lambda s, x: x[:, s.order], order=torch.tensor([2, 0, 0, 3, 1])),
    "rows by index": apply(lambda s, x: x.index_select(2, s.order), order=torch.tensor([2, 0, 7])),
    "flip": apply(lambda x: x.flip(3)),
    "flip of channels": apply(lambda x: x.flip(1)),
    "roll": apply(lambda x: x.roll(2, 3)),
    "transpose": apply(lambda x: x.transpose(2, 3)),
    "transposed twice": apply(lambda x: x.mT.sin().mT + x),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "channel shuffle by views": apply(lambda x: x.view(x.shape[0], 2, 2, H, W).transpose(1, 2).reshape(x.shape)),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "pixel unshuffle": lambda: nn.Sequential(nn.ZeroPad2d((0, 0, 0, 1)), nn.PixelUnshuffle(2)),
    "chunks": apply(lambda x: torch.cat([part.relu() for part in reversed(x.chunk(2, 1))], 1)),
    "split by sizes": apply(lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1)),
    "split of rows": apply(lambda x: x.split(4, 2)[1]),
    "unbind": apply(lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    "unsqueeze, squeeze": apply(lambda x: (x.unsqueeze(2).squeeze(2).unsqueeze(-1) * 2).squeeze(-1)),
    "flatten and back": apply(lambda x: x.flatten(1).view(-1, C, H, W).tanh()),
    "other factors": apply(lambda x: x.reshape(x.size(0), 2, 2 * H, W).tanh()),
    "channels last": apply(lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    "channels last Linear": apply(lambda s, x: s.linear(x.permute(0, 2, 3, 1)), linear=nn.Linear(C, 3)),
    "Linear over a row": apply(lambda s, x: s.linear(x), linear=nn.Linear(W, 3)),
    "repeat of channels": apply(lambda x: x.repeat(1, 2, 1, 1)),
    "repeat in space": apply(lambda x: x.repeat(1, 1, 1, 2)),
    "repeat interleave": apply(lambda x: x.repeat_interleave(2, 1)),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(size=(7, 9), mode="bilinear"),
    "batch axis moved": apply(lambda x: x.permute(2, 0, 1, 3).tanh().permute(1, 2, 0, 3)),
    "batch and channels transposed": apply(lambda x: x.transpose(0, 1).abs().transpose(0, 1)),
}

REDUCTIONS = {
    "mean": apply(lambda x: x.mean((2, 3))),
    "mean, negative axes": apply(lambda x: x.mean([-1, -2], keepdim=True)),
    "mean of rows": apply(lambda x: x.mean(2)),
    "mean of columns": apply(lambda x: x.mean(3, keepdim=True)),
    "mean of flattened": apply(lambda x: x.flatten(2).mean(-1)),
    "mean of channels last": apply(lambda x: x.permute(0, 2, 3, 1).mean(dim=(1, 2))),
    "mean one after the other": apply(lambda x: x.mean(3).mean(2)),
    "mean of all": apply(lambda x: x.mean((1, 2, 3))[:, None]),
    "sum": apply(lambda x: x.sum((2, 3))),
    "sum of channels": apply(lambda x: x.sum(1)),
    "maximum": apply(lambda x: x.amax((2, 3))),
    "maximum, pooled": apply(lambda x: F.max_pool2d(x, x.shape[2:]).flatten(1)),
    "minimum": apply(lambda x: x.amin((2, 3), keepdim=True)),
    "maximum of a row": apply(lambda x: x.max(3)[0]),
    "maximum of flattened": apply(lambda x: x.view(x.size(0), C, -1).max(dim=2).values),
    "variance": apply(lambda x: x.var((2, 3))),
    "norm": apply(lambda x: x.norm(dim=(2, 3))),
    "logsumexp": apply(lambda x: x.logsumexp((2, 3))),
    "cumulative sum": apply(lambda x: x.cumsum(2)),
    "top 3": apply(lambda x: x.flatten(2).topk(3)[0]),
    "sorted": apply(lambda x: x.sort(3)[0]),
    "generalised mean": apply(lambda x: F.avg_pool2d(x.clamp(min=1e-2).pow(3), (H, W)).pow(1 / 3)),
}

JOINS = {
    "residual": apply(lambda s, x: x + s.conv(x), conv=nn.Conv2d(C, C, 3, padding=1)),
    "residual, cropped": apply(lambda s, x: x[:, :, 1:-1, 1:-1] + s.conv(x), conv=nn.Conv2d(C, C, 3)),
    "residual, stride 2": apply(
        lambda s, x: s.skip(x) + s.conv(x), conv=nn.Conv2d(C, 5, 3, 2, 1), skip=nn.Conv2d(C, 5, 1, 2)
    ),
    "with itself": apply(lambda x: x * x + torch.maximum(x, x.neg())),
    "difference of shifts": apply(lambda x: x[..., 1:] - x[..., :-1]),
    "concatenation": apply(lambda s, x: torch.cat([x, s.conv(x), x.relu()], 1), conv=nn.Conv2d(C, 2, 3, padding=1)),
    "concatenation, other paddings": apply(
        lambda s, x: torch.cat([s.a(x), s.b(x), s.c(x)], 1),
        a=nn.Conv2d(C, 2, 3, 2, 1), b=nn.Conv2d(C, 3, 5, 2, 2), c=nn.MaxPool2d(3, 2, 1),
    ),
    "concatenation of rows": apply(lambda x: torch.cat([x, x.abs()], 2)),
    "concatenation of an axis alone": apply(lambda s, x: torch.cat([x, s.conv(x)], 3), conv=nn.Conv2d(C, C, (1, 3))),
    "stack": apply(lambda x: torch.stack([x, x.abs()], 1).flatten(1, 2)),
    "strides that do not meet": apply(lambda s, x: s.a(x)[:, :, :4, :4] + s.b(x)[:, :, :4, :4],
                                      a=nn.Conv2d(C, 2, 2), b=nn.Conv2d(C, 2, 2, 2)),
    "concatenation with a constant": apply(
        lambda s, x: torch.cat([x, s.map.expand(x.shape[0], -1, -1, -1)], 1), map=numbers(1, 2, H, W)
    ),
    "concatenation with zeros": apply(lambda x: torch.cat([x, torch.zeros_like(x)], 1)),
    "coordinates": apply(
        lambda x: torch.cat([x, torch.linspace(-1, 1, W, dtype=x.dtype).expand(x.shape[0], 1, H, W)], 1)
    ),
    "bias of a channel": apply(lambda s, x: x + s.bias, bias=numbers(C, 1, 1)),
    "scale of a channel": apply(lambda s, x: s.scale * x, scale=numbers(1, C, 1, 1)),
    "position embedding": apply(lambda s, x: x + s.embedding, embedding=numbers(1, C, H, W)),
    "embedding of rows": apply(lambda s, x: x + s.embedding, embedding=numbers(H, 1)),
    "channel of one broadcast": apply(lambda x: x * x[:, :1].sigmoid()),
    "gate of a column": apply(lambda x: x * x.mean(2, keepdim=True)),
    "squeeze and excitation": apply(
        lambda s, x: x * s.gate(x.mean((2, 3)))[:, :, None, None], gate=nn.Sequential(nn.Linear(C, C), nn.Sigmoid())
    ),
    "squeeze and excitation by convolution": apply(
        lambda s, x: x * s.gate(F.adaptive_avg_pool2d(x, 1)), gate=nn.Sequential(nn.Conv2d(C, C, 1), nn.Sigmoid())
    ),
    "attention": apply(
        lambda s, x: s.attend(x.flatten(2).mT, x.flatten(2).mT, x.flatten(2).mT)[0],
        attend=nn.MultiheadAttention(C, 2, batch_first=True),
    ),
    "attention, batch second": apply(
        lambda s, x: s.attend(*[x.flatten(2).permute(2, 0, 1)] * 3, need_weights=False)[0].transpose(0, 1),
        attend=nn.MultiheadAttention(C, 2),
    ),
    "Gram matrix": apply(lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT)),
    "einsum": apply(lambda s, x: torch.einsum("nchw,ck->nkhw", x, s.weight), weight=numbers(C, 3)),
    "matmul": apply(lambda s, x: x.flatten(1) @ s.weight, weight=numbers(C * H * W, 2)),
    "LSTM over rows": apply(lambda s, x: s.lstm(x.permute(0, 2, 1, 3).flatten(2))[0],
                            lstm=nn.LSTM(C * W, 3, batch_first=True)),
    "addcmul": apply(lambda x: torch.addcmul(x, x, x.abs(), value=0.5).lerp(x, 0.25)),
}  # fmt: skip

OPERATORS = {
    f"{family}: {name}": make
    for family, members in {
        "conv": CONVOLUTIONS, "pool": POOLS, "pointwise": POINTWISE, "norm": NORMS, "pad": PADS, "shape": SHAPES,
        "reduction": REDUCTIONS, "join": JOINS,
    }.items()
    for name, make in members.items()
}  # fmt: skip


NAMES = list(OPERATORS)
GROUPS = [NAMES[start : start + 12] for start in range(0, len(NAMES), 12)]


def check(names):
    torch.manual_seed(0)
    module = randomise(Operators(names))
    net = overfeat.densify(module, WINDOW, check=False)
    assert_like_crops(net, module, numbers(2, 3, 24, 27), WINDOW)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_every_window(names):
    """Several operators are one module, since most of the time goes into the export."""
    try:
        check(names)
    except Exception:
        for name in names:
            try:
                check([name])
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
        raise
