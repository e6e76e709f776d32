"""Matching of predicted boxes and objects, and the loss (DeepMultiBox, section 3).

The derivatives of the loss are sum_j alpha x_ij (l_i - g_j) by l_i, where equation 6 leaves alpha out, and
(c_i - sum_j x_ij) / (c_i (1 - c_i)) by c_i, where equation 7 lacks a term.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.errors import InputError
from overfeat.multibox.config import ALPHA
from overfeat.packages import package


def multibox_loss(
    boxes: Tensor, logits: Tensor, truths: Sequence[Tensor],
    *, priors: Tensor | None = None, alpha: float = ALPHA, difficult: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """F = alpha * F_match + F_conf of every image, at the optimal assignment of boxes to objects (equations 1 to 5).

    Args:
        boxes: Float [P, K, 4], predictions of P images (or of P classes of images), in the unit square.
        logits: [P, K], of their confidences.
        truths: [M, 4] of each image, the objects.
        priors: [K, 4]: objects are assigned to the priors with the smallest total distance ("prior matching"); None:
            to the predictions with the smallest F. Where there are more objects than boxes, the worst are left out.
        alpha: Weight of the localization loss.
        difficult: Bool [M] of each image; a box assigned to such an object does not contribute to the loss.

    Returns:
        F [P] (NaN for NaN inputs); F_match [P]; the assignment int64 [n, 3]: image, box, object counted over images.
        Raises ValueError where shapes do not match.
    """
    if len(truths) != len(boxes) or boxes.shape[:2] != logits.shape or boxes.shape[2:] != (4,):
        actual = f"{tuple(boxes.shape)}, {tuple(logits.shape)} and {len(truths)}"
        raise ValueError(f"boxes [P, K, 4], logits [P, K] and P truths are needed, not {actual}")
    true = torch.cat([boxes.new_empty(0, 4), *truths])
    image, box, object_ = _assign(boxes, logits, truths, priors, alpha).unbind(dim=1)
    easy = torch.ones_like(box, dtype=torch.bool)
    if difficult is not None:
        easy = ~torch.cat([easy[:0], *difficult])[object_]
    distance = (boxes[image, box] - true[object_]).square().sum(dim=1) / 2
    match = boxes.new_zeros(len(boxes)).index_add(0, image, distance * easy)
    target, weight = torch.zeros_like(logits), torch.ones_like(logits)
    target[image, box], weight[image, box] = 1.0, easy.to(weight)
    confidence = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum(dim=1)
    return alpha * match + confidence, match, torch.stack([image, box, object_], dim=1)


@torch.no_grad()
def _assign(boxes: Tensor, logits: Tensor, truths: Sequence[Tensor], priors: Tensor | None, alpha: float) -> Tensor:
    """The optimal assignment of boxes to objects, int64 [n, 3]; arguments and result as of `multibox_loss`."""
    counts = [len(t) for t in truths]
    owner = torch.repeat_interleave(torch.tensor(counts, device=boxes.device))
    true = torch.cat([boxes.new_empty(0, 4), *truths])
    costs = (true[:, None] - (boxes[owner] if priors is None else priors[None])).square().sum(dim=2)
    if priors is None:
        costs = alpha / 2 * costs - logits[owner]  # -log c + log(1 - c) is minus the logit
    object_, box = hungarian_match(costs, counts).to(boxes.device).unbind(dim=1)
    return torch.stack([owner[object_], box, object_], dim=1)


def hungarian_match(costs: Tensor, counts: Sequence[int]) -> Tensor:
    """The assignment of smallest total cost, problem by problem: costs [rows, K], counts the rows of each problem.

    Returns int64 [n, 2], (row, column), rows counted over all problems. No row and no column of a problem is matched
    twice, and as many are matched as possible; ties are broken as in SciPy, deterministically.
    """
    assign = package("scipy.optimize", "DeepMultiBox's matching needs", "train").linear_sum_assignment
    finite = np.nan_to_num(costs.cpu().double().numpy(), nan=1e9, posinf=1e9, neginf=-1e9)
    pairs, start = [np.empty((0, 2), dtype=np.int64)], 0
    for count in counts:
        rows, columns = assign(finite[start : start + count])
        pairs.append(np.stack([rows + start, columns], axis=1))
        start += count
    return torch.from_numpy(np.concatenate(pairs))


def fit_priors(boxes: np.ndarray, count: int, seed: int = 0) -> Tensor:
    """The means of clusters of boxes [n, 4] (k-means with one k-means++ start), float32 [count, 4].

    Raises InputError where there are fewer distinct boxes.
    """
    kmeans2 = package("scipy.cluster.vq", "DeepMultiBox's priors need", "train").kmeans2
    distinct = len(np.unique(boxes, axis=0))
    if not distinct:
        raise InputError("no training square holds half of an object; are the boxes right?")
    if distinct < count:
        raise InputError(f"{distinct} distinct boxes are too few for {count} priors; lower num_boxes")
    means, _ = kmeans2(boxes, count, iter=20, minit="++", missing="warn", rng=seed)
    return torch.from_numpy(means).float()
