"""What the library is measured against: ways to the same scores without it, or without its op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.models.overfeat import OverFeat


def naive_windows(net: OverFeat, image: Tensor, batch: int) -> Tensor:
    """Every window of the fine grid cropped and run on its own, in batches: [1, classes, rows, columns]."""
    window, stride = net.architecture.window, net.architecture.fine_stride
    crops = image.unfold(2, window, stride).unfold(3, window, stride)[0]
    rows, columns = crops.shape[1:3]
    crops = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
    scores = torch.cat([windows_alone(net, part) for part in crops.split(batch)])
    return scores.T.view(1, -1, rows, columns)


def monai_windows(net: OverFeat, image: Tensor, batch: int) -> Tensor:
    """The same by MONAI's patch inferer, which splits, runs and puts together: [1, classes, rows, columns]."""
    from monai.inferers import PatchInferer, SlidingWindowSplitter
    from monai.inferers.merger import Merger

    window, stride = net.architecture.window, net.architecture.fine_stride
    shape = [(side - window) // stride + 1 for side in image.shape[2:]]

    class InOrder(Merger):
        """Windows come row by row; MONAI scales their places to the size of the output, which is 1 x 1 here."""

        def __init__(self, merged_shape=None, **_):
            super().__init__(merged_shape=merged_shape)
            self.scores = []

        def aggregate(self, values, location):
            self.scores.append(values.flatten(1))

        def finalize(self):
            return torch.cat(self.scores).T.view(1, -1, *shape)

    splitter = SlidingWindowSplitter((window, window), window - stride, pad_mode=None)
    inferer = PatchInferer(splitter, merger_cls=InOrder, batch_size=batch, match_spatial_shape=False)
    return inferer(image, lambda windows: windows_alone(net, windows)[:, :, None, None])


def eager(net: OverFeat, image: Tensor) -> Tensor:
    """Every window of an image by what one writes in torch alone: [1, classes, rows, columns]."""
    return stage(net, maps_of(net, image))


def maps_of(net: OverFeat, image: Tensor) -> Tensor:
    """The layers before the last pooling, in torch alone."""
    maps = net.normalise(image)
    for conv, spec in zip(net.conv_layers, net.architecture.convs, strict=True):
        maps = F.conv2d(maps, conv.weight, conv.bias, spec.stride, spec.pad).relu_()
        if spec.pool > 1 and conv is not net.conv_layers[-1]:
            maps = F.max_pool2d(maps, spec.pool)
    return maps


def stage(net: OverFeat, maps: Tensor) -> Tensor:
    """The last pooling and the full layers at every offset, in torch alone."""
    rows = first_layer(net, maps)
    for layer in net.fc_layers[1:]:
        rows = F.conv2d(rows, layer.weight, layer.bias)
        rows = rows if layer is net.fc_layers[-1] else rows.relu_()
    return rows


def first_layer(net: OverFeat, maps: Tensor) -> Tensor:
    """Of these the first: pooling at every offset and the skip-kernel convolution."""
    size, first = net.architecture.pool, net.fc_layers[0]
    return F.conv2d(F.max_pool2d(maps, size, 1), first.weight, first.bias, dilation=size).relu_()


def offset_loop(net: OverFeat, maps: Tensor, layers: int | None = None) -> Tensor:
    """The same, once for each offset of the last pooling, and interleaved: the paper's way; layers: so many of them."""
    size, kernel = net.architecture.pool, net.architecture.kernel
    rows, columns = (side - size * kernel + 1 for side in maps.shape[2:])
    fc_layers = net.fc_layers[:layers]
    output = maps.new_empty(len(maps), fc_layers[-1].weight.shape[0], rows, columns)
    for y in range(size):
        for x in range(size):
            hidden = F.max_pool2d(maps[:, :, y:, x:], size)
            for layer in fc_layers:
                hidden = F.conv2d(hidden, layer.weight, layer.bias)
                if layer is not net.fc_layers[-1]:
                    hidden = hidden.relu_()
            output[:, :, y::size, x::size] = hidden
    return output


def windows_alone(net: OverFeat, windows: Tensor) -> Tensor:
    """Windows, as they are trained on, in torch alone: [N, classes]."""
    rows = F.max_pool2d(maps_of(net, windows), net.architecture.pool).permute(0, 2, 3, 1).flatten(1)
    for layer in net.fc_layers:  # channels last, as the weights lie in memory
        rows = F.linear(rows, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)
        rows = rows if layer is net.fc_layers[-1] else rows.relu_()
    return rows
