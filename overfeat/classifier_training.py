"""Training a classifier on labelled images: the task that `training.train` needs (section 3.1)."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from overfeat import weights
from overfeat.architectures import ARCHITECTURES
from overfeat.batches import Unreadable, mean_over, validation_loader
from overfeat.data.crops import CentreDataset, CropDataset
from overfeat.data.folder import ImageFolder, align, read_ilsvrc, read_image_folder
from overfeat.files import InputError
from overfeat.nets import OverFeat
from overfeat.training import TrainConfig


class ClassifierTask:
    """Trains an OverFeat net on random crops with the cross entropy of its classes.

    data, validation: images labelled by net.class_names, in that order. resize: the range of the
    shorter side; None is the net's own. flip: train on mirror images too. Validation is on centre
    crops. Raises InputError where classes, sizes or files do not fit.
    """

    judged_by = "validation_top1_error"

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
        self.data.store.check()
        self.validation = validation and CentreDataset(validation, window, short_side, max_pixels)
        self.unreadable = Unreadable()
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
        means = mean_over(self._loader, self._score, device, self.unreadable)
        figures = {f"validation_{key}": value for key, value in means.items()}
        return {**figures, "unreadable": sorted(self.unreadable.files)}

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load` reads it."""
        weights.save(self.module, path)

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


def read_data(
    data: str | os.PathLike, validation: str | os.PathLike | None, devkit: str | os.PathLike | None
) -> tuple[ImageFolder, ImageFolder | None]:
    """Training and validation images of --data, --validation and --devkit.

    Where `data` holds a folder train, its train and its validation or val, if any, are used.
    Without a devkit these are class folders, and those of the validation images must have the
    same names. Raises InputError as the readers do.
    """
    data = Path(data)
    if (data / "train").is_dir():
        found = [data / name for name in ("validation", "val") if (data / name).is_dir()]
        validation = validation or (found[0] if found else None)
        data = data / "train"
    if devkit:
        train = read_ilsvrc(devkit, data, "train")
        return train, validation and read_ilsvrc(devkit, validation, "validation")
    train = read_image_folder(data)
    if validation is None:
        return train, None
    try:
        return train, align(read_image_folder(validation), train.class_names)
    except InputError as error:
        raise InputError(f"{validation}: {error}") from error


def fit_classes(net: OverFeat, folder: ImageFolder, std: float) -> bool:
    """Give the net the classes of the images: a new last layer unless it has them; whether it is new.

    std: of the new layer's weights.
    """
    if sorted(net.class_names) == sorted(folder.class_names):
        return False
    net.replace_classes(folder.class_names, std)
    return True


def relabel(folders: Sequence[ImageFolder | None], net: OverFeat) -> list[ImageFolder | None]:
    """The images with labels that count in the net's classes."""
    return [folder and align(folder, net.class_names) for folder in folders]
