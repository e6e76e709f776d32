"""One net over every place of an image at several sizes: scales, flips, strides and tiles (section 3.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat import ops, regions
from overfeat.data.resize import resize
from overfeat.dense.context import context_features, half_resolution
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY, Tile, classifier_bytes, part_features, plan_tiles
from overfeat.models.architecture import Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import ContextFeatures, OverFeat, as_batch, eval_mode
from overfeat.ops.boxes import decode, mirrored


@dataclass(frozen=True)
class ScoreMap:
    """What one scale of an image, mirrored or not, says of each of its windows.

    scores: [N, classes, h, w], softmax over the classes. grid: which window of the image each
    place is (geometry.Grid).
    """

    scores: Tensor
    grid: Grid


def score_maps(
    net: OverFeat,
    images: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    memory: int = MEMORY,
) -> list[ScoreMap]:
    """The scores of every window at every scale, with the windows' places in the image.

    images: float or uint8 [N, 3, H, W] (or [3, H, W]), RGB in 0..255. scales: see `scale_sizes`.
    memory: bytes for the maps in between; what needs more is evaluated in tiles, to the same
    result up to rounding. Raises InputError for sizes below the window or too little memory.
    """
    images = as_batch(images)
    found = grids(net, tuple(images.shape[2:]), scales, flip, stride)
    device = net.device
    maps = [
        torch.empty(len(images), net.num_classes, *grid.shape, dtype=torch.float32, device=device) for grid in found
    ]
    for part, scores in score_parts(net, images, found, stride, memory):
        maps[part.grid][part.batch, :, part.rows, part.columns] = scores
    return [ScoreMap(scores, grid) for scores, grid in zip(maps, found, strict=True)]


def score_parts(
    net: OverFeat, images: Tensor, found: Sequence[Grid], stride: Stride, memory: int = MEMORY
) -> Iterator[tuple[Tile, Tensor]]:
    """The same scores in parts, each of one map [n, classes, h, w], as they are computed; nothing is held."""
    for parts, logits, shapes, _ in evaluate_tiles(net, images, found, stride, memory):
        rows = logits.float().softmax(dim=1).split([n * height * width for n, height, width in shapes])
        for part, shape, scores in zip(parts, shapes, rows, strict=True):
            yield part, scores.view(*shape, net.num_classes).permute(0, 3, 1, 2)


@torch.no_grad()
def box_parts(
    net: OverFeat,
    regressor: BoxRegressor,
    images: Tensor,
    found: Sequence[Grid],
    stride: Stride,
    memory: int,
    choose: Callable[[Tile, Tensor], Tensor],
) -> Iterator[tuple[Tile, Tensor, Tensor, Tensor]]:
    """The scores of each part [places, classes] with the boxes of some of its places.

    choose(part, scores): which, bool [places], counted image by image, line by line. Gives the part, scores
    and what was chosen, and the boxes [chosen, classes or 1, 4] in pixels of the images as given.
    """
    for parts, logits, shapes, maps in evaluate_tiles(net, images, found, stride, memory, [regressor]):
        scores = logits.float().softmax(dim=1).split([n * height * width for n, height, width in shapes])
        chosen = [choose(part, s) for part, s in zip(parts, scores, strict=True)]
        if not any(mask.any() for mask in chosen):
            continue
        places = [mask.nonzero()[:, 0] for mask in chosen]
        with eval_mode(regressor):
            values = regressor.rows(maps, stride, places)[0].float().split([len(p) for p in places])
        for part, shape, s, mask, p, v in zip(parts, shapes, scores, chosen, places, values, strict=True):
            grid = found[part.grid]
            windows = torch.from_numpy(grid.boxes(part.rows, part.columns)).to(v).view(-1, 1, 4)
            if grid.flipped:
                v = mirrored(v, regressor.form)
            yield part, s, mask, decode(v, windows[p % (shape[1] * shape[2])], regressor.form)


def best_scores(net: OverFeat, images: Tensor, found: Sequence[Grid], stride: Stride, memory: int = MEMORY) -> Tensor:
    """The largest score of each class over the places of each grid: [grids, N, classes] (section 3.3, i)."""
    best = torch.zeros(len(found), len(images), net.num_classes, dtype=torch.float32, device=net.device)
    for parts, logits, shapes, _ in evaluate_tiles(net, images, found, stride, memory):
        counts = [height * width for n, height, width in shapes for _ in range(n)]
        scores = regions.run("scores", ops.class_scores, logits, counts).split([n for n, _, _ in shapes])
        for part, of_images in zip(parts, scores, strict=True):
            so_far = best[part.grid, part.batch]
            torch.maximum(so_far, of_images, out=so_far)
    return best


@torch.no_grad()
def evaluate_tiles(
    net: OverFeat,
    images: Tensor,
    found: Sequence[Grid],
    stride: Stride,
    memory: int,
    heads: Sequence[BoxRegressor] = (),
) -> Iterator[tuple[list[Tile], Tensor, list[tuple[int, int, int]], list[Tensor]]]:
    """Parts, the class scores of all their places before the softmax, (n, h, w) of each part, and its last maps.

    Maps of several scales and flips pass through the classifier together, as many as fit. heads: for whose
    outputs, too, there must be memory.
    """
    waiting: list[tuple[Tile, Tensor, ContextFeatures]] = []
    taken = 0
    # A place's box is written, decoded and scaled before the next part comes.
    outputs = 3 * net.num_classes + sum(16 * head.fc_layers[-1].out_channels for head in heads)
    outputs += 3 * net.fc_layers[0].out_channels if net.context is not None else 0

    def flush():
        with eval_mode(net):
            parts, maps, seen = (list(values) for values in zip(*waiting, strict=True))
            logits, shapes = net.forward_head_flat(maps, stride, seen if net.context is not None else ())
        waiting.clear()
        return parts, logits, shapes, maps

    scaled, size = images, None
    for number, grid in enumerate(found):
        if grid.scaled != size:
            size, scaled, half = grid.scaled, None, None  # the last size makes room first
            scaled = regions.run("resize", resize, images, size)
            half = regions.run("resize", half_resolution, net, images, size)
        for batch, rows, columns in plan_tiles(net, len(images), grid, stride, memory, outputs):
            cost = classifier_bytes(net, batch, rows, columns, stride, outputs)
            if waiting and taken + cost > memory // 2:
                yield flush()
                taken = 0
            part = Tile(number, batch, rows, columns)
            tile = scaled[batch]
            seen = context_features(net, None if half is None else half[batch], len(tile), grid, rows, columns, stride)
            waiting.append((part, part_features(net, tile, grid, rows, columns, stride), seen))
            taken += cost
    if waiting:
        yield flush()
