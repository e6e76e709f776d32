"""The transforms of minimal filtering (Winograd; Lavin and Gray, arXiv 1509.09308), by the rule of Toom and Cook."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def transforms(m: int, k: int, points: tuple[Fraction, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of the outputs, the weights and the maps (A^T, G and B^T in the paper), for one axis.

    Built exactly, then rounded to float64.

    Args:
        m: outputs of a tile.
        k: taps.
        points: m + k - 2 interpolation points; infinity is added.

    Returns:
        [m, t], [t, k], [t, t] for tiles of t = m + k - 1 input positions.
    """
    of_outputs = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    of_weights, of_maps = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        of_weights.append([p**i / scale for i in range(k)])
        of_maps.append([*_with_roots(others), Fraction(0)])
    of_weights.append([Fraction(i == k - 1) for i in range(k)])
    of_maps.append(_with_roots(points))
    return _rounded(of_outputs), _rounded(of_weights), _rounded(of_maps)


def both_axes(transform: Tensor) -> Tensor:
    """The transform of both axes at once, of values ordered by row and column: [a, b] -> [a*a, b*b]."""
    return torch.kron(transform, transform)


def _rounded(rows: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64, device="cpu")


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, from the constant up, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
