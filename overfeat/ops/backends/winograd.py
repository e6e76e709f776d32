"""Winograd's minimal filtering in float32 (Lavin and Gray, arXiv 1509.09308), for convolutions on a CPU.

A tile of 4 x 4 outputs takes (k+3)^2 multiplications a channel in place of 16 k^2: 4 times fewer for k = 3, 6 times
for k = 5, less what the tiles overhang. The dilation^2 phases of a map share one dense k x k kernel, so that it applies
to dilated convolutions too, the skip classifier's among them. Rounding errors are a few times those of a direct sum:
1.5e-6 of the results' size for k = 3, 3.5e-6 for k = 5.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat import toom_cook
from overfeat.ops.backends import workspace
from overfeat.ops.layout import concat

MAX_TILE = 8  # input positions along a side of a tile: larger ones lose accuracy
OUTPUT_TILE = 4  # outputs along its side, unless MAX_TILE limits it
# Interpolation points besides infinity; a tile of t input positions uses the first t - 1.
POINTS = [Fraction(p) for p in ("0", "1", "-1", "2", "-1/2", "-2", "1/2")]
TILES_AT_ONCE = 256  # these two bound the memory: a GEMM for each input position of so many tiles ...
OUTPUTS_AT_ONCE = 1024  # ... and so many output channels
EXTRA_CHANNELS, SPARE_ROWS = 16, 16  # see `empty_rows`
# The cost model, in multiplications of the GEMMs, about:
WEIGHT_READ_COST = 20  # of reading one weight from memory
TRANSFORM_COST = 13  # of one multiplication of a transform, which is bound by memory
MAX_COST_RATIO = 0.8  # of the direct convolution's cost, to be worth it

_enabled: ContextVar[bool] = ContextVar("overfeat_winograd", default=True)
_saved: ContextVar[list[int] | None] = ContextVar("overfeat_winograd_saved", default=None)


@contextmanager
def without_winograd() -> Iterator[None]:
    """Run every convolution of this thread as a direct sum inside the block."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def enabled() -> bool:
    """Whether minimal filtering may be used: not inside `without_winograd`."""
    return _enabled.get()


@contextmanager
def count_saved() -> Iterator[list[int]]:
    """Collect the multiply-accumulates that minimal filtering saves in this thread, one number a call of it."""
    saved: list[int] = []
    token = _saved.set(saved)
    try:
        yield saved
    finally:
        _saved.reset(token)


def record_saved(macs: int) -> None:
    """Add to the list of `count_saved`."""
    if macs and (saved := _saved.get()) is not None:
        saved.append(macs)


class Tiling(NamedTuple):
    """The outputs of a map, and the tiles of one phase down and across."""

    images: int
    height: int
    width: int
    down: int
    across: int


def _input_tile(k: int) -> int:
    return min(MAX_TILE, OUTPUT_TILE + k - 1)


def tiling(shape: Sequence[int], k: int, dilation: int) -> Tiling:
    """How the outputs of maps of shape [N, C, H, W] under a k x k kernel with a dilation are tiled."""
    n, _, height, width = shape
    height, width = height - (k - 1) * dilation, width - (k - 1) * dilation
    step = (_input_tile(k) - k + 1) * dilation
    return Tiling(n, height, width, -(-height // step), -(-width // step))


def saved_macs(tiles: Tiling, weight: Sequence[int], dilation: int) -> int:
    """Multiply-accumulates of direct sums under a weight [O, C, k, k], less those of the tiles' GEMMs."""
    outputs, channels, k, _ = weight
    direct = tiles.images * tiles.height * tiles.width * k**2
    filtered = tiles.images * dilation**2 * tiles.down * tiles.across * _input_tile(k) ** 2
    return outputs * channels * (direct - filtered)


def pays_off(maps: list[Tensor], weight: Tensor, dilation: int) -> bool:
    """Whether minimal filtering applies and costs less than the direct sum, transforms and memory included."""
    outputs, channels, k, k_x = weight.shape
    if weight.dtype != torch.float32 or k != k_x or not 3 <= k < MAX_TILE or not enabled():
        return False
    tile, positions, tiles = _input_tile(k), 0, 0
    for m in maps:
        n, height, width, down, across = tiling(m.shape, k, dilation)
        positions += n * height * width
        tiles += n * dilation * dilation * down * across
    transforms = TRANSFORM_COST * (tile**2 / outputs + (tile - k + 1) ** 2 / channels)
    cost = tile**2 * (tiles * (1 + transforms) + WEIGHT_READ_COST)
    return cost < MAX_COST_RATIO * k**2 * (positions + WEIGHT_READ_COST)


def empty_rows(n: int, count: int, channels: int) -> Tensor:
    """Uninitialised rows [n, count, C + EXTRA_CHANNELS]; what follows them in memory can be read, too.

    C is often a power of two: rows that follow each other would share the sets of a cache.
    """
    return workspace.empty(n * count + SPARE_ROWS, channels + EXTRA_CHANNELS)[: n * count].unflatten(0, (n, count))


def transform_weight(weight: Tensor) -> Tensor:
    """[O, C, k, k] -> [t*t, O, C]: the weight for `multiply_in_chunks`."""
    outputs, channels, k, _ = weight.shape
    _, of_weights, _ = transforms(k)
    taps = weight.detach().permute(2, 3, 0, 1).reshape(k * k, -1)
    return (of_weights @ taps).view(-1, outputs, channels)


def multiply_in_chunks(transformed: Tensor, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """inputs [t*t, tiles, C] by a transformed weight [t*t, O, C]: (first output, [t*t, tiles, O']) in turn."""
    for first in range(0, transformed.shape[1], OUTPUTS_AT_ONCE):
        yield first, torch.bmm(inputs, transformed[:, first : first + OUTPUTS_AT_ONCE].transpose(1, 2))


def convolve(
    maps: list[Tensor], multiply: Callable[[Tensor], Iterator[tuple[int, Tensor]]], outputs: int, k: int, dilation: int
) -> Tensor:
    """The convolution of maps [N, C, H, W] with a dilation: flat outputs [positions, O].

    The maps are channels last and of one C; multiply: `multiply_in_chunks` of the weight by `transform_weight`.
    """
    of_outputs, _, of_maps = transforms(k)
    tile, m = _input_tile(k), _input_tile(k) - k + 1
    of_each = [_tiles(x, k, dilation) for x in maps]
    tiles = of_each[0] if len(maps) == 1 else torch.cat(of_each, dim=1)
    results = workspace.empty(m * m, tiles.shape[1], outputs)
    for start in range(0, tiles.shape[1], TILES_AT_ONCE):
        chunk = tiles[:, start : start + TILES_AT_ONCE]
        inputs = empty_rows(tile**2, chunk.shape[1], maps[0].shape[1])
        torch.mm(of_maps, chunk.reshape(tile**2, -1), out=inputs.view(tile**2, -1))
        for o, gemms in multiply(inputs[..., : maps[0].shape[1]]):
            block = (of_outputs @ gemms.view(tile**2, -1)).view(m * m, *gemms.shape[1:])
            results[:, start : start + TILES_AT_ONCE, o : o + gemms.shape[2]] = block
    flat, start = [], 0
    for x in maps:
        of_map = tiling(x.shape, k, dilation)
        record_saved(saved_macs(of_map, (outputs, x.shape[1], k, k), dilation))
        n, height, width, down, across = of_map
        count = n * dilation * down * dilation * across
        chunk = results[:, start : start + count].view(m, m, n, dilation, down, dilation, across, outputs)
        chunk = chunk.permute(2, 4, 0, 3, 6, 1, 5, 7).reshape(n, down * m * dilation, across * m * dilation, outputs)
        flat.append(chunk[:, :height, :width].reshape(-1, outputs))
        start += count
    return concat(flat)


def _tiles(maps: Tensor, k: int, dilation: int) -> Tensor:
    """[N, C, H, W] -> [t*t, tiles, C + EXTRA_CHANNELS], the tiles by image, row phase, row, column phase and column."""
    n, _, _, down, across = tiling(maps.shape, k, dilation)
    tile, m = _input_tile(k), _input_tile(k) - k + 1
    height, width = (down * m + k - 1) * dilation, (across * m + k - 1) * dilation
    # Up to dilation * (m - 1) more rows and columns, where the last tiles overhang.
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, EXTRA_CHANNELS, 0, width - maps.shape[3], 0, height - maps.shape[2]))
    s_n, s_h, s_w, s_c = padded.stride()
    # Position (i, j) of tile (t, u) of phase (y, x) is ((t*m + i)*dilation + y, (u*m + j)*dilation + x).
    shape = (tile, tile, n, dilation, down, dilation, across, padded.shape[3])
    strides = (dilation * s_h, dilation * s_w, s_n, s_h, m * dilation * s_h, s_w, m * dilation * s_w, s_c)
    return padded.as_strided(shape, strides, padded.storage_offset()).reshape(tile**2, -1, padded.shape[3])


@lru_cache
def transforms(k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of the outputs, the weights and the maps, each for both axes at once: see toom_cook.transforms.

    Returns:
        [m*m, t*t], [t*t, k*k], [t*t, t*t] for tiles of t x t input positions and m x m outputs.
    """
    tile = _input_tile(k)
    matrices = toom_cook.transforms(tile - k + 1, k, tuple(POINTS[: tile - 1]))
    of_outputs, of_weights, of_maps = (toom_cook.both_axes(t).to(dtype) for t in matrices)
    return of_outputs, of_weights, of_maps
