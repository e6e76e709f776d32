"""The ops in eager PyTorch, for every device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops import layout
from overfeat.ops.backends import eager_boxes, numba_modules
from overfeat.ops.layout import memory_format_of
from overfeat.ops.max_pool import max_pool
from overfeat.ops.registry import Backend

# Below this many positions, a GEMM on gathered windows beats the CPU's convolution, which repacks its weights at
# every call (420 MB in the accurate net).
GATHER_MAX_POSITIONS = 512


def offset_max_pool(maps: Tensor, size: int, dilation: int) -> Tensor:
    """See ops.offset_max_pool."""
    pooled = _pool(maps, size, dilation)
    return pooled.clone(memory_format=memory_format_of(maps)) if pooled is maps else pooled  # an op must not alias


def _pool(maps: Tensor, size: int, dilation: int = 1) -> Tensor:
    if size == 1:
        return maps
    pooled = max_pool(maps, (size, size), dilation=(dilation, dilation))
    return pooled.contiguous(memory_format=memory_format_of(maps))


def offset_max_pool_backward(grad: Tensor, maps: Tensor, size: int, dilation: int) -> Tensor:
    """The gradient of the maps."""
    window = [size, size], [1, 1], [0, 0], [dilation, dilation]
    _, indices = torch.ops.aten.max_pool2d_with_indices(maps, *window)
    grad_maps = torch.ops.aten.max_pool2d_with_indices_backward(grad, maps, *window, False, indices)
    return grad_maps.contiguous(memory_format=memory_format_of(maps))


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int
) -> Tensor:
    """See ops.skip_classifier_flat: a dilated convolution of the pooled maps."""
    results: dict[int, Tensor] = {}
    small = []
    shapes = layout.output_shapes(maps, weight, size, tap)
    for i, (m, (n, height, width)) in enumerate(zip(maps, shapes, strict=True)):
        pooled = _pool(m, size)
        if m.device.type == "cpu" and n * height * width < GATHER_MAX_POSITIONS:
            small.append((i, pooled))
        else:
            results[i] = layout.flatten_positions(F.conv2d(pooled, weight, bias, dilation=tap))
    results.update(_gathered(small, weight, bias, tap))
    flat = layout.concat([results[i] for i in range(len(maps))])
    return flat.relu_() if relu else flat


def _gathered(
    pooled: list[tuple[int, Tensor]], weight: Tensor, bias: Tensor | None, tap: int
) -> Iterator[tuple[int, Tensor]]:
    """The dilated convolution of several small maps as one GEMM: yields (index, flat outputs) in the order given."""
    if not pooled:
        return
    k_y, k_x = weight.shape[2:]
    windows = []
    for _, p in pooled:
        last = p.permute(0, 2, 3, 1).contiguous()
        n, h, w, c = last.shape
        shape = (n, h - (k_y - 1) * tap, w - (k_x - 1) * tap)
        s = last.stride()
        taps = last.as_strided((*shape, k_y, k_x, c), (s[0], s[1], s[2], tap * s[1], tap * s[2], 1))
        windows.append(taps.reshape(-1, k_y * k_x * c))
    flat = F.linear(torch.cat(windows), layout.flatten_maps(weight), bias)
    for (i, _), chunk in zip(pooled, flat.split([len(w) for w in windows]), strict=True):
        yield i, chunk


def skip_classifier_flat_backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int, tap: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the maps (if needed), then of the weight and the bias (if needed)."""
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    grad_maps, grad_weight, grad_bias = [], None, None
    chunks = layout.unflatten_positions(grad, maps, layout.output_shapes(maps, weight, size, tap))
    for m, chunk in zip(maps, chunks, strict=True):
        of_pooled, of_weight, of_bias = torch.ops.aten.convolution_backward(
            chunk, _pool(m, size), weight, [weight.shape[0]], [1, 1], [0, 0], [tap, tap], False, [0, 0], 1,
            [need_maps, need_weight, need_weight],
        )  # fmt: skip
        if need_maps:
            of_pooled = of_pooled.contiguous(memory_format=memory_format_of(m))
            grad_maps.append(of_pooled if size == 1 else offset_max_pool_backward(of_pooled, m, size, 1))
        if need_weight:
            grad_weight = of_weight if grad_weight is None else grad_weight + of_weight
            grad_bias = of_bias if grad_bias is None else grad_bias + of_bias
    if grad_weight is not None:
        grad_maps += [grad_weight.contiguous(memory_format=memory_format_of(weight)), grad_bias]
    return grad_maps


def convolution(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool, dilation: int
) -> Tensor:
    """See ops.convolution."""
    result = F.conv2d(maps, weight, bias, stride, pad, dilation)
    return result.relu_() if relu else result


def convolution_pool(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, pool: int) -> Tensor:
    """See ops.convolution_pool."""
    return F.max_pool2d(convolution(maps, weight, bias, stride, pad, True, 1), pool)


def linear(flat: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """See ops.linear."""
    result = F.linear(flat, weight.flatten(1), bias)
    return result.relu_() if relu else result


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """See ops.normalise."""
    # In at least float32: bfloat16 would round the pixels before the mean is subtracted.
    images = images.to(torch.promote_types(dtype, torch.float32), memory_format=layout.evaluation_format())
    shift, scale = (
        # Filled on the device: a CUDA graph cannot hold a copy from the host.
        values[0] if len(values) == 1 else torch.cat([images.new_full((1, 1, 1), value) for value in values])
        for values in (mean, std)
    )
    return (images - shift).div_(scale).to(dtype)


def chain(maps: Sequence[Tensor], layers: Sequence[Any]) -> None:
    """See ops.chain: PyTorch has no such call."""
    return None


def class_scores(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """See ops.class_scores."""
    scores = logits.new_empty(len(counts), logits.shape[1], dtype=torch.float32)
    for row, segment in zip(scores, logits.split(list(counts)), strict=True):
        torch.amax(segment.float().softmax(dim=1), dim=0, out=row)
    return scores


def merge_boxes(boxes: Tensor, scores: Tensor, lengths: list[int], **rule: Any) -> tuple[Tensor, ...]:
    """See ops.merge_boxes: on the CPU, by numba where it is installed."""
    return (numba_modules.load("numba_merge") or eager_boxes).merge_boxes(boxes, scores, lengths, **rule)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        offset_max_pool, offset_max_pool_backward, skip_classifier_flat, skip_classifier_flat_backward,
        chain, class_scores, convolution, convolution_pool, linear, merge_boxes, normalise,
    )
}  # fmt: skip
BACKEND = Backend("torch", FUNCTIONS)
