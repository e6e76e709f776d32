"""Softmax and the maximum over positions: the class scores of a scale (section 3.3, step i)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.ops import reference, transforms
from overfeat.ops.library import operator
from overfeat.ops.registry import implementation


def class_scores(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax at every position, then each class's maximum over the positions of a segment (section 3.3, i).

    Flat logits [M, num_classes] give float32 [len(counts), num_classes], without a gradient. counts: positions of
    each segment (a scale or a flip), which add up to M; otherwise ValueError.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must be [M, num_classes]; these have shape {tuple(logits.shape)}")
    if min(counts, default=1) < 1 or sum(counts) != len(logits):
        raise ValueError(f"counts must be positive and add up to {len(logits)} positions, not {list(counts)}")
    if transforms.is_transformed(logits):
        return reference.class_scores(logits, counts)
    return torch.ops.overfeat.class_scores(logits, list(counts))


@operator("overfeat::class_scores")
def _class_scores(logits: Tensor, counts: Sequence[int]) -> Tensor:
    return implementation("class_scores", logits, logits.shape[1])(logits, counts)


@_class_scores.register_fake
def _(logits: Tensor, counts: Sequence[int]) -> Tensor:
    return logits.new_empty(len(counts), logits.shape[1], dtype=torch.float32)
