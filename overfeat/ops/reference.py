"""Every op the way the paper says it, slow and obvious: the truth that the tests hold others to.

Plain torch throughout, so that autograd gives the reference gradients as well.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.ops.boxes import match_score


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


def merge_boxes(
    boxes: Tensor, scores: Tensor, lengths: Sequence[int], threshold: float, match: str, average: str, overlap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The steps (d)-(g) of section 4.3 for each run of `lengths` boxes; O(n^3) for each.

    Gives boxes, sums, largest scores, counts (0 for a box that went into another), and for every
    box the number of the one that it went into, or -1.
    """
    boxes, sums, largest = boxes.clone(), scores.clone(), scores.clone()
    counts = torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)
    into = torch.full_like(counts, -1)
    for left in torch.arange(len(boxes), device=boxes.device).split(list(lengths)):
        while len(left) > 1:
            pairs = match_score(boxes[left], boxes[left], match, overlap)
            pairs = pairs.masked_fill(torch.ones_like(pairs, dtype=torch.bool).tril(), torch.inf)
            at = int(pairs.argmin())  # the first of the smallest: by i, then by j
            if not pairs.view(-1)[at] <= torch.tensor(threshold, dtype=boxes.dtype) or pairs.view(-1)[at] == torch.inf:
                break
            i, j = left[at // len(left)], left[at % len(left)]
            first, second = (counts[i], counts[j]) if average == "counts" else (1, 1)
            mean = (boxes[i] * first + boxes[j] * second) / (first + second)
            boxes[i] = mean.clamp(boxes[i].minimum(boxes[j]), boxes[i].maximum(boxes[j]))  # rounding may leave them
            sums[i] += sums[j]
            largest[i] = torch.maximum(largest[i], largest[j])
            counts[i] += counts[j]
            counts[j] = 0
            into[j] = i
            left = left[left != j]
    return boxes, sums, largest, counts, into
