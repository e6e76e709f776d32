"""Training of classifiers: the cross entropy and the errors that classification tasks share."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from overfeat.training.task import Sums, Task


class ClassificationTask(Task):
    """A task with the cross entropy of labelled windows; a label of -1 does not contribute to the loss.

    Batches hold image uint8 [N, 3, H, W], label int64 [N] and unreadable int64 [N].
    """

    monitor = "validation_top1_error"

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """See the class."""
        return default_collate(samples)

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """The mean cross entropy, and sums of it and of the top-1 errors."""
        scores, usable = module(batch["image"]).flatten(1), batch["label"] >= 0
        labels = batch["label"][usable]
        total = F.cross_entropy(scores[usable], labels, reduction="sum") + 0 * scores.sum()  # DDP needs all gradients
        errors = (scores.detach()[usable].argmax(1) != labels).sum()
        return total / max(1, len(labels)), {"samples": len(labels), "loss": total.detach(), "top1_error": errors}

    def score(self, batch: dict) -> Sums:
        """Sums of the cross entropy and of the top-1 and top-5 errors."""
        usable = batch["label"] >= 0
        labels = batch["label"][usable]
        scores = self.module(batch["image"]).flatten(1).float()[usable]
        correct = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
        return {
            "samples": len(labels),
            "loss": F.cross_entropy(scores, labels, reduction="sum"),
            "top1_error": (~correct[:, 0]).sum(),
            "top5_error": (~correct.any(1)).sum(),
        }
