"""Convolutions and full layers on a CPU, with weights prepared once and not on every call.

The first call with a weight runs the stock implementation; from the second on, for as long as the
weight stays as it is, a prepared form of it is used. There are two, each made when it is first wanted:

- packed, as the machine's library (oneDNN) wants it for a convolution or a linear layer: stock torch packs at
  every call, or multiplies without;
- transformed, float32 alone, for Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308): a
  tile of 4 x 4 outputs takes (k+3)^2 multiplications a channel in place of 16 k^2: 4 times fewer
  for k = 3, 6 times for k = 5, less what the tiles overhang. In the classifier the p*p phases of the
  pooled map share one dense k x k kernel, so that it applies there too. Rounding errors are a few
  times those of a plain sum: 1.5e-6 of the results' size for k = 3, 3.5e-6 for k = 5.

The prepared forms take up to 3.5 times the memory of the weights; `forget` frees them. A weight that is
changed as usual, in place or by an optimiser, is prepared anew. Changes behind torch's back, through `.data`
or numpy, are seen where they touch a whole output or input channel; after one of single numbers call `forget`.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops.backends import eager

LARGEST_TILE = 8  # cells along a side of a transformed tile: larger ones lose accuracy
STEP = 4  # outputs along its side, where it is not the largest
# Numbers to interpolate at, besides infinity; a tile of t cells takes the first t - 1.
POINTS = [Fraction(p) for p in ("0", "1", "-1", "2", "-1/2", "-2", "1/2")]
TILES_AT_ONCE = 256  # bounds the memory: a matrix for each cell of a tile, of so many rows, for the channels ...
OUTPUTS_AT_ONCE = 1024  # ... in, and for so many channels out
WEIGHT_READ_COST = 20  # multiplications in the time that it takes to read one weight from memory, about
FEW_WEIGHTS = 1 << 18  # of a layer; with fewer stock torch, which packs them in no time, is as fast or faster
USUAL_ROWS = 128  # that weights of linear layers are packed for; they serve any number
TRANSFORM_COST = (
    13  # multiplications of the products in the time of one of the transforms, which wait for memory, about
)
MAX_COST_RATIO = 0.8  # transformed only where it takes less than this share of the time


@dataclass
class PackedWeight:
    """A weight that has been seen: what it was like, and its prepared forms."""

    weight: weakref.ref
    version: int
    sample: Tensor
    packed: Tensor | None = None
    linear: Tensor | None = None
    transformed: Tensor | None = field(default=None, repr=False)


_seen: dict[int, PackedWeight] = {}


def unsupported_reason(dtype: torch.dtype) -> str | None:
    """Why prepared weights do not serve this dtype on the CPU here; None where they do."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        return "this torch was built without oneDNN"
    if dtype == torch.float32:
        return None
    if dtype == torch.bfloat16:
        return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "the processor has no bfloat16 arithmetic"
    return f"{str(dtype).removeprefix('torch.')} is not prepared; float32 and bfloat16 are"


def skip_classifier_flat(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool) -> Tensor:
    """See ops.skip_classifier_flat."""
    prepared = _prepared(weight)
    if prepared is None or not all(m.numel() for m in maps):
        return eager.skip_classifier_flat(maps, weight, bias, size, relu)
    pooled = [eager.offset_max_pool(m.contiguous(memory_format=torch.channels_last), size) for m in maps]
    rows = _transformed_rows(pooled, prepared, weight, bias, size, relu)
    if rows is None:
        results = [_packed(p, prepared, weight, bias, 1, 0, size, relu) for p in pooled]
        rows = torch.cat([r.permute(0, 2, 3, 1).reshape(-1, weight.shape[0]) for r in results])
    return rows


def convolution(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool) -> Tensor:
    """See ops.convolution."""
    prepared = None if weight.numel() < FEW_WEIGHTS else _prepared(weight)
    if prepared is None or not maps.numel():
        return eager.convolution(maps, weight, bias, stride, pad, relu)
    maps = maps.contiguous(memory_format=torch.channels_last)
    if stride == 1:
        padded = F.pad(maps, (pad,) * 4) if pad else maps
        rows = _transformed_rows([padded], prepared, weight, bias, 1, relu)
        if rows is not None:
            n, height, width, _, _ = _tiling(padded, weight.shape[2], 1)
            return rows.view(n, height, width, -1).permute(0, 3, 1, 2)
    return _packed(maps, prepared, weight, bias, stride, pad, 1, relu)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """See ops.linear."""
    prepared = None if weight.numel() < FEW_WEIGHTS else _prepared(weight)
    if prepared is None or not rows.numel():
        return eager.linear(rows, weight, bias, relu)
    if prepared.linear is None:
        prepared.linear = torch.ops.mkldnn._reorder_linear_weight(weight.detach().flatten(1).contiguous(), USUAL_ROWS)
    bias = None if bias is None else bias.contiguous()
    result = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), prepared.linear, bias, "none", [], "")
    return result.relu_() if relu else result


@contextmanager
def direct() -> Iterator[None]:
    """Inside the block every product is a plain sum: no minimal filtering."""
    global MAX_COST_RATIO
    gain, MAX_COST_RATIO = MAX_COST_RATIO, 0.0
    try:
        yield
    finally:
        MAX_COST_RATIO = gain


def clear_cache() -> None:
    """Free all prepared weights; they are also freed with their weight."""
    _seen.clear()


def _prepared(weight: Tensor) -> PackedWeight | None:
    """What is known of this weight, if it is as it was at an earlier call."""
    if weight.is_inference() or not weight.numel():  # without versions
        return None
    known = _seen.get(id(weight))
    sample = weight.detach().flatten(2)[_spot_check_index(tuple(weight.shape))]
    if known and known.weight() is weight and known.version == weight._version and torch.equal(known.sample, sample):
        return known
    key = id(weight)
    _seen[key] = PackedWeight(weakref.ref(weight, lambda _: _seen.pop(key, None)), weight._version, sample)
    return None


@lru_cache(maxsize=64)
def _spot_check_index(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Output, channel and tap of numbers of a weight: one at least for every output and every channel."""
    outputs, channels, taps = shape[0], shape[1], shape[2] * shape[3]
    along = torch.arange(outputs), torch.arange(channels)
    return (
        torch.cat([along[0], along[1] * 7 % outputs]),
        torch.cat([along[0] * 5 % channels, along[1]]),
        torch.cat([along[0] % taps, along[1] % taps]),
    )


def _packed(
    maps: Tensor, prepared: PackedWeight, weight: Tensor, bias: Tensor | None, stride: int, pad: int, dilation: int,
    relu: bool,
) -> Tensor:  # fmt: skip
    """A convolution with packed weights and the bias in its epilogue.

    The ReLU is not: oneDNN's makes 0 of NaN.
    """
    arguments = [pad, pad], [stride, stride], [dilation, dilation], 1
    if prepared.packed is None:
        plain = weight.detach().contiguous().to_mkldnn()
        prepared.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *arguments, list(maps.shape))
    bias = None if bias is None else bias.contiguous()  # it is taken to be
    result = torch.ops.mkldnn._convolution_pointwise(maps, prepared.packed, bias, *arguments, "none", [], "")
    return result.relu_() if relu else result


# Transformed
def _tile(k: int) -> int:
    return min(LARGEST_TILE, STEP + k - 1)


def _tiling(cells: Tensor, k: int, size: int) -> tuple[int, int, int, int, int]:
    """Images, rows and columns of places, and the tiles of one phase down and across."""
    n, _, height, width = cells.shape
    height, width = height - (k - 1) * size, width - (k - 1) * size
    step = (_tile(k) - k + 1) * size
    return n, height, width, -(-height // step), -(-width // step)


def _transforming_pays(cells: list[Tensor], weight: Tensor, size: int) -> bool:
    """Whether it is worth it, by multiplications a channel in and out, transforms and reading included."""
    outputs, channels, k, _ = weight.shape
    if weight.dtype != torch.float32 or not 3 <= k < LARGEST_TILE:
        return False
    tile, places, tiles = _tile(k), 0, 0
    for c in cells:
        n, height, width, down, across = _tiling(c, k, size)
        places += n * height * width
        tiles += n * size * size * down * across
    transforms = TRANSFORM_COST * (tile**2 / outputs + (tile - k + 1) ** 2 / channels)
    return tile**2 * (tiles * (1 + transforms) + WEIGHT_READ_COST) < MAX_COST_RATIO * k**2 * (places + WEIGHT_READ_COST)


def _transformed_rows(
    cells: list[Tensor], prepared: PackedWeight, weight: Tensor, bias: Tensor | None, size: int, relu: bool
) -> Tensor | None:
    """Every place's outputs [places, O], from maps [N, C, H, W], channels last; None where that is not the way."""
    if not _transforming_pays(cells, weight, size):
        return None
    outputs, channels, k, _ = weight.shape
    of_outputs, of_weights, of_maps = transforms(k)
    tile, m = _tile(k), _tile(k) - k + 1
    if prepared.transformed is None:
        taps = weight.detach().permute(2, 3, 0, 1).reshape(k * k, -1)
        prepared.transformed = (of_weights @ taps).view(tile**2, outputs, channels)
    tiles = torch.cat([_tiles(c, k, size) for c in cells], dim=1)
    results = tiles.new_empty(m * m, tiles.shape[1], outputs)
    for start in range(0, tiles.shape[1], TILES_AT_ONCE):
        some = tiles[:, start : start + TILES_AT_ONCE]
        inner = (of_maps @ some.reshape(tile**2, -1)).view(some.shape)
        for o in range(0, outputs, OUTPUTS_AT_ONCE):
            product = torch.bmm(inner, prepared.transformed[:, o : o + OUTPUTS_AT_ONCE].transpose(1, 2))
            block = (of_outputs @ product.view(tile**2, -1)).view(m * m, *product.shape[1:])
            results[:, start : start + TILES_AT_ONCE, o : o + OUTPUTS_AT_ONCE] = block
    rows, start = [], 0
    for c in cells:
        n, height, width, down, across = _tiling(c, k, size)
        count = n * size * down * size * across
        part = results[:, start : start + count].view(m, m, n, size, down, size, across, outputs)
        part = part.permute(2, 4, 0, 3, 6, 1, 5, 7).reshape(n, down * m * size, across * m * size, outputs)
        rows.append(part[:, :height, :width].reshape(-1, outputs))
        start += count
    rows = torch.cat(rows)
    if not rows.sum().isfinite():
        return None  # a tile spreads what is not finite to all its outputs: that takes the plain sum
    rows = rows if bias is None else rows.add_(bias)
    return rows.relu_() if relu else rows


def _tiles(cells: Tensor, k: int, size: int) -> Tensor:
    """[N, C, H, W] -> [tile * tile, tiles, C], the tiles by image, phase and tile down, phase and tile across."""
    n, _, _, down, across = _tiling(cells, k, size)
    tile, m = _tile(k), _tile(k) - k + 1
    high, wide = (down * m + k - 1) * size, (across * m + k - 1) * size
    # Up to size * (m - 1) rows and columns more, where the last tiles overhang.
    cells = F.pad(cells.permute(0, 2, 3, 1), (0, 0, 0, wide - cells.shape[3], 0, high - cells.shape[2]))
    s_n, s_h, s_w, s_c = cells.stride()
    # Cell (i, j) of tile (t, u) of phase (y, x) is ((t*m + i)*size + y, (u*m + j)*size + x).
    shape = (tile, tile, n, size, down, size, across, cells.shape[3])
    strides = (size * s_h, size * s_w, s_n, s_h, m * size * s_h, s_w, m * size * s_w, s_c)
    return cells.as_strided(shape, strides, cells.storage_offset()).reshape(tile**2, -1, cells.shape[3])


@lru_cache
def transforms(k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Of the outputs, of the weights and of the maps (Lavin and Gray's A^T, G and B^T), each for both axes at once.

    Built by Toom and Cook's rule from POINTS and infinity, exactly, then rounded: [m*m, t*t], [t*t, k*k],
    [t*t, t*t] for tiles of t x t cells and m x m outputs.
    """
    tile = _tile(k)
    points, m = POINTS[: tile - 1], tile - k + 1
    of_outputs = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    of_weights, of_maps = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        of_weights.append([p**i / scale for i in range(k)])
        of_maps.append(_with_roots(others) + [Fraction(0)])
    of_weights.append([Fraction(i == k - 1) for i in range(k)])
    of_maps.append(_with_roots(points))
    both = []
    for rows in (of_outputs, of_weights, of_maps):
        matrix = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
        both.append(torch.kron(matrix, matrix).to(dtype))
    return tuple(both)


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, from the constant up, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
