"""GEMMs by large float32 matrices on a CPU by compiled code (numba_streamed.py): packing, threads."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops.backends import numba_streamed, parallel, workspace
from overfeat.ops.backends.numba_streamed import COLUMNS, FEW_ROWS, GROUP, ROWS
from overfeat.ops.backends.winograd import OUTPUTS_AT_ONCE, empty_rows

MAX_POSITIONS = 8 * ROWS  # up to which all weights are streamed: for more, minimal filtering or oneDNN is faster


class Panels(NamedTuple):
    """Matrices [n, C, O] packed."""

    outputs: int
    values: Tensor  # [n, panels, C, COLUMNS], filled up with zeros


def pack(weight: Tensor, transform: Callable[[Tensor], Tensor]) -> Panels:
    """Pack a weight [O, C, k, k]; transform: from that of some outputs to matrices [n, O, C]."""
    outputs, channels = weight.shape[:2]
    memory = np.empty(0, np.float32)
    for first in range(0, outputs, OUTPUTS_AT_ONCE):
        matrices = transform(weight.detach()[first : first + OUTPUTS_AT_ONCE])
        if not len(memory):  # NumPy's, in large pages where the system has them
            memory = np.empty((len(matrices), -(-outputs // COLUMNS), channels, COLUMNS), np.float32)
        panels = F.pad(matrices, (0, 0, 0, -matrices.shape[1] % COLUMNS)).unflatten(1, (-1, COLUMNS)).transpose(2, 3)
        torch.from_numpy(memory)[:, first // COLUMNS :][:, : panels.shape[1]] = panels
    return Panels(outputs, torch.from_numpy(memory))


def taps(weight: Tensor) -> Tensor:
    """[O, C, k_y, k_x] -> [k_y * k_x, O, C]: the matrices of `convolve`."""
    return weight.permute(2, 3, 0, 1).flatten(0, 1)


def convolve(
    maps: Sequence[Tensor], panels: Panels, k: Sequence[int], dilation: int, bias: Tensor | None, relu: bool
) -> Tensor:
    """The convolution of channels-last maps [N, C, H, W] with a dilation: flat [positions, O]; k: (k_y, k_x)."""
    k_y, k_x = k
    windows = []
    for m in maps:
        n, channels, height, width = m.shape
        s_n, s_c, s_h, s_w = m.stride()
        shape = k_y, k_x, n, height - (k_y - 1) * dilation, width - (k_x - 1) * dilation, channels
        strides = dilation * s_h, dilation * s_w, s_n, s_h, s_w, s_c
        windows.append(m.as_strided(shape, strides, m.storage_offset()))
    counts = [n * height * width for _, _, n, height, width, _ in (w.shape for w in windows)]
    rows = empty_rows(k_y * k_x, sum(counts), maps[0].shape[1])[..., : maps[0].shape[1]]
    for of_map, w in zip(rows.split(counts, dim=1), windows, strict=True):
        of_map.unflatten(1, w.shape[2:5]).unflatten(0, w.shape[:2]).copy_(w)
    return multiply(rows, panels, bias, relu, summed=True)[0]


def linear(flat: Tensor, panels: Panels, bias: Tensor | None, relu: bool) -> Tensor:
    """The linear layer of flat features [N, C]: [N, O]."""
    rows = empty_rows(1, *flat.shape)[..., : flat.shape[1]]
    rows[0] = flat
    return multiply(rows, panels, bias, relu)[0]


def multiply_in_chunks(panels: Panels, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """See winograd.multiply_in_chunks."""
    step = OUTPUTS_AT_ONCE // COLUMNS
    for first in range(0, panels.outputs, OUTPUTS_AT_ONCE):
        values = panels.values[:, first // COLUMNS :][:, :step]
        yield first, multiply(rows, Panels(min(OUTPUTS_AT_ONCE, panels.outputs - first), values))


def multiply(
    rows: Tensor, panels: Panels, bias: Tensor | None = None, relu: bool = False, summed: bool = False
) -> Tensor:
    """rows [n, count, C] @ matrices [n, C, O] + bias: float32 [n, count, O], or their sum over n: [1, count, O].

    NaN and infinity reach the outputs of their row alone. rows: in memory of `empty_rows`.
    """
    n, count, channels = rows.shape
    number = panels.values.shape[1]
    size = min((FEW_ROWS, ROWS), key=lambda size: -(-count // size) * size)
    start = torch.zeros(number * COLUMNS, dtype=torch.float32, device="cpu")
    if bias is not None:
        start[: panels.outputs] = bias
    out = workspace.empty(1 if summed else n, count, panels.outputs)
    items, blocks = -(-number // GROUP) * len(out), -(-count // size)
    threads, memory = min(torch.get_num_threads(), items), 4 * GROUP * blocks * size * COLUMNS
    scratch = workspace.scratch(threads * memory)
    job = {
        "ITEMS": items, "SCRATCH": scratch.data_ptr(), "SCRATCH_BYTES": memory, "ROWS_AT": rows.data_ptr(),
        "ROWS_MATRIX": 4 * rows.stride(0), "PITCH": 4 * rows.stride(1), "WEIGHT": panels.values.data_ptr(),
        "WEIGHT_MATRIX": 4 * panels.values.stride(0), "START": start.data_ptr(), "OUT": out.data_ptr(),
        "OUT_MATRIX": 4 * count * panels.outputs, "MATRICES": n, "SUMMED": int(summed), "PANELS": number,
        "BLOCKS": blocks, "BLOCK_ROWS": size, "COUNT": count, "IN_CHANNELS": channels, "CHANNELS": panels.outputs,
        "RELU": int(relu),
    }  # fmt: skip
    numbers = (ctypes.c_int64 * numba_streamed.JOB)()
    for name, value in job.items():
        numbers[getattr(numba_streamed, name) // 8] = value
    parallel.run(numba_streamed.streamed, ctypes.addressof(numbers), threads)
    return out
