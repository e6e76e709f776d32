"""A `Net` that crops every window and runs a module on it: the truth that converted nets are compared with."""

import torch
from torch import Tensor, nn

from overfeat.models.geometry import Geometry
from overfeat.models.net import InputSpan, Net


class CroppedNet(Net):
    """Runs module: [N, channels, *window] -> [N, classes], on (x - mean) / std of every window of an image.

    With `halo`, tiles come with as many more pixels on both sides, which it ignores.
    """

    def __init__(self, module: nn.Module, window, channels=3, mean=0.0, std=1.0, activation="softmax", halo=0):
        super().__init__()
        self.module, self.in_channels, self.activation, self.halo = module.eval(), channels, activation, halo
        self.mean, self.std = mean, std
        self.default_stride = 3
        self.geometry = Geometry("cropped", window, 2, 2, max(window) + 3, any_stride=True)
        self.tiles: list[tuple[int, int, int]] = []  # shapes of the crops
        with torch.no_grad():
            outputs = module(torch.zeros(1, channels, *window))
        self.class_names = [f"class {i}" for i in range(outputs.shape[1])]

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def dtype(self):
        return torch.float32

    def input_span(self, axis, length, outputs, stride):
        step, count = self.geometry.stride(stride), outputs.stop - outputs.start
        start, stop = outputs.start * step, (outputs.stop - 1) * step + self.geometry.window[axis]
        first = max(0, start - self.halo)
        return InputSpan(first, min(length, stop + self.halo), count, offset=start - first)

    def tile_features(self, crop, rows, columns, stride):
        assert crop.shape[1:] == (self.in_channels, rows.stop - rows.start, columns.stop - columns.start)
        self.tiles.append(tuple(crop.shape))
        step, (height, width) = self.geometry.stride(stride), self.geometry.window
        crop = (crop.float() - self.mean) / self.std
        outputs = []
        for i in range(rows.outputs):
            for j in range(columns.outputs):
                top, left = rows.offset + i * step, columns.offset + j * step
                outputs.append(self.module(crop[:, :, top : top + height, left : left + width]))
        return (len(crop), rows.outputs, columns.outputs), torch.stack(outputs, 1).flatten(0, 1)

    def forward_head_flat(self, features, stride, context=()):
        return torch.cat([flat for _, flat in features]), [shape for shape, _ in features]

    def tile_bytes(self, images, rows, columns, stride):
        pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
        return 4 * images * self.in_channels * pixels, 4 * images * rows.outputs * columns.outputs * self.num_classes

    def region_macs(self, size, stride):
        rows, columns = (self.geometry.num_outputs(axis, side, stride) for axis, side in enumerate(size))
        return {}, rows * columns


def all_windows(net: CroppedNet, images: Tensor, stride: int) -> Tensor:
    """Probabilities [N, classes, rows, columns] of images [N, C, H, W], from `crops` in one loop."""
    height, width = net.geometry.window
    windows = images.unfold(2, height, stride).unfold(3, width, stride)  # [N, C, rows, columns, height, width]
    n, channels, rows, columns = windows.shape[:4]
    flat = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, height, width)
    with torch.no_grad():
        outputs = net.module((flat.float() - net.mean) / net.std)
    return net.probabilities(outputs).view(n, rows, columns, -1).permute(0, 3, 1, 2)
