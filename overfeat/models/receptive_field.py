"""Receptive fields: output sizes, strides, and the input that an output depends on. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SlidingWindow:
    """A convolution or pooling along one axis: `pad` cells are added on both sides first."""

    kernel: int
    stride: int = 1
    pad: int = 0


def output_size(steps: Sequence[SlidingWindow], size: int) -> int:
    """Number of outputs along an axis of `size` cells; 0 where a window no longer fits."""
    for step in steps:
        size = max(0, (size + 2 * step.pad - step.kernel) // step.stride + 1)
    return size


def input_size(steps: Sequence[SlidingWindow], size: int = 1) -> int:
    """The smallest input that gives `size` outputs."""
    for step in reversed(steps):
        size = (size - 1) * step.stride + step.kernel - 2 * step.pad
    return size


def total_stride(steps: Sequence[SlidingWindow]) -> int:
    """Input cells between neighbouring outputs."""
    return math.prod(step.stride for step in steps)


def first_centre(steps: Sequence[SlidingWindow]) -> float:
    """The centre of what the first output sees, from the start of the axis; pads count as neighbours."""
    centre, stride = 0.5, 1
    for step in steps:
        centre += ((step.kernel - 1) / 2 - step.pad) * stride
        stride *= step.stride
    return centre


def input_span(
    steps: Sequence[SlidingWindow], size: int, start: int, stop: int
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The input that outputs `start:stop` of an axis depend on: its (start, stop), and each step's padding.

    Running the steps on that slice with that padding, in place of their own on both sides, gives exactly the outputs
    `start:stop` of the whole axis: zeros are added only where the whole axis would add them.
    """
    sizes = [size]
    for step in steps:
        sizes.append(output_size([step], sizes[-1]))
    assert 0 <= start < stop <= sizes[-1], (start, stop, sizes)
    pads = []
    for step, length in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        low = start * step.stride - step.pad
        high = (stop - 1) * step.stride + step.kernel - step.pad
        pads.append((max(0, -low), max(0, high - length)))
        start, stop = max(0, low), min(length, high)
    return (start, stop), pads[::-1]
