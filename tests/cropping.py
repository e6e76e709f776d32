"""The truth about every window: cropped, and run through the module itself."""

import torch
from torch import Tensor, nn

from bench.tolerance import assert_matches

STRIDES = (1, 2, 3, 4, 8)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def crops(images: Tensor, window: tuple[int, int], stride: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Every window of images [N, C, H, W] as a batch, and (N, rows, columns) of the windows."""
    views = images.unfold(2, window[0], stride).unfold(3, window[1], stride).permute(0, 2, 3, 1, 4, 5)
    return views.flatten(0, 2).contiguous(), tuple(views.shape[:3])


@torch.no_grad()
def cropped(module: nn.Module, images: Tensor, window: tuple[int, int], stride: int) -> list[Tensor]:
    """Outputs [N, numbers, rows, columns] of every window; `module` is in evaluation mode."""
    batch, (n, rows, columns) = crops(images, window, stride)
    outputs = module(batch)
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [one.reshape(n, rows, columns, -1).permute(0, 3, 1, 2) for one in outputs]


def assert_like_crops(net, module, images, window, strides=STRIDES, dtype=torch.float64):
    """The converted net's outputs are the module's on every window, at each of these strides."""
    module.eval()
    for stride in strides:
        actual = net(images, stride)
        actual = list(actual) if isinstance(actual, (tuple, list)) else [actual]
        try:
            assert_matches(actual, cropped(module, images, window, stride), dtype)
        except AssertionError as error:
            raise AssertionError(f"stride {stride}: {error}") from None


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 and evaluation mode, with random biases, scales and running statistics."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not value.is_floating_point() or value.dim() > 1:
            continue
        if name.endswith(("running_var", "weight")):
            value.data.uniform_(0.5, 1.5, generator=generator)
        else:
            value.data.uniform_(-0.5, 0.5, generator=generator)
    return module


class Apply(nn.Module):
    """A function of the input and of this module, which may hold layers and buffers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            else:
                self.register_buffer(name, layer)

    def extra_repr(self):
        return f"line {self.function.__code__.co_firstlineno}"

    def forward(self, x):
        return self.function(self, x) if self.function.__code__.co_argcount == 2 else self.function(x)


def with_classifier(body: nn.Module, channels: int, height: int, width: int, classes: int = 3) -> nn.Sequential:
    """The layers, then one linear layer over all their outputs."""
    with torch.no_grad():
        outputs = body.double().eval()(torch.zeros(2, channels, height, width, dtype=torch.float64))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(outputs[0].numel(), classes)).double()
