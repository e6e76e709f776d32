"""The converter: equality with cropped windows, and the contract of `Net`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from overfeat.densify.convert import densify


def cropped(module, images, window, stride):
    """The module's outputs for every window: [N, numbers, rows, columns] each."""
    rows, columns = ((side - w) // stride + 1 for side, w in zip(images.shape[2:], window, strict=True))
    outputs = []
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            with torch.no_grad():
                output = module(images[:, :, top : top + window[0], left : left + window[1]])
            outputs.append(output if isinstance(output, tuple) else (output,))
    return [
        torch.stack([o[k].flatten(1) for o in outputs], -1).unflatten(-1, (rows, columns))
        for k in range(len(outputs[0]))
    ]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.skip = nn.Conv2d(4, 6, 1, 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.max_pool2d(F.relu(x + self.branch(x)), 3, 2, 1)
        return self.fc(F.relu(self.down(x) + self.skip(x)).mean((2, 3)))


def lenet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


MODULES = {"lenet": (lenet, (26, 26)), "residual": (Residual, (17, 21))}


@pytest.mark.parametrize("name", MODULES)
def test_equals_cropped_windows(name):
    torch.manual_seed(0)
    make, window = MODULES[name]
    module = make().double().eval()
    net = densify(module, window)
    for stride in (1, 3, 4):
        images = torch.rand(2, 3, window[0] + 9, window[1] + 6, dtype=torch.float64)
        (expected,) = cropped(module, images, window, stride)
        torch.testing.assert_close(net(images, stride), expected, rtol=1e-9, atol=1e-12)
