"""The classifier's first layer on a CPU, with weights prepared once and not on every call.

The first call with a weight runs the stock implementation; from the second on, for as long as the
weight stays as it is, its prepared form is used. Two forms, each made when it is first wanted:

- packed, as the machine's convolution library (oneDNN) wants it: stock torch packs at every call;
- transformed, float32 alone, for the minimal filtering of Winograd (Lavin and Gray, arXiv
  1509.09308): the p*p phases of the pooled map share one dense k x k kernel, so that a tile of m x m
  outputs takes (m+k-1)^2 multiplications a channel in place of m^2 k^2; with tiles of 8 x 8, 4 times
  fewer for k = 5 less what the tiles overhang. Rounding errors are about 10 times those of a plain
  sum, 3e-6 of the results' size.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat import ops

TILE = 8  # side of a transformed tile: larger ones lose accuracy
TILES_AT_ONCE = 256  # bounds the memory: 64 matrices of so many rows, for the channels in and ...
OUTPUTS_AT_ONCE = 1024  # ... so many channels out
SAMPLES = 32  # of the outputs and of the channels, at most twice: what is looked at to see whether a weight was
# changed behind torch's back, through `.data`
GAIN = 0.8  # transformed only where it takes less than this share of the multiplications


@dataclass
class Prepared:
    """A weight that has been seen: what it was like, and its prepared forms."""

    weight: weakref.ref
    version: int
    sample: Tensor
    packed: Tensor | None = None
    transformed: Tensor | None = field(default=None, repr=False)


_seen: dict[int, Prepared] = {}


def why_not(dtype: torch.dtype) -> str | None:
    """Why prepared weights do not serve this dtype on the CPU here; None where they do."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        return "this torch was built without oneDNN"
    if dtype == torch.float32:
        return None
    if dtype == torch.bfloat16:
        return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "the processor has no bfloat16 arithmetic"
    return f"{dtype} is not prepared; float32 and bfloat16 are"


def classifier_rows(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool) -> Tensor:
    """See ops.skip_classifier_rows."""
    prepared = _prepared(weight)
    if prepared is None or not weight.numel() or not all(m.numel() for m in maps):
        return ops.stock("skip_classifier_rows")(maps, weight, bias, size, relu)
    pooled = [ops.stock("offset_max_pool")(m.contiguous(memory_format=torch.channels_last), size) for m in maps]
    if _transforming_pays(pooled, weight, size):
        rows = _transformed_rows(pooled, prepared, weight, size)
        # A tile spreads what is not finite to all its outputs: then the plain sum is needed.
        if rows.sum().isfinite():
            rows = rows if bias is None else rows.add_(bias)
            return rows.relu_() if relu else rows
    return _packed_rows(pooled, prepared, weight, bias, size, relu)


def forget() -> None:
    """Free all prepared weights; they are also freed with their weight."""
    _seen.clear()


def _prepared(weight: Tensor) -> Prepared | None:
    """What is known of this weight, if it is as it was at an earlier call."""
    if weight.is_inference() or not weight.numel():  # without versions
        return None
    known = _seen.get(id(weight))
    outputs, channels = (max(1, length // SAMPLES) for length in weight.shape[:2])
    sample = weight.detach()[::outputs, ::channels].clone()
    if known and known.weight() is weight and known.version == weight._version and torch.equal(known.sample, sample):
        return known
    key = id(weight)
    _seen[key] = Prepared(weakref.ref(weight, lambda _: _seen.pop(key, None)), weight._version, sample)
    return None


# Packed


def _packed_rows(
    pooled: list[Tensor], prepared: Prepared, weight: Tensor, bias: Tensor | None, size: int, relu: bool
) -> Tensor:
    arguments = [0, 0], [1, 1], [size, size], 1  # padding, stride, dilation, groups
    if prepared.packed is None:
        plain = weight.detach().contiguous().to_mkldnn()
        prepared.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *arguments, list(pooled[-1].shape))
    kind = "relu" if relu else "none"
    results = [
        torch.ops.mkldnn._convolution_pointwise(p, prepared.packed, bias, *arguments, kind, [], "") for p in pooled
    ]
    return torch.cat([r.permute(0, 2, 3, 1).reshape(-1, weight.shape[0]) for r in results])


# Transformed


def _transforming_pays(pooled: list[Tensor], weight: Tensor, size: int) -> bool:
    k = weight.shape[2]
    if weight.dtype != torch.float32 or not 3 <= k <= TILE - 2:
        return False
    places = tiles = 0
    for p in pooled:
        n, height, width, down, across = _tiling(p, k, size)
        places += n * height * width
        tiles += n * size * size * down * across
    # What every call must read counts too: the transformed weights are TILE^2 / k^2 times larger.
    return tiles * TILE**2 + 2000 < GAIN * places * k * k


def _tiling(pooled: Tensor, k: int, size: int) -> tuple[int, int, int, int, int]:
    """Images, rows and columns of places, and the tiles of one phase down and across."""
    n, _, height, width = pooled.shape
    height, width = height - (k - 1) * size, width - (k - 1) * size
    step = (TILE - k + 1) * size
    return n, height, width, -(-height // step), -(-width // step)


def _transformed_rows(pooled: list[Tensor], prepared: Prepared, weight: Tensor, size: int) -> Tensor:
    outputs, channels, k, _ = weight.shape
    of_outputs, of_weights, of_maps = transforms(k)
    if prepared.transformed is None:
        taps = weight.detach().permute(2, 3, 0, 1).reshape(k * k, -1)
        prepared.transformed = (of_weights @ taps).view(TILE**2, outputs, channels)
    m = TILE - k + 1
    tiles = torch.cat([_tiles(p, k, size) for p in pooled], dim=1)
    results = tiles.new_empty(m * m, tiles.shape[1], outputs)
    for start in range(0, tiles.shape[1], TILES_AT_ONCE):
        some = tiles[:, start : start + TILES_AT_ONCE]
        inner = (of_maps @ some.reshape(TILE**2, -1)).view(some.shape)
        for o in range(0, outputs, OUTPUTS_AT_ONCE):
            product = torch.bmm(inner, prepared.transformed[:, o : o + OUTPUTS_AT_ONCE].transpose(1, 2))
            block = (of_outputs @ product.view(TILE**2, -1)).view(m * m, *product.shape[1:])
            results[:, start : start + TILES_AT_ONCE, o : o + OUTPUTS_AT_ONCE] = block
    rows, start = [], 0
    for p in pooled:
        n, height, width, down, across = _tiling(p, k, size)
        count = n * size * down * size * across
        part = results[:, start : start + count].view(m, m, n, size, down, size, across, outputs)
        part = part.permute(2, 4, 0, 3, 6, 1, 5, 7).reshape(n, down * m * size, across * m * size, outputs)
        rows.append(part[:, :height, :width].reshape(-1, outputs))
        start += count
    return torch.cat(rows)


def _tiles(pooled: Tensor, k: int, size: int) -> Tensor:
    """[N, C, H, W] -> [TILE * TILE, tiles, C], the tiles by image, phase and tile down, phase and tile across."""
    n, _, _, down, across = _tiling(pooled, k, size)
    m = TILE - k + 1
    high, wide = (down * m + k - 1) * size, (across * m + k - 1) * size
    cells = F.pad(pooled.permute(0, 2, 3, 1), (0, 0, 0, wide - pooled.shape[3], 0, high - pooled.shape[2]))
    s_n, s_h, s_w, _ = cells.stride()
    # Cell (i, j) of tile (t, u) of phase (y, x) is ((t*m + i)*size + y, (u*m + j)*size + x).
    shape = (TILE, TILE, n, size, down, size, across, pooled.shape[1])
    strides = (size * s_h, size * s_w, s_n, s_h, m * size * s_h, s_w, m * size * s_w, 1)
    return cells.as_strided(shape, strides).reshape(TILE**2, -1, pooled.shape[1])


@lru_cache
def transforms(k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the outputs, of the weights and of the maps (Lavin and Gray's A^T, G and B^T), each for both axes at once.

    Built by Toom and Cook's rule from the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity, exactly,
    then rounded: float32 [m*m, 64], [64, k*k], [64, 64] with m = 9 - k.
    """
    points = [Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2")]
    m = TILE - k + 1
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
    matrices = [torch.tensor([[float(x) for x in row] for row in rows]) for rows in (of_outputs, of_weights, of_maps)]
    return tuple(torch.kron(matrix.double(), matrix.double()).float() for matrix in matrices)


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, from the constant up, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
