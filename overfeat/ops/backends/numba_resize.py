"""Resizing of bytes (see eager_resize), compiled by numba."""

import numpy as np

from overfeat.ops.backends.eager_resize import AxisWeights
from overfeat.ops.backends.numba_compile import compiled


def weigh_columns(image: np.ndarray, offset: int, weights: AxisWeights) -> np.ndarray:
    """Bytes [C, h, n] from bytes [C, h, w], whose first column is `offset` of the whole image."""
    result = np.empty((*image.shape[:2], len(weights.first)), np.uint8)
    arguments = weights.first - offset, weights.counts, weights.weights.astype(np.int32), weights.precision
    _weigh_columns(image, *arguments, result)
    return result


def weigh_rows(image: np.ndarray, offset: int, weights: AxisWeights) -> np.ndarray:
    """Bytes [C, n, w] from bytes [C, h, w], whose first row is `offset` of the whole image."""
    result = np.empty((len(image), len(weights.first), image.shape[2]), np.uint8)
    arguments = weights.first - offset, weights.counts, weights.weights.astype(np.int32), weights.precision
    _weigh_rows(image, *arguments, result)
    return result


@compiled
def _weigh_columns(image, first, counts, weights, precision, result):
    half = np.int32(1 << (precision - 1))
    for channel in range(image.shape[0]):
        for y in range(image.shape[1]):
            for x in range(len(first)):
                total, start = half, first[x]
                for k in range(counts[x]):
                    total += np.int32(image[channel, y, start + k]) * weights[x, k]
                result[channel, y, x] = min(max(total >> precision, 0), 255)


@compiled
def _weigh_rows(image, first, counts, weights, precision, result):
    half, totals = np.int32(1 << (precision - 1)), np.empty(image.shape[2], np.int32)
    for channel in range(image.shape[0]):
        for y in range(len(first)):
            totals[:] = half
            for k in range(counts[y]):
                row, weight = image[channel, first[y] + k], weights[y, k]
                for x in range(len(totals)):
                    totals[x] += np.int32(row[x]) * weight
            for x in range(len(totals)):
                result[channel, y, x] = min(max(totals[x] >> precision, 0), 255)
