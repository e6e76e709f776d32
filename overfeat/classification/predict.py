"""Classification: the voting schemes of sections 3.3 and 3.4."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.data.resize import resize_short_side
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.evaluate import max_scores
from overfeat.dense.grid import grids
from overfeat.dense.inputs import Images, batches
from overfeat.errors import InputError, check_flag
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, as_batch, eval_mode
from overfeat.models.wrappers import Nets, as_nets

CROP_BATCH = 32  # images whose crops are in memory together, at most


def classify(
    nets: Nets, images: Images, *, scales: Scales = None, flip: bool | None = None, stride: Stride | None = None,
    memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
) -> Tensor:  # fmt: skip
    """Score of every class for each image, from all positions of all scales (section 3.3).

    At each scale and flip: probabilities (softmax) at every position, then for each class the maximum over the
    positions; then the mean over scales and flips. The scores of an image need not sum to 1.

    Args:
        nets: One net, or an ensemble whose scores are averaged (the paper's "7 models").
        images: A path, a PIL image, an array or a tensor, of several images too, or a list or generator of images of
            any sizes. See `each_image`.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.

    Returns:
        float32 [N, classes] on the first net's device.

    Raises:
        InputError: For sizes below the window, too little memory, or nets of different classes.
    """
    config = DenseConfig(scales, flip, stride, memory_limit)
    return mean_over_nets(nets, images, lambda net, batch: scale_scores(net, batch, config).mean(dim=0), value_range)


def scale_scores(net: Net, images: Tensor, config: DenseConfig) -> Tensor:
    """Each class's best score over the positions of each scale and flip (section 3.3, i).

    For images of one size, [N, C, H, W] or [C, H, W], these are [scales * flips, N, classes], in the order of
    `dense.grid.grids`; `classify` is the mean over the first axis.
    """
    images = as_batch(images, net.in_channels)
    return max_scores(net, images, grids(net, (images.shape[2], images.shape[3]), config), config.memory_limit)


def centre_crop(nets: Nets, images: Images, *, value_range: ValueRange | None = None) -> Tensor:
    """Score of every class from one window in the centre of the image: its probability, [N, classes].

    The image's shorter side is first resized to net.geometry.short_side, as in training.
    Arguments as in `classify`.
    """
    corners = [(0.5, 0.5)]
    return mean_over_nets(nets, images, lambda net, batch: _crop_scores(net, batch, corners, flip=False), value_range)


def ten_views(nets: Nets, images: Images, *, flip: bool | None = None, value_range: ValueRange | None = None) -> Tensor:
    """Mean probabilities of the four corners and the centre, with their mirror images: [N, classes].

    The voting of Krizhevsky et al. that section 3.3 compares with; five views where `flip` is
    False, or None and the net was not trained on mirror images. Arguments as in `classify`.
    """
    if flip is not None:
        check_flag("flip", flip)
    corners = [(0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)]

    def score(net: Net, batch: Tensor) -> Tensor:
        return _crop_scores(net, batch, corners, net.flip if flip is None else flip)

    return mean_over_nets(nets, images, score, value_range)


@torch.no_grad()
def _crop_scores(net: Net, batch: Tensor, corners: Sequence[tuple[float, float]], flip: bool) -> Tensor:
    """Mean probabilities of the windows at these fractions of the room for them (y, x): [N, classes]."""
    geometry, batch = net.geometry, as_batch(batch, net.in_channels)
    together = _images_together(net, len(corners) * (2 if flip else 1))
    if len(batch) > together:
        return torch.cat([_crop_scores(net, chunk, corners, flip) for chunk in batch.split(together)])
    batch = resize_short_side(batch, geometry.short_side).to(net.device)
    height, width = geometry.window
    if not geometry.fits((batch.shape[2], batch.shape[3])):
        raise InputError(
            f"resized to {batch.shape[2]}x{batch.shape[3]} the image is smaller than the "
            f"{geometry.name} net's window of {height}x{width}; use classify"
        )
    crops = []
    for y, x in corners:
        top, left = round(y * (batch.shape[2] - height)), round(x * (batch.shape[3] - width))
        crop = batch[:, :, top : top + height, left : left + width]
        crops += [crop, crop.flip(-1)] if flip else [crop]
    with eval_mode(net):
        scores = net.probabilities(net.class_maps(torch.cat(crops))).flatten(1)
    return scores.view(len(crops), len(batch), -1).mean(dim=0)


def _images_together(net: Net, crops: int) -> int:
    """How many images' crops, so many of each, are in memory together."""
    rows, columns = (net.input_span(i, side, slice(0, 1), "coarse") for i, side in enumerate(net.geometry.window))
    return max(1, min(CROP_BATCH, MEMORY_LIMIT // max(net.tile_bytes(crops, rows, columns, "coarse"))))


def mean_over_nets(
    nets: Nets, images: Images, score: Callable[[Net, Tensor], Tensor], value_range: ValueRange | None = None
) -> Tensor:
    """The ensemble's mean score of every image; images of one size are evaluated together."""
    nets = as_nets(nets)
    device = nets[0].device
    order: list[int] = []
    means = [torch.empty(0, nets[0].num_classes, dtype=torch.float32, device=device)]
    for numbers, batch in batches(nets, images, value_range):
        means.append(torch.stack([score(net, batch).to(device) for net in nets]).mean(dim=0))
        order += numbers
    return torch.cat(means)[torch.tensor(order, dtype=torch.long, device=device).argsort()]
