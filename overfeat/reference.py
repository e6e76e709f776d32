"""Every op the way the paper says it, slow and obvious: the truth that the tests hold others to.

Plain torch throughout, so that autograd gives the reference gradients as well.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def offset_max_pool(maps: Tensor, size: int) -> Tensor:
    """Max over every size x size window: [N, C, H, W] -> [N, C, H-size+1, W-size+1]."""
    height, width = maps.shape[2] - size + 1, maps.shape[3] - size + 1
    rows = []
    for i in range(height):
        windows = [maps[:, :, i : i + size, j : j + size].flatten(2) for j in range(width)]
        rows.append(torch.stack([window.max(dim=2).values for window in windows], dim=2))
    return torch.stack(rows, dim=2)


def skip_classifier(maps: Tensor, weight: Tensor, bias: Tensor | None, size: int, relu: bool = True) -> Tensor:
    """Offset pooling and the classifier's first layer by the steps (a)-(e) of section 3.3.

    (a) maps [N, C, H, W], unpooled; (b), (c) non-overlapping max pooling once for every offset;
    (d) the classifier's window slid over each pooled map; (e) the results interleaved. weight is
    [O, C, k, k], bias [O] or None; the result [N, O, H-k*size+1, W-k*size+1].
    """
    k = weight.shape[2]
    height, width = maps.shape[2] - k * size + 1, maps.shape[3] - k * size + 1
    output = maps.new_empty(maps.shape[0], weight.shape[0], height, width)
    for y in range(size):
        for x in range(size):
            if y >= height or x >= width:
                continue  # the shifted maps are too small for one window
            pooled = torch.nn.functional.max_pool2d(maps[:, :, y:, x:], size)
            rows, columns = pooled.shape[2] - k + 1, pooled.shape[3] - k + 1
            for i in range(rows):
                for j in range(columns):
                    window = pooled[:, :, i : i + k, j : j + k]
                    value = torch.einsum("ncyx,ocyx->no", window, weight)
                    if bias is not None:
                        value = value + bias
                    output[:, :, i * size + y, j * size + x] = value.relu() if relu else value
    return output


def best_scores(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax at every place, then for each class the maximum over the places of a run (section 3.3, i)."""
    return torch.stack([part.softmax(dim=1).max(dim=0).values for part in scores.float().split(list(counts))])
