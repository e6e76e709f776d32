"""Training a box regressor on annotated images (section 4.2)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.data.annotated import Annotated
from overfeat.dense.grid import Grid
from overfeat.dense.tiling import Pixels, Tile, tile_features
from overfeat.localization.config import TRAINING, BoxRegressorConfig
from overfeat.localization.data import ScaledDataset
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor, train_together
from overfeat.models.geometry import Stride
from overfeat.models.overfeat import OverFeat
from overfeat.ops.boxes import areas, decode, encode, intersections, paired_iou
from overfeat.training.config import TrainConfig
from overfeat.training.task import Sums, Task, check_classes, describe_data

MIN_VISIBLE = 0.5  # fraction of an object's box that a positive window holds


def build_regressor(net: OverFeat, options: BoxRegressorConfig) -> BoxRegressor:
    """The untrained regressor of these options."""
    classes, features = net.num_foreground_classes if options.per_class else None, options.box_features or "pooled"
    coder, hidden = options.box_coder, options.hidden
    return BoxRegressor(net.architecture, classes, box_coder=coder, hidden=hidden, box_features=features)


class Localizer(nn.Module):
    """A net and its regressor in one forward pass; the net is frozen unless `train_backbone`."""

    def __init__(self, net: OverFeat, regressor: BoxRegressor, train_backbone: bool = False):
        super().__init__()
        self.net, self.regressor, self.train_backbone = net, regressor, train_backbone
        net.requires_grad_(train_backbone)
        if net.context is not None:
            net.context.requires_grad_(False)  # not used here

    def train(self, mode: bool = True) -> "Localizer":
        """Training mode, of the net only if it is trained."""
        super().train(mode)
        self.net.train(mode and self.train_backbone)
        return self

    def forward(
        self, images: Sequence[Tensor], targets: Sequence["BoxTargets"], stride: Stride
    ) -> tuple[Tensor, Tensor | None]:
        """Boxes [positive windows, classes or 1, 4] for images uint8 [3, H, W] and their targets.

        If the net is trained, also the class scores of all windows in the targets' tiles [windows, classes].
        """
        pairs = zip(images, targets, strict=True)
        with torch.set_grad_enabled(self.train_backbone and torch.is_grad_enabled()):
            maps = [
                tile_features(self.net, Pixels(image[None], target.tile.grid.scaled), target.tile)
                for image, target in pairs
            ]
        values, _ = self.regressor.forward_flat(maps, stride, [t.positive for t in targets])
        return values, self.net.forward_head_flat(maps, stride)[0] if self.train_backbone else None


@dataclass(frozen=True)
class BoxTargets:
    """The positive windows of one image and the boxes they regress."""

    tile: Tile  # positions that hold all positive windows
    positive: Tensor  # int64 [k], indices into the windows of the tile, row by row
    windows: Tensor  # [k, 4], the positive windows in the image's pixels
    boxes: Tensor  # [k, 4], the object of each
    labels: Tensor  # int64 [k], its class


def assign_boxes(grid: Grid, boxes: Tensor, labels: Tensor) -> BoxTargets:
    """The windows of an image that hold at least half of an object, each with the object that it holds most of.

    boxes: [n, 4] in the image's pixels; labels: int64 [n]. Where no window is positive, the tile is the first one.
    """
    windows = torch.from_numpy(grid.boxes()).to(boxes)
    visible = intersections(windows.view(-1, 4), boxes) / areas(boxes)
    if not len(boxes):
        visible = visible.new_zeros(len(visible), 1)
    fraction, nearest = visible.max(dim=1)
    positive = fraction.view(grid.shape) >= MIN_VISIBLE
    rows, columns = (_span(positive.any(dim=axis)) for axis in (1, 0))
    indices = positive[rows, columns].flatten().nonzero()[:, 0]
    objects = nearest.view(grid.shape)[rows, columns].flatten()[indices]
    windows = windows[rows, columns].reshape(-1, 4)[indices]
    tile = Tile(grid, 0, slice(0, 1), rows, columns)
    return BoxTargets(tile, indices, windows, boxes[objects], labels[objects])


class RegressorTask(Task):
    """Trains a box regressor on all windows of all scales that hold at least half of an object.

    With `train_backbone` the net is trained too (the paper's future work), with the cross entropy of its classes at
    the same windows. All images with positive windows weigh the same within a batch. Arguments: see `Task`; the
    regressor's `dropout` becomes that of the options.
    """

    monitor = "validation_iou_error"
    options: BoxRegressorConfig

    def __init__(
        self,
        net: OverFeat,
        regressor: BoxRegressor,
        data: Annotated,
        validation: Annotated | None = None,
        options: BoxRegressorConfig = BoxRegressorConfig(),
        train: TrainConfig = TRAINING,
    ):
        check_classes(net.class_names, data, validation)
        regressor.check_made_for(net)
        regressor.dropout = options.dropout
        architecture, scales, limit = net.architecture, options.scales, options.max_pixels
        dataset = ScaledDataset(data, architecture, scales, flip=net.flip, max_pixels=limit)
        validation_images = ScaledDataset(validation, architecture, scales, max_pixels=limit) if validation else None
        description = {
            **describe_data(data, validation),
            "architecture": architecture.to_json(),
            "scales": str(dataset.scales),
            "flip": net.flip,
            **json.loads(regressor.to_json()),
        }
        self.localizer = Localizer(net, regressor, options.train_backbone)
        train_together(net, regressor)
        super().__init__(self.localizer, dataset, validation_images, options, train, description)

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """The mean over the images of the mean over their positive windows, and sums over the images."""
        targets = [self._targets(*item) for item in zip(batch["image"], batch["boxes"], batch["labels"], strict=True)]
        some = [number for number, target in enumerate(targets) if len(target.positive)]
        used = some or [0]  # without positives one image goes through all the same: DDP waits for every process
        images, targets = [batch["image"][number] for number in used], [targets[number] for number in used]
        values, scores = module(images, targets, self.options.stride)
        total = values.sum() * 0 + (0 if scores is None else scores.sum() * 0)  # DDP needs gradients of all weights
        sums: Sums = {"samples": len(some), "loss": 0.0, "iou_error": 0.0}
        start = 0
        by_image = values.split([len(target.positive) for target in targets])
        for target, predicted in zip(targets, by_image, strict=True) if some else ():
            column = target.labels if self.localizer.regressor.num_classes else torch.zeros_like(target.labels)
            predicted = predicted[torch.arange(len(column), device=column.device), column]
            loss, iou = self._losses(predicted, target.windows, target.boxes)
            if scores is not None:
                own = scores[start + target.positive]
                loss = loss + F.cross_entropy(own, target.labels, reduction="none")
            start += target.tile.num_positions
            total = total + loss.mean()
            sums["loss"] += loss.mean().detach()
            sums["iou_error"] += 1 - iou.mean()
        return total / max(1, len(some)), sums

    def save(self, path: Path) -> None:
        """Write net and regressor as `overfeat.load` and `load_regressor` read them."""
        checkpoint.save(self.localizer.net, path, regressor=self.localizer.regressor)

    def _targets(self, image: Tensor, boxes: Tensor, labels: Tensor) -> BoxTargets:
        architecture, size = self.localizer.net.architecture, (image.shape[1], image.shape[2])
        grid = Grid(architecture.geometry.window, architecture.stride(self.options.stride), size, size)
        return assign_boxes(grid, boxes, labels)

    def _losses(self, values: Tensor, windows: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [k] of each positive window, and the IoU [k] of its box."""
        coder, values = self.localizer.regressor.box_coder, values.float()
        # In the windows' own frame, which is independent of the scale.
        target = encode(boxes, windows, coder)
        unit = torch.zeros_like(windows)
        unit[:, 2:] = 1
        predicted, true = decode(values, unit, coder), decode(target, unit, coder)
        if self.options.loss == "l2":
            with torch.no_grad():
                iou = paired_iou(predicted, true)
            return (values - target).square().sum(dim=1), iou
        iou = paired_iou(predicted, true)
        generalised = self.options.loss == "giou"
        return 1 - (paired_iou(predicted, true, generalised=True) if generalised else iou), iou.detach()


def _span(mask: Tensor) -> slice:
    """From the first to the last true element; [0:1] without any."""
    indices = mask.nonzero()[:, 0].tolist() or [0]
    return slice(indices[0], indices[-1] + 1)
