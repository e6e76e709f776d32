"""Training a classifier on labelled images: the task that `training.train` needs (section 3.1)."""

from functools import cached_property
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from overfeat.classification.data import CentreDataset, CropDataset
from overfeat.data.image_folder import ImageFolder
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.overfeat import OverFeat
from overfeat.training.config import TrainConfig
from overfeat.training.sampler import SkippedFiles, evaluate_means, validation_loader


class ClassifierTask:
    """Trains an OverFeat net on random crops with the cross entropy of its classes.

    data, validation: images labelled by net.class_names, in that order. resize: the range of the
    shorter side; None is the net's own. flip: train on mirror images too. Validation is on centre
    crops. Raises InputError where classes, sizes or files do not fit.
    """

    monitor = "validation_top1_error"

    def __init__(
        self,
        net: OverFeat,
        data: ImageFolder,
        config: TrainConfig,
        validation: ImageFolder | None = None,
        resize: tuple[int, int] | None = None,
        crops: int = 5,
        flip: bool = True,
        max_pixels: int | None = None,
    ):
        for folder in (data, validation):
            if folder is not None and folder.class_names != net.class_names:
                raise InputError("the images' classes are not the net's class_names; see data.folder.align")
        short_side, window = net.architecture.short_side, net.architecture.window
        resize = resize or (short_side, short_side)
        net.flip = flip
        if net.context is not None:
            net.context.requires_grad_(False)  # classification does not use it
        self.module, self.config = net, config
        self.data = CropDataset(data, window, resize, crops, flip, config.seed, max_pixels)
        self.data.cache.check()
        self.validation = validation and CentreDataset(validation, window, short_side, max_pixels)
        self.unreadable = SkippedFiles()
        known = ARCHITECTURES.get(net.architecture.name)
        self.settings = {
            "net": known.name if known == net.architecture else net.architecture.to_json(),
            "data": data.describe(),
            "validation": validation and validation.describe(),
            "resize": f"{resize[0]} {resize[1]}",
            "crops": crops,
            "flip": flip,
            "dropout": net.dropout,
            "max_pixels": max_pixels,
        }

    def dataset(self) -> CropDataset:
        """Five crops of every image and their mirror images."""
        return self.data

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """image uint8 [N, 3, H, W], label [N], unreadable [N]."""
        return default_collate(samples)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Mean cross entropy, and sums of it and of the top-1 errors."""
        scores = module(batch["image"]).flatten(1)
        loss = F.cross_entropy(scores, batch["label"])
        wrong = (scores.detach().argmax(1) != batch["label"]).sum()
        return loss, {"samples": len(scores), "loss": loss * len(scores), "top1_error": wrong}

    def validate(self) -> dict[str, object]:
        """validation_loss, validation_top1_error and validation_top5_error on centre crops."""
        if self.validation is None:
            return {}
        device = next(self.module.parameters()).device
        means = evaluate_means(self._loader, self._score, device, self.unreadable)
        figures = {f"validation_{key}": value for key, value in means.items()}
        return {**figures, "unreadable": sorted(self.unreadable.files)}

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load` reads it."""
        checkpoint.save(self.module, path)

    @cached_property
    def _loader(self) -> DataLoader:
        return validation_loader(self.validation, self.config.batch, self.config.workers)

    def _score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
        usable = batch["label"] >= 0
        labels = batch["label"][usable]
        scores = self.module(batch["image"]).flatten(1).float()[usable]
        best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
        return {
            "samples": len(labels),
            "loss": F.cross_entropy(scores, labels, reduction="sum"),
            "top1_error": (~best[:, 0]).sum(),
            "top5_error": (~best.any(1)).sum(),
        }
