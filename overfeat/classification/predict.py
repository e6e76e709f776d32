"""Classification: the ways of voting of sections 3.3 and 3.4."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overfeat.data.resize import resize_short_side
from overfeat.dense.evaluate import best_scores
from overfeat.dense.grid import grids
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY
from overfeat.errors import InputError
from overfeat.models.architecture import Stride
from overfeat.models.overfeat import OverFeat, as_batch, eval_mode

VIEWS_AT_ONCE = 32  # images whose crops are held together
Nets = OverFeat | Sequence[OverFeat]
Images = Tensor | Sequence[Tensor]


def classify(
    nets: Nets,
    images: Images,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    memory: int = MEMORY,
) -> Tensor:
    """Score of every class for each image, from all places of all scales (section 3.3).

    At each scale and flip: softmax at every place, then for each class the maximum over the
    places; then the mean over scales and flips. The scores of an image need not sum to 1.

    nets: one net, or several whose scores are averaged (a committee). images: [N, 3, H, W],
    [3, H, W], or a list of [3, H, W] of any sizes, float or uint8, RGB in 0..255. scales:
    see `dense.scale_sizes`; all six by default. flip: None does as each net was trained. memory:
    see `dense.score_maps`. Gives float32 [N, classes] on the net's device.
    """

    return _vote(nets, images, lambda net, batch: scale_scores(net, batch, scales, flip, stride, memory).mean(dim=0))


def scale_scores(
    net: OverFeat,
    images: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    memory: int = MEMORY,
) -> Tensor:
    """Each class's best score over the places of each scale and flip (section 3.3, i).

    Arguments as in `classify`, but one net and images of one size. Gives [scales * flips, N,
    classes], in the order of `dense.grids`; `classify` is the mean over the first axis.
    """
    images = as_batch(images)
    return best_scores(net, images, grids(net, tuple(images.shape[2:]), scales, flip, stride), stride, memory)


def centre_crop(nets: Nets, images: Images) -> Tensor:
    """Score of every class from one window in the centre of the image: softmax, [N, classes].

    The image's shorter side is first resized as in training (architecture.short_side).
    Arguments as in `classify`.
    """
    return _vote(nets, images, lambda net, batch: _views(net, batch, [(0.5, 0.5)], flip=False))


def ten_views(nets: Nets, images: Images, flip: bool | None = None) -> Tensor:
    """Mean softmax of the four corners and the centre, with their mirror images: [N, classes].

    The voting of Krizhevsky et al. that section 3.3 compares with; five views where `flip` is
    False, or None and the net was not trained on mirror images. Arguments as in `classify`.
    """
    places = [(0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)]
    return _vote(nets, images, lambda net, batch: _views(net, batch, places, net.flip if flip is None else flip))


@torch.no_grad()
def _views(net: OverFeat, batch: Tensor, places: Sequence[tuple[float, float]], flip: bool) -> Tensor:
    window = net.architecture.window
    if len(batch) > VIEWS_AT_ONCE:
        return torch.cat([_views(net, part, places, flip) for part in batch.split(VIEWS_AT_ONCE)])
    batch = resize_short_side(batch, net.architecture.short_side).to(net.device)
    crops = []
    for y, x in places:
        top, left = round(y * (batch.shape[2] - window)), round(x * (batch.shape[3] - window))
        crop = batch[:, :, top : top + window, left : left + window]
        crops += [crop, crop.flip(-1)] if flip else [crop]
    with eval_mode(net):
        scores = net(torch.cat(crops)).float().softmax(dim=1).flatten(1)
    return scores.view(len(crops), len(batch), -1).mean(dim=0)


def _vote(nets: Nets, images: Images, vote: Callable[[OverFeat, Tensor], Tensor]) -> Tensor:
    """The committee's mean vote on every image; images of one size go through together."""
    nets = [nets] if isinstance(nets, OverFeat) else list(nets)
    if not nets:
        raise InputError("a committee needs at least one net")
    for net in nets[1:]:
        if net.class_names != nets[0].class_names:
            raise InputError("the nets of a committee must have the same classes in the same order")
    if isinstance(images, Tensor):
        batches = [(slice(None), as_batch(images))]
        count = len(as_batch(images))
    else:
        count, sizes = len(images), {}
        for i, image in enumerate(images):
            sizes.setdefault((tuple(image.shape[-2:]), image.dtype), []).append(i)
        batches = [(alike, torch.cat([as_batch(images[i]) for i in alike])) for alike in sizes.values()]
    scores = torch.empty(count, nets[0].num_classes, device=nets[0].conv_layers[0].weight.device)
    for where, batch in batches:
        scores[where] = torch.stack([vote(net, batch).to(scores.device) for net in nets]).mean(dim=0)
    return scores
