"""Every op as the paper describes it, slow and obvious: the reference that all backends are tested against.

Plain torch throughout, so that autograd gives the reference gradients as well.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.ops.backends import eager
from overfeat.ops.boxes import match_score
from overfeat.ops.layout import flatten_positions, output_shapes
from overfeat.ops.registry import Backend


def offset_max_pool(maps: Tensor, size: int, dilation: int = 1) -> Tensor:
    """Max over every size x size window of values `dilation` apart; shapes as in ops.offset_max_pool."""
    reach = (size - 1) * dilation
    rows = []
    for i in range(maps.shape[2] - reach):
        values = maps[:, :, i : i + reach + 1 : dilation]
        windows = [values[..., j : j + reach + 1 : dilation].flatten(2) for j in range(maps.shape[3] - reach)]
        rows.append(torch.stack([window.max(dim=2).values for window in windows], dim=2))
    return torch.stack(rows, dim=2)


def skip_classifier(
    maps: Tensor, weight: Tensor, bias: Tensor | None, size: int, relu: bool = True, tap: int | None = None
) -> Tensor:
    """Offset pooling and the classifier's first layer by the steps (a)-(e) of section 3.3.

    (a) maps [N, C, H, W], unpooled; (b), (c) max pooling of stride `tap` once for every offset; (d) the classifier's
    window slid over each pooled map; (e) the results interleaved. Shapes as in ops.skip_classifier.
    """
    tap = size if tap is None else tap
    ((n, height, width),) = output_shapes([maps], weight, size, tap)
    k_y, k_x = weight.shape[2:]
    output = maps.new_empty(n, weight.shape[0], height, width)
    for y in range(min(tap, height)):
        for x in range(min(tap, width)):
            pooled = torch.nn.functional.max_pool2d(maps[:, :, y:, x:], size, tap)
            for i in range(pooled.shape[2] - k_y + 1):
                for j in range(pooled.shape[3] - k_x + 1):
                    window = pooled[:, :, i : i + k_y, j : j + k_x]
                    value = torch.einsum("ncyx,ocyx->no", window, weight)
                    if bias is not None:
                        value = value + bias
                    output[:, :, i * tap + y, j * tap + x] = value.relu() if relu else value
    return output


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int
) -> Tensor:
    """`skip_classifier` on each of the maps, as flat features [positions, O]."""
    return torch.cat([flatten_positions(skip_classifier(m, weight, bias, size, relu, tap)) for m in maps])


def class_scores(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax at every position, then each class's maximum over the positions of a segment (section 3.3, i)."""
    segments = logits.float().split(list(counts))
    return torch.stack([s.softmax(dim=1).amax(dim=0) for s in segments]) if segments else logits.float()[:0]


def merge_boxes(
    boxes: Tensor, scores: Tensor, lengths: Sequence[int], *,
    match_threshold: float, match_metric: str, box_average: str, min_iou: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Steps (d)-(g) of section 4.3 for each run of `lengths` boxes; O(n^3) for each.

    Returns:
        boxes [T, 4], summed scores [T], maximum scores [T], counts int64 [T] (0 for a box that was merged into
        another), and int64 [T], the index of the box that it was merged into, or -1.
    """
    boxes, sums, max_score = boxes.clone(), scores.clone(), scores.clone()
    counts = torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)
    merged_into = torch.full_like(counts, -1)
    limit = torch.tensor(match_threshold, dtype=boxes.dtype)
    for left in torch.arange(len(boxes), device=boxes.device).split(list(lengths)):
        while len(left) > 1:
            pairs = match_score(boxes[left], boxes[left], match_metric=match_metric, min_iou=min_iou)
            pairs = pairs.masked_fill(torch.ones_like(pairs, dtype=torch.bool).tril(), torch.inf)
            first = int(pairs.argmin())  # of the smallest: by i, then by j
            if not pairs.view(-1)[first] <= limit or pairs.view(-1)[first] == torch.inf:
                break
            i, j = left[first // len(left)], left[first % len(left)]
            weight_i, weight_j = (counts[i], counts[j]) if box_average == "counts" else (1, 1)
            mean = (boxes[i] * weight_i + boxes[j] * weight_j) / (weight_i + weight_j)
            boxes[i] = mean.clamp(boxes[i].minimum(boxes[j]), boxes[i].maximum(boxes[j]))  # rounding may exceed them
            sums[i] += sums[j]
            max_score[i] = torch.maximum(max_score[i], max_score[j])
            counts[i] += counts[j]
            counts[j] = 0
            merged_into[j] = i
            left = left[left != j]
    return boxes, sums, max_score, counts, merged_into


# What has no slow twin (gradients in compiled code, convolutions) runs in eager PyTorch.
BACKEND = Backend("reference", {
    **eager.FUNCTIONS,
    "offset_max_pool": offset_max_pool,
    "skip_classifier_flat": skip_classifier_flat,
    "class_scores": class_scores,
    "merge_boxes": merge_boxes,
})  # fmt: skip
