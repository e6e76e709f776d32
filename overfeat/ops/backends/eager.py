"""What every device runs: the ops in stock torch, and how their results lie in memory.

The functions are those of `ops.register_backend`, with arguments that ops.py has checked.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.errors import InputError
from overfeat.ops.layout import as_maps, as_rows, concat, format_of, result_shapes

# Below this many places, a product with weights that are not re-packed beats the CPU's convolution.
GATHER_MAX_POSITIONS = 512


def offset_max_pool(maps: Tensor, size: int) -> Tensor:
    pooled = _pooled(maps, size)
    return pooled.clone(memory_format=format_of(maps)) if pooled is maps else pooled  # an op may not return its input


def _pooled(maps: Tensor, size: int) -> Tensor:
    if size == 1:
        return maps
    # In two passes, along rows and then along columns: 2*size comparisons a place, not size*size.
    pooled = F.max_pool2d(F.max_pool2d(maps, (1, size), 1), (size, 1), 1)
    return pooled.contiguous(memory_format=format_of(maps))


def offset_max_pool_backward(grad: Tensor, maps: Tensor, size: int) -> Tensor:
    _, winners = torch.ops.aten.max_pool2d_with_indices(maps, [size, size], [1, 1])
    found = torch.ops.aten.max_pool2d_with_indices_backward(
        grad, maps, [size, size], [1, 1], [0, 0], [1, 1], False, winners
    )
    return found.contiguous(memory_format=format_of(maps))


def skip_classifier_flat(maps, weight, bias, size, relu):
    results: list[Tensor | None] = []
    few = []
    for i, (m, (n, height, width)) in enumerate(zip(maps, result_shapes(maps, weight.shape[2], size), strict=True)):
        pooled = _pooled(m, size)
        if m.device.type == "cpu" and n * height * width < GATHER_MAX_POSITIONS:
            few.append((i, pooled))
            results.append(None)
        else:
            results.append(as_rows(F.conv2d(pooled, weight, bias, dilation=size)))
    for i, result in _few_places(few, weight, bias, size):
        results[i] = result
    rows = concat(results)
    return rows.relu_() if relu else rows


def _few_places(pooled: list[tuple[int, Tensor]], weight: Tensor, bias: Tensor | None, size: int):
    """The dilated convolution of several small maps as one matrix product over all their places.

    The CPU's convolution re-packs its weights at every call, 420 MB in the accurate net; for few
    places that costs more than the arithmetic. Yields (index, rows of the result) in the order given.
    """
    if not pooled:
        return
    k = weight.shape[2]
    rows = []
    for _, p in pooled:
        last = p.permute(0, 2, 3, 1).contiguous()
        n, h, w, c = last.shape
        shape = (n, h - (k - 1) * size, w - (k - 1) * size)
        s = last.stride()
        taps = last.as_strided((*shape, k, k, c), (s[0], s[1], s[2], size * s[1], size * s[2], 1))
        rows.append(taps.reshape(-1, k * k * c))
    product = F.linear(torch.cat(rows), as_rows(weight, whole=True), bias)
    for (i, _), block in zip(pooled, product.split([len(r) for r in rows]), strict=True):
        yield i, block


def skip_classifier_flat_backward(grad, maps, weight, output, size, need_maps, need_weight):
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    of_maps, of_weight, of_bias = [], None, None
    for m, part in zip(maps, as_maps(grad, maps, weight.shape[2], size), strict=True):
        pooled = _pooled(m, size)
        found = torch.ops.aten.convolution_backward(
            part, pooled, weight, [weight.shape[0]], [1, 1], [0, 0], [size, size], False, [0, 0], 1,
            [need_maps, need_weight, need_weight],
        )  # fmt: skip
        if need_maps:
            of_pooled = found[0].contiguous(memory_format=format_of(m))
            of_maps.append(of_pooled if size == 1 else offset_max_pool_backward(of_pooled, m, size))
        if need_weight:
            of_weight = found[1] if of_weight is None else of_weight + found[1]
            of_bias = found[2] if of_bias is None else of_bias + found[2]
    if need_weight:
        of_maps += [of_weight.contiguous(memory_format=format_of(weight)), of_bias]
    return of_maps


def convolution(maps, weight, bias, stride, pad, relu):
    result = F.conv2d(maps, weight, bias, stride, pad)
    return result.relu_() if relu else result


def linear(rows, weight, bias, relu):
    result = F.linear(rows, weight.flatten(1), bias)
    return result.relu_() if relu else result


def best_scores(scores: Tensor, counts: Sequence[int]) -> Tensor:
    best = scores.new_empty(len(counts), scores.shape[1], dtype=torch.float32)
    for run, part in zip(best, scores.split(list(counts)), strict=True):
        torch.amax(part.float().softmax(dim=1), dim=0, out=run)
    return best


def merge_boxes(boxes: Tensor, *rest: object) -> tuple[Tensor, ...]:
    try:
        from overfeat.ops.backends import numba_merge  # numba takes a second to import
    except ImportError as error:
        raise InputError(f"merging boxes on a CPU needs numba (pip install numba): {error}") from error
    return numba_merge.merge_boxes(boxes, *rest)


FUNCTIONS = {
    "offset_max_pool": offset_max_pool,
    "offset_max_pool_backward": offset_max_pool_backward,
    "skip_classifier_flat": skip_classifier_flat,
    "skip_classifier_flat_backward": skip_classifier_flat_backward,
    "best_scores": best_scores,
    "convolution": convolution,
    "linear": linear,
    "merge_boxes": merge_boxes,
}
