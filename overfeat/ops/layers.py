"""The net's other layers: eager PyTorch in training, a backend in evaluation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overfeat.ops.backends import eager
from overfeat.ops.registry import implementation
from overfeat.ops.transforms import is_transformed


def convolution(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool = True, dilation: int = 1
) -> Tensor:
    """A convolution and its ReLU.

    Eager PyTorch if gradients are enabled, under autocast, in torch.func's transforms and in compiled code; otherwise a
    backend that has it.
    maps [N, C, H, W], weight [O, C, k_y, k_x], bias [O] or None -> [N, O, h, w].
    """
    return _evaluation("convolution", maps, weight, bias)(maps, weight, bias, stride, pad, relu, dilation)


def convolution_pool(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, pool: int
) -> Tensor:  # fmt: skip
    """`convolution` and its ReLU, then a max pooling of pool x pool values that do not overlap; NaN propagates."""
    return _evaluation("convolution_pool", maps, weight, bias)(maps, weight, bias, stride, pad, pool)


def linear(flat: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = True) -> Tensor:
    """A fully connected layer after the first, and its ReLU; backends as for `convolution`.

    Flat features [positions, C], weight [O, C, 1, 1], bias [O] or None -> [positions, O].
    """
    return _evaluation("linear", flat, weight, bias)(flat, weight, bias, relu)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(x - mean) / std of images [N, C, H, W] in a dtype, channels last.

    mean, std: One value, or one for each channel.
    """
    return _evaluation("normalise", images, images, None)(images, mean, std, dtype)


def _evaluation(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    """The implementation of an op that backends run in evaluation only."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type == "meta"
    plain = plain or torch.is_autocast_enabled(x.device.type) or is_transformed(x, weight, bias)
    if plain or x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        return eager.BACKEND.functions[op]
    return implementation(op, x)
