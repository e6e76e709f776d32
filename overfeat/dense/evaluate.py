"""One net at every position of images at several scales: resizing, mirror images, strides and tiles (section 3.3)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overfeat import ops
from overfeat.data.arrays import ValueRange
from overfeat.data.resize import resize
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.context import add_border, context_features, half_resolution
from overfeat.dense.grid import Grid, grids
from overfeat.dense.inputs import Images, image_batch
from overfeat.dense.maps import ScoreMap, ScoreMaps
from overfeat.dense.source import Source
from overfeat.dense.tiling import Pixels, Tile, plan_tiles, tile_bytes, tile_features
from overfeat.models.geometry import Size, Stride
from overfeat.models.net import Net, eval_mode
from overfeat.models.overfeat import ContextFeatures
from overfeat.models.wrappers import as_net
from overfeat.regions import region

ScaledPixels = tuple[Pixels, Pixels | None]  # images at a scale and, for context, at half of it


@dataclass(frozen=True)
class EvaluatedTile(Tile):
    """A tile with what the net computed there."""

    features: Any  # of `Net.tile_features`; of a built-in net the last maps behind its outputs, unpooled
    outputs: Tensor  # flat outputs of its positions, image by image, row by row: [n * h * w, classes]


@dataclass(frozen=True)
class TileGroup:
    """Tiles that passed through the head together; `outputs` are those of all of them, in order."""

    tiles: list[EvaluatedTile]
    outputs: Tensor


def score_maps(
    net: Net, images: Images, *, scales: Scales = None, flip: bool | None = None, stride: Stride | None = None,
    memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
) -> ScoreMaps:  # fmt: skip
    """The class scores of every window at every scale (section 3.3).

    Args:
        images: A path, a PIL image, an array or a tensor, of several images too, or a list of images; of one size.
            See `each_image`.
        scales, flip, stride, memory_limit: See `DenseConfig`; InputError for sizes below the window.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.

    Returns:
        A map for each scale and, with `flip`, its mirror image, with the window that each position sees: a list, which
        a notebook shows as a heat map.
    """
    net = as_net(net)
    batch = image_batch(net, images, value_range)
    size = batch.shape[2], batch.shape[3]
    own_grids = grids(net, size, DenseConfig(scales, flip, stride, memory_limit))
    maps, source = grid_scores(net, batch, own_grids, memory_limit), Source.of(net, images, size, value_range)
    return ScoreMaps(ScoreMap(scores, grid).with_source(source) for scores, grid in zip(maps, own_grids, strict=True))


def grid_scores(net: Net, images: Tensor, grids: Sequence[Grid], memory_limit: int = MEMORY_LIMIT) -> list[Tensor]:
    """The class scores of images [N, C, H, W] at every position of each grid, float32 [N, classes, h, w]."""
    kind: dict[str, Any] = {"dtype": torch.float32, "device": net.device}
    maps = [torch.empty(len(images), net.num_classes, *grid.shape, **kind) for grid in grids]
    for tile in evaluate_tiles(net, images, grids, memory_limit):
        scores = net.probabilities(tile.outputs).view(*tile.shape, net.num_classes).permute(0, 3, 1, 2)
        maps[tile.index][tile.batch, :, tile.rows, tile.columns] = scores
    return maps


def max_scores(net: Net, images: Tensor, grids: Sequence[Grid], memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """The largest score of each class over the positions of each grid: [grids, N, classes] (section 3.3, i)."""
    shape = (len(grids), len(images), net.num_classes)
    largest = torch.full(shape, -torch.inf, dtype=torch.float32, device=net.device)
    for group in evaluate_groups(net, images, grids, memory_limit):
        counts = [height * width for n, height, width in (tile.shape for tile in group.tiles) for _ in range(n)]
        with region("scores"):
            if net.activation == "softmax":
                each = ops.class_scores(group.outputs, counts)
            else:
                each = torch.stack([s.amax(dim=0) for s in net.probabilities(group.outputs).split(counts)])
        for tile, scores in zip(group.tiles, each.split([tile.shape[0] for tile in group.tiles]), strict=True):
            running = largest[tile.index, tile.batch]
            torch.maximum(running, scores, out=running)
    return largest


def evaluate_tiles(
    net: Net, images: Tensor, grids: Sequence[Grid], memory_limit: int = MEMORY_LIMIT
) -> Iterator[EvaluatedTile]:
    """Evaluate images [N, C, H, W] at every position of the grids, tile by tile, within the memory limit."""
    for group in evaluate_groups(net, images, grids, memory_limit):
        yield from group.tiles


def evaluate_groups(
    net: Net, images: Tensor, grids: Sequence[Grid], memory_limit: int = MEMORY_LIMIT, box_channels: int = 0
) -> Iterator[TileGroup]:
    """`evaluate_tiles`, with the tiles of several scales and mirror images that pass the head together.

    box_channels: of a regressor whose boxes must fit as well.
    """
    tiles = (
        tile
        for index, grid in enumerate(grids)
        for tile in plan_tiles(net, len(images), grid, index, memory_limit, box_channels)
    )
    return run_tiles(net, tiles, _ScaledImages(net, images).at, memory_limit, box_channels)


@torch.no_grad()
def run_tiles(
    net: Net, tiles: Iterable[Tile], pixels: Callable[[Grid], ScaledPixels], memory_limit: int = MEMORY_LIMIT,
    box_channels: int = 0,
) -> Iterator[TileGroup]:  # fmt: skip
    """Evaluate tiles, as many as fit the memory limit together, so that the head's weights are read once.

    Args:
        tiles: Of which two fit the memory limit, see `plan_tiles`.
        pixels: Gives what the tiles of a grid see.
        box_channels: Of a regressor.
    """
    pending: list[_Pending] = []
    held = 0
    for tile in tiles:
        _, cost = tile_bytes(net, tile, box_channels, memory_limit // 2 - held)
        if pending and held + cost > memory_limit // 2:
            yield _run_head(net, pending)
            held = 0
        pending.append(_prepare(net, tile, *pixels(tile.grid)))
        held += cost
    if pending:
        yield _run_head(net, pending)


_Pending = tuple[Tile, Any, ContextFeatures | None]  # a tile, and what its head needs


def _prepare(net: Net, tile: Tile, images: Pixels, half: Pixels | None) -> _Pending:
    """What the head needs of a tile."""
    context = None if net.context is None else context_features(net, half, tile)
    with eval_mode(net):
        return tile, tile_features(net, images, tile), context


def _run_head(net: Net, pending: list[_Pending]) -> TileGroup:
    """Run the head over all pending tiles, and empty their list."""
    tiles, features, context = (list(values) for values in zip(*pending, strict=True))
    pending.clear()
    with eval_mode(net):
        outputs, _ = net.forward_head_flat(features, tiles[0].grid.stride, [c for c in context if c is not None])
    split = outputs.split([tile.num_positions for tile in tiles])
    evaluated = [
        EvaluatedTile(**vars(tile), features=of_tile, outputs=flat)
        for tile, of_tile, flat in zip(tiles, features, split, strict=True)
    ]
    return TileGroup(evaluated, outputs)


class _ScaledImages:
    """The images at one scale and, for context, at half of it, with margins; a new scale frees the previous one."""

    def __init__(self, net: Net, images: Tensor):
        self._net, self._original = net, images
        self._now: tuple[Size, Size] | None = None
        self._pixels: ScaledPixels | None = None

    def at(self, grid: Grid) -> ScaledPixels:
        if self._pixels is None or (grid.scaled, grid.margin) != self._now:
            self._pixels, self._now = None, (grid.scaled, grid.margin)
            with region("resize"):
                images = add_border(self._net, resize(self._original, grid.scaled), grid.margin)
                half = half_resolution(self._net, self._original, grid.scaled, grid.margin)
            self._pixels = Pixels(images, grid.scaled), half
        return self._pixels
