"""One net at every position of images at several scales: resizing, mirror images, strides and tiles (section 3.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat import ops
from overfeat.data.resize import resize
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.context import context_features, half_resolution
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import Size
from overfeat.dense.tiling import Tile, classifier_bytes, outputs_per_position, plan_tiles, tile_features
from overfeat.models.architecture import Stride
from overfeat.models.overfeat import ContextFeatures, OverFeat, as_batch, eval_mode
from overfeat.regions import region


@dataclass(frozen=True)
class ScoreMap:
    """The class scores of one scale of images, or of their mirror images."""

    scores: Tensor  # softmax over the classes of every window, float32 [N, classes, h, w]
    grid: Grid  # which window of the image each position sees


@dataclass(frozen=True)
class EvaluatedTile(Tile):
    """A tile with what the net computed there."""

    features: Tensor  # the last maps behind its outputs, unpooled: [n, C, h', w']
    logits: Tensor  # flat logits of its positions, image by image, row by row: [n * h * w, classes]

    def scores(self) -> Tensor:
        """Softmax over the classes of every position: float32 [n * h * w, classes]."""
        return self.logits.float().softmax(dim=1)


@dataclass(frozen=True)
class TileGroup:
    """Tiles that passed through the classifier together; `logits` are those of all of them, in order."""

    tiles: list[EvaluatedTile]
    logits: Tensor


def score_maps(
    net: OverFeat, images: Tensor, *, scales: Scales = None, flip: bool | None = None, stride: Stride = "fine",
    memory_limit: int = MEMORY_LIMIT,
) -> list[ScoreMap]:  # fmt: skip
    """The class scores of every window at every scale (section 3.3).

    Args:
        images: Float or uint8 [N, 3, H, W] or [3, H, W], RGB in 0..255.
        scales, flip, stride, memory_limit: See `DenseConfig`; InputError for sizes below the window.

    Returns:
        A map for each scale and, with `flip`, its mirror image, with the window that each position sees.
    """
    images = as_batch(images)
    config = DenseConfig(scales, flip, stride, memory_limit)
    own_grids = grids(net, (images.shape[2], images.shape[3]), config)
    maps = [torch.empty(len(images), net.num_classes, *grid.shape, device=net.device) for grid in own_grids]
    for tile in evaluate_tiles(net, images, own_grids, config):
        scores = tile.scores().view(*tile.shape, net.num_classes).permute(0, 3, 1, 2)
        maps[tile.index][tile.batch, :, tile.rows, tile.columns] = scores
    return [ScoreMap(scores, grid) for scores, grid in zip(maps, own_grids, strict=True)]


def max_scores(net: OverFeat, images: Tensor, grids: Sequence[Grid], config: DenseConfig) -> Tensor:
    """The largest score of each class over the positions of each grid: [grids, N, classes] (section 3.3, i)."""
    largest = torch.zeros(len(grids), len(images), net.num_classes, device=net.device)
    for group in evaluate_groups(net, images, grids, config):
        counts = [height * width for n, height, width in (tile.shape for tile in group.tiles) for _ in range(n)]
        with region("scores"):
            scores = ops.class_scores(group.logits, counts).split([tile.shape[0] for tile in group.tiles])
        for tile, of_images in zip(group.tiles, scores, strict=True):
            running = largest[tile.index, tile.batch]
            torch.maximum(running, of_images, out=running)
    return largest


def evaluate_tiles(
    net: OverFeat, images: Tensor, grids: Sequence[Grid], config: DenseConfig
) -> Iterator[EvaluatedTile]:
    """Evaluate images [N, 3, H, W] at every position of the grids, tile by tile, within the memory limit."""
    for group in evaluate_groups(net, images, grids, config):
        yield from group.tiles


@torch.no_grad()
def evaluate_groups(
    net: OverFeat, images: Tensor, grids: Sequence[Grid], config: DenseConfig, box_channels: int = 0
) -> Iterator[TileGroup]:
    """`evaluate_tiles`, with the tiles of several scales and mirror images that pass the classifier together.

    As many as fit the memory limit do, so that the classifier's weights are read once. box_channels: of a regressor
    whose boxes must fit as well.
    """
    outputs, scaled = outputs_per_position(net, box_channels), _ScaledImages(net, images)
    pending: list[tuple[Tile, Tensor, ContextFeatures]] = []
    held = 0
    for index, grid in enumerate(grids):
        for tile in plan_tiles(net, len(images), grid, index, config, outputs):
            cost = classifier_bytes(net, tile, config.stride, outputs)
            if pending and held + cost > config.memory_limit // 2:
                yield _classify(net, pending, config.stride)
                held = 0
            scaled.resize(grid.scaled)
            context = context_features(net, scaled.half, tile, config.stride)
            pending.append((tile, tile_features(net, scaled.images, tile, config.stride), context))
            held += cost
    if pending:
        yield _classify(net, pending, config.stride)


def _classify(net: OverFeat, pending: list[tuple[Tile, Tensor, ContextFeatures]], stride: Stride) -> TileGroup:
    """Run the classifier over the maps of all pending tiles, and empty their list."""
    tiles, maps, context = (list(values) for values in zip(*pending, strict=True))
    pending.clear()
    with eval_mode(net):
        logits, _ = net.forward_head_flat(maps, stride, context if net.context is not None else ())
    split = logits.split([tile.num_positions for tile in tiles])
    evaluated = [
        EvaluatedTile(**vars(tile), features=features, logits=flat)
        for tile, features, flat in zip(tiles, maps, split, strict=True)
    ]
    return TileGroup(evaluated, logits)


class _ScaledImages:
    """The images at one scale and, for context, at half of it; a new scale frees the previous one first."""

    def __init__(self, net: OverFeat, images: Tensor):
        self._net, self._original = net, images
        self._size: Size | None = None
        self.images = images
        self.half: Tensor | None = None

    def resize(self, size: Size) -> None:
        if size == self._size:
            return
        self.images, self.half, self._size = self._original, None, size
        with region("resize"):
            self.images = resize(self._original, size)
            self.half = half_resolution(self._net, self._original, size)
