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
    between = [workspace.empty(size) if size else out for size in plan.between]
    scratch = workspace.scratch(plan.threads * plan.memory)
    addresses = [tensor.data_ptr() for tensor in (*between, maps, out)]
    program, kept = _numbers(len(plan.jobs)).from_buffer_copy(plan.numbers), []
    for number, job in enumerate(plan.jobs):
        at = HEADER + number * JOB
        program[at + _MAPS], program[at + _OUT] = addresses[job.source], addresses[job.target]
        program[at + _SCRATCH] = scratch.data_ptr()
        if job.layer is None:
            continue
        panels, bias, _ = layers[job.layer]
        program[at + _WEIGHT] = panels.direct.data_ptr()
        if panels.transformed is not None:
            program[at + _TRANSFORMED] = panels.transformed.data_ptr()
        if bias is not None:
            if len(bias) != job.length or not bias.is_contiguous():
                bias = F.pad(bias, (0, job.length - len(bias)))
                kept.append(bias)
            program[at + _BIAS] = bias.data_ptr()
    parallel.run(numba_conv.run, ctypes.addressof(program), plan.threads)
    return out


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
def _numbers(jobs: int) -> Any:
    """The type of a program's numbers."""
    return ctypes.c_int64 * (HEADER + jobs * JOB)


_MAPS, _OUT, _SCRATCH, _WEIGHT, _TRANSFORMED, _BIAS = (
    place // 8
    for place in (
        numba_conv.MAPS, numba_conv.OUT, numba_conv.SCRATCH, numba_conv.WEIGHT, numba_conv.TRANSFORMED,
        numba_conv.BIAS,
    )
)  # fmt: skip


def _channels_last(maps: Tensor) -> Tensor:
    """`layout.channels_last`, which most maps are already: every call of torch costs as much as a thin layer's rows."""
    _, channels, height, width = maps.shape
    expected = (height * width * channels, 1, width * channels, channels)
    return maps if maps.stride() == expected else layout.channels_last(maps)
