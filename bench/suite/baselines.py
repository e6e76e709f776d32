"""Baselines of the suite: the same scores in plain PyTorch, window by window, offset by offset, or by MONAI."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.data.resize import resize
from overfeat.models.overfeat import OverFeat


def cropped_windows(
    evaluate: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch: int
) -> Tensor:
    """evaluate([N, C, window, window]) -> [N, outputs] on each window of an image, in batches: [1, outputs, H, W]."""
    crops = image.unfold(2, window, stride).unfold(3, window, stride)[0].permute(1, 2, 0, 3, 4)
    positions = torch.arange(crops.shape[0] * crops.shape[1], device=image.device).split(batch)
    outputs = torch.cat([evaluate(crops[chunk // crops.shape[1], chunk % crops.shape[1]]) for chunk in positions])
    return outputs.T.view(1, -1, *crops.shape[:2])


def monai_patches(evaluate: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch: int) -> Tensor:
    """`cropped_windows` by MONAI's PatchInferer; windows may touch, but not have gaps between them."""
    from monai.inferers import PatchInferer, SlidingWindowSplitter
    from monai.inferers.merger import Merger

    shape = [(side - window) // stride + 1 for side in image.shape[2:]]

    class InOrder(Merger):
        """Windows arrive in row-major order; MONAI's own locations refer to an output of 1 x 1 per window."""

        def __init__(self, merged_shape=None, **_):
            super().__init__(merged_shape=merged_shape)
            self.outputs = []

        def aggregate(self, values, location):
            self.outputs.append(values.flatten(1))

        def finalize(self):
            return torch.cat(self.outputs).T.view(1, -1, *shape)

    splitter = SlidingWindowSplitter((window, window), window - stride, pad_mode=None)
    inferer = PatchInferer(splitter, merger_cls=InOrder, batch_size=batch, match_spatial_shape=False)
    return inferer(image, lambda windows: evaluate(windows)[:, :, None, None])


def eager(net: OverFeat, image: Tensor) -> Tensor:
    """Scores of all windows of an image in plain PyTorch: [1, classes, H, W]."""
    return classifier(net, features(net, image))


def features(net: OverFeat, image: Tensor) -> Tensor:
    """The convolutional layers before the last pooling, in plain PyTorch."""
    maps = net.normalise(image)
    for conv, spec in zip(net.conv_layers, net.architecture.convs, strict=True):
        maps = F.conv2d(maps, conv.weight, conv.bias, spec.stride, spec.pad).relu_()
        if spec.pool > 1 and conv is not net.conv_layers[-1]:
            maps = F.max_pool2d(maps, spec.pool)
    return maps


def classifier(net: OverFeat, maps: Tensor) -> Tensor:
    """The last pooling and the fully connected layers at every offset, in plain PyTorch."""
    hidden = first_layer(net, maps)
    for layer in net.fc_layers[1:]:
        hidden = F.conv2d(hidden, layer.weight, layer.bias)
        hidden = hidden if layer is net.fc_layers[-1] else hidden.relu_()
    return hidden


def first_layer(net: OverFeat, maps: Tensor) -> Tensor:
    """Pooling at every offset and the first fully connected layer, as a dilated convolution."""
    size, first = net.architecture.pool, net.fc_layers[0]
    return F.conv2d(F.max_pool2d(maps, size, 1), first.weight, first.bias, dilation=size).relu_()


def offset_loop(net: OverFeat, maps: Tensor, layers: int | None = None) -> Tensor:
    """The classifier once per offset of the last pooling, interleaved, as in the paper; `layers`: how many."""
    size, kernel = net.architecture.pool, net.architecture.kernel
    height, width = (side - size * kernel + 1 for side in maps.shape[2:])
    fc_layers = net.fc_layers[:layers]
    output = maps.new_empty(len(maps), fc_layers[-1].weight.shape[0], height, width)
    for y in range(size):
        for x in range(size):
            hidden = F.max_pool2d(maps[:, :, y:, x:], size)
            for layer in fc_layers:
                hidden = F.conv2d(hidden, layer.weight, layer.bias)
                if layer is not net.fc_layers[-1]:
                    hidden = hidden.relu_()
            output[:, :, y::size, x::size] = hidden
    return output


def single_windows(net: OverFeat, windows: Tensor) -> Tensor:
    """Scores of separate windows, as in training, in plain PyTorch: [N, classes]."""
    flat = F.max_pool2d(features(net, windows), net.architecture.pool).permute(0, 2, 3, 1).flatten(1)
    for layer in net.fc_layers:  # channels last, the memory layout of the weights
        flat = F.linear(flat, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)
        flat = flat if layer is net.fc_layers[-1] else flat.relu_()
    return flat


@torch.no_grad()
def vote(
    windows: Callable[[OverFeat, Tensor], Tensor], scales: Sequence[tuple[int, int]], flip: bool, net: OverFeat,
    images: Tensor,
) -> Tensor:  # fmt: skip
    """The mean over scales, and flips, of each class's maximum softmax score over the windows."""
    maxima = []
    for size in scales:
        scaled = resize(images, size)
        scores = windows(net, torch.cat([scaled, scaled.flip(-1)]) if flip else scaled).float().softmax(dim=1)
        maxima.append(scores.amax(dim=(2, 3)).view(1 + flip, len(images), -1).mean(dim=0))
    return torch.stack(maxima).mean(dim=0)


def _fine_stride(crop: Callable[..., Tensor], net: OverFeat, image: Tensor, batch: int) -> Tensor:
    """Each window of the fine-stride grid cropped and evaluated on its own, in batches: [1, classes, H, W]."""
    return crop(partial(single_windows, net), image, net.architecture.window, net.architecture.fine_stride, batch)


naive_windows, monai_windows = partial(_fine_stride, cropped_windows), partial(_fine_stride, monai_patches)
