"""Hard-negative mining: the negative windows that contribute to the loss, chosen at every step (section 5)."""

import torch
from torch import Tensor


def sample_negatives(loss: Tensor, negative: Tensor, sampling: str, count: int) -> Tensor:
    """Indices of the negative windows of a batch that contribute to its loss.

    Args:
        loss: [n], the loss of each window.
        negative: bool [n].
        sampling: "hard": those with the highest loss; "random"; "half_hard": half of each, where a random one may be
            among the hard ones; "none".
        count: How many, if there are as many.

    Returns:
        int64 [at most count], the hard ones first.
    """
    indices = negative.nonzero()[:, 0]
    num_hard = {"hard": count, "half_hard": (count + 1) // 2}.get(sampling, 0)
    hard = indices[loss[indices].topk(min(num_hard, len(indices))).indices]
    num_random = 0 if sampling == "none" else count - num_hard
    random = torch.randperm(len(indices))[:num_random].to(indices.device)
    return torch.cat([hard, indices[random]])
