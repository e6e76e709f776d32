"""The shapes in synthetic images, as arrays of coverage in 0..1: distorted digits and patches.

All arithmetic is float64; `rng` is a numpy Generator of which only `random` and `integers` are used.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_SIDE, MAX_SIDE = 24, 100  # longer side of a digit's box, pixels


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number from low to high."""
    return low + (high - low) * float(rng.random())


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return math.exp(uniform(rng, math.log(low), math.log(high)))


def _spline_weights(at: np.ndarray) -> list[np.ndarray]:
    """The four cubic B-spline weights for fractions `at` in 0..1."""
    rest = 1.0 - at
    inner = [(3.0 * t**3 - 6.0 * t**2 + 4.0) / 6.0 for t in (at, rest)]
    return [rest**3 / 6.0, *inner, at**3 / 6.0]


def _spline_sample(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Cubic B-spline through the grid's values (smoothing, zero outside) at points y, x of one shape."""
    padded = np.pad(grid, 3)
    y = np.clip(y, -2.0, grid.shape[0] + 0.999) + 3.0
    x = np.clip(x, -2.0, grid.shape[1] + 0.999) + 3.0
    row, column = y.astype(np.int64), x.astype(np.int64)
    flat, stride = padded.ravel(), padded.shape[1]
    first = (row - 1) * stride + column - 1
    across = _spline_weights(x - column)
    total = np.zeros_like(y)
    for i, weight in enumerate(_spline_weights(y - row)):
        start = first + i * stride
        total += weight * sum(across[j] * flat[start + j] for j in range(4))
    return total


@dataclass(frozen=True)
class Shape:
    """A distorted digit that can be rendered at any scale (image pixels per source pixel)."""

    source: np.ndarray  # [28, 28]
    inverse: tuple[float, float, float, float]  # from output offsets (x, y) to source offsets
    bends: np.ndarray  # [2, 7, 7] elastic displacement at knots, source pixels
    level: float  # the intensity at the ink's edge: lower is bolder

    def intensity(self, scale: float, half: int) -> np.ndarray:
        """[2 half, 2 half]: the digit's smooth intensity around its centre."""
        offset = (np.arange(2 * half) + 0.5 - half) / scale
        knots = np.clip((offset + 18.0) / 9.0 + 1.0, 1.0, 4.999)
        column = knots.astype(np.int64)
        bend = np.zeros((len(offset), 7))
        for i, weight in enumerate(_spline_weights(knots - column)):
            bend[np.arange(len(offset)), column - 1 + i] = weight
        a, b, c, d = self.inverse
        y, x = offset[:, None], offset[None, :]
        move_y, move_x = (bend @ knot @ bend.T for knot in self.bends)
        return _spline_sample(self.source, c * x + d * y + 13.5 + move_y, a * x + b * y + 13.5 + move_x)

    def coverage(self, intensity: np.ndarray, scale: float, level: float) -> np.ndarray:
        """Coverage in 0..1: above the level, with an edge about one pixel wide."""
        # The intensity rises by about 0.4 per source pixel. The last term keeps the coverage 0 without intensity.
        gain = max(2.0 * scale, 2.5, 0.5 / level)
        return np.clip(0.5 + (intensity - level) * gain, 0.0, 1.0)


def distort(rng: np.random.Generator, source: np.ndarray) -> Shape:
    """A digit [28, 28] randomly rotated, sheared, stretched, bent and thickened."""
    angle, shear = math.radians(uniform(rng, -15.0, 15.0)), uniform(rng, -0.15, 0.15)
    stretch = math.sqrt(log_uniform(rng, 0.8, 1.25))
    cos, sin = math.cos(angle), math.sin(angle)
    # forward = rotation @ [[1, shear], [0, 1]] @ diag(stretch, 1 / stretch); its determinant is 1
    a, b = cos * stretch, (cos * shear - sin) / stretch
    c, d = sin * stretch, (sin * shear + cos) / stretch
    bends = (2.0 * rng.random((2, 7, 7)) - 1.0) * uniform(rng, 0.0, 1.6)
    rows, columns = np.mgrid[0:28, 0:28].astype(np.float64)
    smooth = _spline_sample(source, rows, columns)
    typical = float((smooth**2).sum() / smooth.sum())  # thin strokes are faint once smoothed
    return Shape(source, (d, -b, -c, a), bends, typical * uniform(rng, 0.40, 0.72))


def render(shape: Shape, side: float, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of ink and outline, [h, w] each; the longer side of the ink's box is near `side`, at most `largest`."""
    scale = side / 20.0
    for attempt in range(60):
        half = math.ceil(scale * 18.0)
        intensity = shape.intensity(scale, half)
        ink = shape.coverage(intensity, scale, shape.level)
        x1, y1, x2, y2 = tight_box(ink)
        measured = max(x2 - x1, y2 - y1)
        near = abs(measured - side) <= 1.0 + 0.03 * side
        if MIN_SIDE <= measured <= largest and (near or attempt >= 7):
            break
        if attempt < 7:
            scale *= side / measured
        else:  # a faint end of a stroke appears and vanishes with the scale: approach the limits slowly
            scale *= 1.02 if measured < MIN_SIDE else 0.98
    assert MIN_SIDE <= measured <= largest, (measured, largest)
    outline = shape.coverage(intensity, scale, 0.35 * shape.level)
    x1, y1, x2, y2 = tight_box(outline, 0.0)
    return ink[y1:y2, x1:x2], outline[y1:y2, x1:x2]


def tight_box(coverage: np.ndarray, above: float = 0.4999) -> tuple[int, int, int, int]:
    """The box x1, y1, x2, y2 of the coverage above a level; zeros if there is none."""
    rows = np.flatnonzero((coverage > above).any(1))
    columns = np.flatnonzero((coverage > above).any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def soften(mask: np.ndarray, times: int) -> np.ndarray:
    """The mask [h, w] blurred with [1, 2, 1] / 4 in both directions, `times` times."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = 0.25 * padded[:-2, 1:-1] + 0.5 * padded[1:-1, 1:-1] + 0.25 * padded[2:, 1:-1]
        padded = np.pad(mask, 1)
        mask = 0.25 * padded[1:-1, :-2] + 0.5 * padded[1:-1, 1:-1] + 0.25 * padded[1:-1, 2:]
    return mask


def _distance_to_segments(points: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Distance of y, x to the nearest segment of the line through points [n, 2] (y, x)."""
    nearest = np.full(np.broadcast(y, x).shape, np.inf)
    for (y0, x0), (y1, x1) in pairwise(points):
        length = (y1 - y0) ** 2 + (x1 - x0) ** 2 + 1e-9
        along = np.clip(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / length, 0.0, 1.0)
        nearest = np.minimum(nearest, (y - y0 - along * (y1 - y0)) ** 2 + (x - x0 - along * (x1 - x0)) ** 2)
    return np.sqrt(nearest)


def patch_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """An ellipse, a polygon or a thick bent stroke with soft edges: coverage [size, size]."""
    at = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    angle = uniform(rng, 0.0, math.pi)
    y = at[:, None] * math.cos(angle) - at[None, :] * math.sin(angle)
    x = at[:, None] * math.sin(angle) + at[None, :] * math.cos(angle)
    kind = int(rng.integers(3))
    if kind == 0:
        inside = 0.85 - np.sqrt(x**2 + (y * uniform(rng, 1.0, 2.2)) ** 2)
    elif kind == 1:  # the intersection of half-planes: a convex polygon
        inside = np.full((size, size), np.inf)
        sides = int(rng.integers(3, 7))
        for i in range(sides):
            turn = 2.0 * math.pi * (i + uniform(rng, -0.25, 0.25)) / sides
            inside = np.minimum(inside, uniform(rng, 0.35, 0.75) - x * math.cos(turn) - y * math.sin(turn))
        inside = np.minimum(inside, 0.95 - np.sqrt(x**2 + y**2))
    else:
        points = (2.0 * rng.random((int(rng.integers(2, 5)), 2)) - 1.0) * 0.7
        inside = uniform(rng, 0.12, 0.28) - _distance_to_segments(points, y, x)
    edge = uniform(rng, 1.0, 3.0)  # pixels
    return np.clip(0.5 + inside * size / 2.0 / edge, 0.0, 1.0)
