"""Max pooling of any stride and dilation, without the indices that gradients need."""

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(
    maps: Tensor, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Max over windows of maps [N, C, H, W], without padding; NaN propagates. Evaluation only.

    One axis is reduced after the other. On a CPU by torch.maximum, which is vectorised and keeps the memory format;
    max_pool2d, which records indices, takes 2 to 30 times as long there at stride 1.
    """
    if torch.compiler.is_compiling():  # one operator, as other runtimes have it
        return F.max_pool2d(maps, kernel, stride, 0, dilation)
    if maps.device.type not in ("cpu", "meta"):
        columns = F.max_pool2d(maps, (1, kernel[1]), (1, stride[1]), 0, (1, dilation[1]))
        return F.max_pool2d(columns, (kernel[0], 1), (stride[0], 1), 0, (dilation[0], 1))
    for dim, k, s, d in zip((2, 3), kernel, stride, dilation, strict=True):
        count = (maps.shape[dim] - (k - 1) * d - 1) // s + 1
        shifted = [_every(maps.narrow(dim, i * d, (count - 1) * s + 1), dim, s) for i in range(k)]
        maps = shifted[0] if k == 1 else torch.maximum(shifted[0], shifted[1])
        for values in shifted[2:]:
            torch.maximum(maps, values, out=maps)
    return maps


def _every(maps: Tensor, dim: int, step: int) -> Tensor:
    return maps if step == 1 else maps[:, :, ::step] if dim == 2 else maps[..., ::step]
