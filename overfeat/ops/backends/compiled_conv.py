"""Convolutions with small weights on a CPU by compiled code (numba_conv.py): packing, the method, threads."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops import layout
from overfeat.ops.backends import numba_conv, parallel, winograd, workspace
from overfeat.ops.backends.conv_program import Plan, Shape, Window, make_plan, transformable
from overfeat.ops.backends.numba_conv import COLUMNS, HEADER, JOB, LANES, axis_transforms

__all__ = ["LANES", "Layer", "Panels", "Window", "chain", "convolve", "has_outputs", "pack"]

SMALL_BYTES = 1 << 22  # of maps between two jobs that lie in the thread's memory, which is kept


class Panels(NamedTuple):
    """A packed weight [O, C, k_y, k_x]."""

    shape: Shape
    direct: Tensor  # [panels, taps * C, COLUMNS]
    transformed: Tensor | None  # [t * t, panels, C, COLUMNS], where minimal filtering applies


class Layer(NamedTuple):
    """One convolution of a chain."""

    panels: Panels
    bias: Tensor | None
    window: Window


def pack(weight: Tensor) -> Panels:
    """Pack a float32 weight [O, C, k_y, k_x]."""
    weight = weight.detach()
    outputs, _, k, _ = weight.shape
    transformed = None
    if transformable(weight.shape):
        axis = axis_transforms(k)[1]
        positions = torch.einsum("ai,bj,ocij->abco", axis, axis, weight.double()).float()
        transformed = _panels(positions.flatten(0, 1))
    direct = _panels(weight.permute(2, 3, 1, 0).reshape(1, -1, outputs))[0]
    return Panels(tuple(weight.shape), direct, transformed)


def _panels(matrices: Tensor) -> Tensor:
    """Matrices [n, inputs, O] as [n, panels, inputs, COLUMNS], filled up with zeros."""
    n, inputs, outputs = matrices.shape
    return F.pad(matrices, (0, -outputs % COLUMNS)).view(n, inputs, -1, COLUMNS).transpose(1, 2).contiguous()


class Sample(NamedTuple):
    """Values of a weight, which are compared to notice a change of it."""

    strides: tuple[int, ...]  # of the weight
    distances: Tensor  # int64, in bytes
    values: Tensor


def sample(weight: Tensor, index: Tensor) -> Sample:
    """The values of a float32 weight at an index into its elements, counted as if it were contiguous."""
    indices = torch.unravel_index(index, weight.shape)
    elements = sum(i * stride for i, stride in zip(indices, weight.stride(), strict=True))
    return Sample(weight.stride(), 4 * torch.as_tensor(elements), weight.detach().take(index))


def unchanged(weights: Sequence[Tensor], samples: Sequence[Sample]) -> bool:
    """Whether the weights, whose strides are as they were, have the values that were sampled."""
    numbers = [len(weights), 0]
    for weight, (_, distances, values) in zip(weights, samples, strict=True):
        numbers += [distances.numel(), weight.data_ptr(), distances.data_ptr(), values.data_ptr()]
    table = _int64s(len(numbers))(*numbers)
    parallel.run(numba_conv.compare, ctypes.addressof(table), 1)
    return bool(table[1])


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor | None:
    """(x - mean) / std of float32 images [N, 3, H, W], channels last; None for images that have no such code.

    mean, std: one value, or one for each channel.
    """
    n, channels, height, width = images.shape
    if channels != numba_conv.RGB or width < LANES or images.stride(3) != 1 or not images.numel():
        return None
    out = workspace.empty(n, height, width, channels)
    scales = (ctypes.c_float * (2 * channels))(
        *(tuple(mean) * channels)[:channels], *(tuple(std) * channels)[:channels]
    )
    address, strides = ctypes.addressof(scales), [4 * stride for stride in images.stride()[:3]]
    job = _int64s(11)(
        0, n * height, height, width, *strides, images.data_ptr(), out.data_ptr(), address, address + 4 * channels
    )
    parallel.run(numba_conv.normalise, ctypes.addressof(job), min(torch.get_num_threads(), n * height))
    return out.permute(0, 3, 1, 2)


def convolve(maps: Tensor, panels: Panels, bias: Tensor | None, window: Window, out: Tensor | None = None) -> Tensor:
    """A convolution without padding, its ReLU and pooling: [N, h, w, O], in `out` if it is given, which has as many.

    maps: float32 [N, C, H, W], at least as large as the kernel; the pooling has an output. NaN propagates.
    """
    result = chain(maps, [Layer(panels, bias, window)], out)
    assert result is not None, (maps.shape, window)
    return result


def chain(maps: Tensor, layers: Sequence[Layer], out: Tensor | None = None) -> Tensor | None:
    """`convolve` of several layers, one after the other; None where the maps are too small for an output of each."""
    maps = _channels_last(maps)
    plan = _plan(maps, tuple((layer.panels.shape, layer.window) for layer in layers))
    if plan is None:
        return None
    out = workspace.empty(*plan.shape) if out is None else out
    # Of this thread until its next call: memory of the threads, small maps between jobs, and biases that are filled up.
    small = [4 * size if 4 * size <= SMALL_BYTES else 0 for size in plan.between]
    scratch = workspace.scratch(plan.threads * plan.memory + sum(small) + 4 * plan.biases).data_ptr()
    free = scratch + plan.threads * plan.memory
    large = [workspace.empty(size if size and not few else 0) for size, few in zip(plan.between, small, strict=True)]
    tensors = [free if small[0] else large[0].data_ptr(), free + small[0] if small[1] else large[1].data_ptr()]
    tensors += maps.data_ptr(), out.data_ptr()
    free += sum(small)
    program = _int64s(HEADER + len(plan.jobs) * JOB).from_buffer_copy(plan.numbers)
    for number, job in enumerate(plan.jobs):
        at = HEADER + number * JOB
        program[at + _MAPS], program[at + _OUT] = tensors[job.source], tensors[job.target]
        program[at + _SCRATCH] = scratch
        if job.layer is None:
            continue
        panels, bias, _ = layers[job.layer]
        program[at + _WEIGHT] = panels.direct.data_ptr()
        if panels.transformed is not None:
            program[at + _TRANSFORMED] = panels.transformed.data_ptr()
        if bias is not None:
            program[at + _BIAS] = _whole_panels(bias, job.length, free)
        free += 4 * job.length
    parallel.run(numba_conv.run, ctypes.addressof(program), plan.threads)
    winograd.record_saved(plan.saved)
    return out


def _whole_panels(bias: Tensor, length: int, free: int) -> int:
    """The address of a bias as long as the panels; `free`: that of memory for it, where it has to be filled up."""
    count = bias.shape[0]
    if count == length and bias.is_contiguous():
        return bias.data_ptr()
    values = bias.contiguous()
    ctypes.memmove(free, values.data_ptr(), 4 * count)
    ctypes.memset(free + 4 * count, 0, 4 * (length - count))
    return free


def chain_shapes(maps: Sequence[Tensor], layers: Sequence[Layer]) -> list[tuple[int, int, int]] | None:
    """(N, h, w) of the outputs of `chain` for each of the maps; None where one is too small."""
    key = tuple((layer.panels.shape, layer.window) for layer in layers)
    plans = [_plan(_channels_last(m), key) for m in maps]
    return [plan.shape[:3] for plan in plans if plan is not None] if all(plans) else None


def has_outputs(maps: Tensor, panels: Panels, window: Window) -> bool:
    """Whether maps [N, C, H, W] are large enough for an output."""
    return _plan(maps, ((panels.shape, window),)) is not None


def _plan(maps: Tensor, layers: tuple[tuple[Shape, Window], ...]) -> Plan | None:
    ratio = winograd.MAX_COST_RATIO if winograd.enabled() else 0.0
    return make_plan(tuple(maps.shape), maps.stride(), layers, ratio, torch.get_num_threads())


@lru_cache
def _int64s(count: int) -> Any:
    """The type of an array."""
    return ctypes.c_int64 * count


_MAPS, _OUT, _SCRATCH, _WEIGHT, _TRANSFORMED, _BIAS = (
    offset // 8
    for offset in (
        numba_conv.MAPS, numba_conv.OUT, numba_conv.SCRATCH, numba_conv.WEIGHT, numba_conv.TRANSFORMED,
        numba_conv.BIAS,
    )
)  # fmt: skip


def _channels_last(maps: Tensor) -> Tensor:
    """`layout.channels_last`, which most maps are already: every call of torch costs as much as a thin layer's rows."""
    _, channels, height, width = maps.shape
    expected = (height * width * channels, 1, width * channels, channels)
    return maps if maps.stride() == expected else layout.channels_last(maps)
