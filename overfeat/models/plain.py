"""Built-in nets as plain PyTorch layers, for torch.export and torch.onnx.export.

The operators of `overfeat.ops` are written out: pooling at every offset and the first fully connected layer are a max
pooling of stride 1 and a dilated convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.errors import ArgumentError
from overfeat.models.geometry import Stride
from overfeat.models.overfeat import OverFeat


class PlainFeatures(nn.Module):
    """The feature layers: images [N, 3, H, W] in 0..255 -> the last, unpooled maps [N, C, h, w].

    Args:
        net: Its weights are shared, not copied. Raises ArgumentError for a net on a backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: OverFeat):
        super().__init__()
        if net.backbone is not None:
            raise ArgumentError("net", "must have feature layers of its own, not those of another network")
        self.convs, self.specs = net.conv_layers, net.architecture.convs
        for name in ("mean", "std"):
            values = torch.tensor(getattr(net.architecture, name), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = ((images.to(torch.float32) - self.mean) / self.std).to(self.convs[0].weight.dtype)
        last = len(self.specs) - 1
        for number, (conv, spec) in enumerate(zip(self.convs, self.specs, strict=True)):
            maps = F.conv2d(maps, conv.weight, conv.bias, spec.stride, spec.pad).relu()
            if spec.pool > 1 and number < last:
                maps = F.max_pool2d(maps, spec.pool)
        return maps


class PlainHead(nn.Module):
    """The fully connected layers: the last maps [N, C, h, w] -> logits [N, classes, h', w'].

    Args:
        net: As in `PlainFeatures`.
        stride: "fine" or "coarse".
    """

    def __init__(self, net: OverFeat, stride: Stride = "fine"):
        super().__init__()
        self.layers, self.context = net.fc_layers, net.context
        self.pool, self.step = net.architecture.pool, net.architecture.maps_stride(stride)

    def forward(self, maps: Tensor, context: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of all windows.

        Args:
            maps: Unpooled.
            context, positions: Of a net with context, as in `ContextFeatures`; None: nothing seen.
        """
        hidden = self._first(self.layers[0], maps)
        if self.context is not None and context is not None and positions is not None:
            seen = self._first(self.context, context).permute(0, 2, 3, 1).flatten(0, 2)
            n, channels, height, width = hidden.shape
            seen = seen.index_select(0, positions).view(n, height, width, channels)
            hidden = hidden + seen.permute(0, 3, 1, 2)
        for layer in self.layers[1:]:
            hidden = F.conv2d(hidden.relu(), layer.weight, layer.bias)
        return hidden

    def _first(self, layer: nn.Conv2d, maps: Tensor) -> Tensor:
        pooled = F.max_pool2d(maps, self.pool, self.step) if self.pool > 1 else maps
        return F.conv2d(pooled, layer.weight, layer.bias, dilation=self.pool // self.step)


class PlainNet(nn.Module):
    """A built-in net: images [N, 3, H, W] in 0..255, at least the window -> logits [N, classes, h, w], without context.

    Equal to `net(images, stride)`; arguments as in `PlainHead`.
    """

    def __init__(self, net: OverFeat, stride: Stride = "fine"):
        super().__init__()
        self.features, self.head = PlainFeatures(net), PlainHead(net, stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
