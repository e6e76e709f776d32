"""Training a detector: positive windows, negatives chosen on the fly, and boxes (section 5)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.data.annotated import Annotated
from overfeat.dense.context import context_features, half_resolution
from overfeat.dense.grid import Grid
from overfeat.dense.tiling import Tile
from overfeat.detection.build import fitting, samples_for
from overfeat.detection.config import TRAINING, DetectorConfig
from overfeat.detection.data import TileDataset
from overfeat.detection.hard_negatives import sample_negatives
from overfeat.detection.targets import assign_targets
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.geometry import Stride
from overfeat.models.overfeat import OverFeat
from overfeat.ops.boxes import decode, encode, paired_iou
from overfeat.training.config import TrainConfig
from overfeat.training.task import Sums, Task, check_classes, check_objects, describe_data

TILE_WINDOWS = 4  # windows along a tile's side
VALIDATION_TILES = 200  # at least
FIGURES = ("loss", "missed_error", "false_error", "iou_error")


class Detector(nn.Module):
    """A net with a background class and its regressor in one forward pass."""

    def __init__(self, net: OverFeat, regressor: BoxRegressor, freeze_features: bool = False):
        super().__init__()
        self.net, self.regressor, self.freeze_features = net, regressor, freeze_features
        net.feature_layers.requires_grad_(not freeze_features)

    def forward(self, images: Sequence[Tensor], stride: Stride, positives: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class scores of all windows [windows, classes], and boxes [positives, classes or 1, 4].

        images: uint8 [3, H, W] each; positives: int64 [k] of each, the windows whose boxes are predicted.
        """
        net, maps, context = self.net, [], []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_features):
            for image in images:
                size = (image.shape[1], image.shape[2])
                grid = Grid(net.geometry.window, net.geometry.stride(stride), size, size)
                maps.append(net.features(image[None]))
                if net.context is not None:
                    half = half_resolution(net, image[None], size)
                    context.append(context_features(net, half, Tile.whole(grid)))
        logits = net.forward_head_flat(maps, stride, context)[0]
        if net.context is not None:  # DDP needs its gradient even where no image is large enough for it
            logits = logits + 0 * net.context.weight.sum()
        return logits, self.regressor.forward_flat(maps, stride, positives)[0]


class DetectorTask(Task):
    """Trains a net with a background class on tiles of images, and the boxes of the positive windows.

    `assign_targets` decides which window is positive for which object, `sample_negatives` which negatives contribute
    to the loss. Positive and negative windows of a tile weigh the same, whatever their numbers. The figures of the
    log are means over the tiles with positive windows. Arguments: see `Task`; `build_detector` makes the nets. The
    net's `flip` and `dropout` become those of the options; labels do not count its last class, the background.
    """

    options: DetectorConfig

    def __init__(
        self,
        net: OverFeat,
        regressor: BoxRegressor,
        data: Annotated,
        validation: Annotated | None = None,
        options: DetectorConfig = DetectorConfig(),
        train: TrainConfig = TRAINING,
    ):
        _check(net, regressor, data, validation)
        net.flip, net.dropout = options.flip, options.dropout
        side, factors = TILE_WINDOWS * net.architecture.window, net.scale_factors or ()
        common: dict[str, Any] = {"seed": train.seed, "max_pixels": options.max_pixels}

        def tiles_of(data: Annotated, samples: int, flip: bool) -> TileDataset:
            return TileDataset(data, net.architecture, factors, side, samples_per_image=samples, flip=flip, **common)

        tiles = tiles_of(data, options.samples_per_image or samples_for(len(data)), options.flip)
        validation_tiles = tiles_of(validation, -(-VALIDATION_TILES // len(validation)), False) if validation else None
        description = {
            **describe_data(data, validation),
            "architecture": net.architecture.to_json(),
            "scales": list(net.scale_factors or ()),
            "context": net.context is not None,
            **json.loads(regressor.to_json()),
        }
        self.detector = Detector(net, regressor, options.frozen(net.backbone is not None))
        super().__init__(self.detector, tiles, validation_tiles, options, train, description)

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """Cross entropy of positive and negative windows, and 1 - IoU of the boxes; sums over tiles with positives."""
        items = zip(batch["image"], batch["boxes"], batch["labels"], batch["difficult"], strict=True)
        targets = [self._targets(*item) for item in items]
        positives = [(objects >= 0).nonzero()[:, 0] for _, _, objects in targets]
        logits, values = module(batch["image"], self.options.stride, positives)
        logits, values = logits.float(), values.float()
        total = (logits.sum() + values.sum()) * 0  # DDP needs gradients of all weights
        sums: Sums = {"samples": 0, **dict.fromkeys(FIGURES, 0.0)}
        readable = max(1, int((batch["unreadable"] < 0).sum()))
        scores = logits.split([len(labels) for _, labels, _ in targets])
        boxes = values.split([len(indices) for indices in positives])
        for i, (windows, labels, objects) in enumerate(targets):
            if batch["unreadable"][i] >= 0:
                continue
            loss, figures = self._class_loss(scores[i], labels, positives[i])
            if len(positives[i]):
                own = objects[positives[i]]
                iou = self._box_iou(boxes[i], windows[positives[i]], batch["boxes"][i][own], batch["labels"][i][own])
                loss = loss + (1 - iou).mean()
                figures |= {"samples": 1, "iou_error": (1 - iou.detach()).mean(), "loss": loss.detach()}
                sums = {key: value + figures.get(key, 0.0) for key, value in sums.items()}
            total = total + loss / readable
        return total, sums

    def validate(self) -> dict[str, float]:
        """The figures of training on tiles of the validation images, the same tiles in every epoch."""
        torch.manual_seed(self.train.seed)
        return super().validate()

    def save(self, path: Path) -> None:
        """Write net and regressor as `overfeat.load` and `load_regressor` read them."""
        checkpoint.save(self.detector.net, path, regressor=self.detector.regressor)

    def _targets(
        self, image: Tensor, boxes: Tensor, labels: Tensor, difficult: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Windows [n, 4] of a tile, their classes [n] and objects [n]."""
        net, size = self.detector.net, (image.shape[1], image.shape[2])
        grid = Grid(net.geometry.window, net.geometry.stride(self.options.stride), size, size)
        windows = torch.from_numpy(grid.boxes()).to(boxes)
        targets, objects = assign_targets(windows, boxes, labels, background=net.num_classes - 1, ignored=difficult)
        return windows.view(-1, 4), targets.flatten(), objects.flatten()

    def _class_loss(self, logits: Tensor, labels: Tensor, positive: Tensor) -> tuple[Tensor, Sums]:
        """The mean cross entropy of the positive windows plus that of the sampled negatives, and their errors."""
        entropy = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        background, options = self.detector.net.num_classes - 1, self.options
        sampling, count = options.negative_sampling, options.negatives_per_tile
        negative = sample_negatives(entropy.detach(), labels == background, sampling, count)
        loss, errors = logits.new_zeros(()), Sums()
        for name, indices in (("false_error", negative), ("missed_error", positive)):
            if len(indices):
                loss = loss + entropy[indices].mean()
                errors[name] = (logits[indices].argmax(dim=1) != labels[indices]).float().mean()
        return loss, errors

    def _box_iou(self, values: Tensor, windows: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """IoU [k] of the predicted boxes [k, classes or 1, 4] with those of the objects."""
        coder = self.detector.regressor.box_coder
        column = labels if self.detector.regressor.num_classes else torch.zeros_like(labels)
        unit = values.new_tensor([0.0, 0, 1, 1]).expand(len(labels), 4)
        true = decode(encode(boxes, windows, coder), unit, coder)
        predicted = values[torch.arange(len(column), device=column.device), column]
        return paired_iou(decode(predicted, unit, coder), true)


def _check(net: OverFeat, regressor: BoxRegressor, data: Annotated, validation: Annotated | None) -> None:
    """Raises InputError where net, regressor and data do not match."""
    if not net.background or net.scale_factors is None:
        raise InputError("a detector's net needs a background class and scale factors; see detection.build")
    regressor.check_made_for(net)
    check_classes(net.class_names[:-1], data, validation)
    check_objects(data, validation)
    for annotated, name in ((data, "training"), (validation, "validation")):
        if annotated is None:
            continue
        easy = ~np.concatenate([sample.difficult for sample in annotated.samples])
        if not (fitting(annotated, net) & easy).any():
            factors = ", ".join(f"{factor:g}" for factor in net.scale_factors)
            raise InputError(
                f"no object of the {name} data fits the window of {net.architecture.window} px when images are "
                f"searched at {factors} times their size; give other scales"
            )
