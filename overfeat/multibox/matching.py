"""Matching predicted boxes with objects (DeepMultiBox, section 3)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from overfeat.errors import InputError

ALPHA = 0.3


def multibox_loss(
    boxes: Tensor,
    logits: Tensor,
    truths: Sequence[Tensor],
    priors: Tensor | None = None,
    alpha: float = ALPHA,
    difficult: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """F of every image (equations 1 to 5): alpha * F_match + F_conf, at the best assignment of boxes to objects.

    boxes float [P, K, 4] and logits [P, K] of their confidences, for P images (or classes of them); truths: [M, 4] of
    each, in the same frame, in which the image is the unit square. priors [K, 4]: objects are assigned to the priors
    nearest to them, all distances together as small as can be ("prior matching"); None: to the boxes for which F is
    least. Where there are more objects than boxes, those that fit least are left over. difficult: bool [M] of each: an
    assigned box learns nothing from such an object. NaN gives NaN. Gives F [P], F_match [P], and the assignment as
    int64 [n, 3]: the image, the box, and the object, counted over all images. Raises ValueError for other shapes.

    The derivatives are sum_j alpha x_ij (l_i - g_j) by l_i, where equation 6 leaves alpha out, and
    (c_i - sum_j x_ij) / (c_i (1 - c_i)) by c_i, where equation 7 lacks a term.
    """
    if len(truths) != len(boxes) or boxes.shape[:2] != logits.shape or boxes.shape[2:] != (4,):
        raise ValueError(
            f"boxes [P, K, 4], logits [P, K] and P truths are needed, not {tuple(boxes.shape)}, {tuple(logits.shape)} "
            f"and {len(truths)}"
        )
    counts = [len(t) for t in truths]
    owner = torch.repeat_interleave(torch.tensor(counts, device=boxes.device))
    true = torch.cat([boxes.new_empty(0, 4), *truths])
    with torch.no_grad():
        if priors is not None:
            costs = (true[:, None] - priors[None]).square().sum(dim=2)
        else:
            away = (true[:, None] - boxes[owner]).square().sum(dim=2)
            costs = alpha / 2 * away - logits[owner]  # -log c + log(1 - c) is minus the logit
        assigned = hungarian_match(costs, counts).to(boxes.device)
    object_, box = assigned.unbind(dim=1)
    image = owner[object_]
    easy = torch.ones(len(assigned), dtype=torch.bool, device=boxes.device)
    if difficult is not None:
        easy = ~torch.cat([easy[:0], *difficult])[object_]
    apart = (boxes[image, box] - true[object_]).square().sum(dim=1) / 2
    match = boxes.new_zeros(len(boxes)).index_add(0, image, apart * easy)
    target, weight = torch.zeros_like(logits), torch.ones_like(logits)
    target[image, box], weight[image, box] = 1.0, easy.to(weight)
    confidence = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum(dim=1)
    return alpha * match + confidence, match, torch.stack([image, box, object_], dim=1)


def hungarian_match(costs: Tensor, counts: Sequence[int]) -> Tensor:
    """The assignment of least total cost, problem by problem: int64 [n, 2], (row, column), rows counted over all.

    costs [rows, K]; counts: the rows of each problem. No row and no column of a problem is taken twice, and as many
    are taken as can be. Of equal assignments SciPy's choice, the same every time.
    """
    every = np.nan_to_num(costs.cpu().double().numpy(), nan=1e9, posinf=1e9, neginf=-1e9)
    found, start = [np.empty((0, 2), dtype=np.int64)], 0
    for count in counts:
        rows, columns = linear_sum_assignment(every[start : start + count])
        found.append(np.stack([rows + start, columns], axis=1))
        start += count
    return torch.from_numpy(np.concatenate(found))


def fit_priors(boxes: np.ndarray, count: int, seed: int = 0) -> Tensor:
    """The means of `count` clusters of boxes [n, 4] (k-means, one k-means++ start), float32 [count, 4].

    Raises InputError where there are fewer different boxes.
    """
    different = len(np.unique(boxes, axis=0))
    if not different:
        raise InputError("no object lies by half in any square that training looks at; are the boxes right?")
    if different < count:
        raise InputError(f"{different} different boxes are too few for {count} priors; give fewer --predictions")
    means, _ = kmeans2(boxes, count, iter=20, minit="++", missing="warn", rng=seed)
    return torch.from_numpy(means).float()
