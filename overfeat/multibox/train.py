"""Training DeepMultiBox (its sections 3 and 4): boxes matched with objects, and the classifier of boxes."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overfeat.data.annotated import Annotated
from overfeat.errors import ArgumentError, InputError
from overfeat.models import checkpoint
from overfeat.models.box_regressor import train_together
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.multibox.build import samples_for
from overfeat.multibox.config import BOX_CLASSIFIER_TRAINING, MULTIBOX_TRAINING, BoxClassifierConfig, MultiBoxConfig
from overfeat.multibox.data import COVERAGE_BINS, CROPS_PER_POSITIVE, BoxCropDataset, SquareDataset
from overfeat.multibox.matching import multibox_loss
from overfeat.ops.boxes import iou, paired_iou, sorted_edges
from overfeat.training.classification import ClassificationTask
from overfeat.training.config import TrainConfig
from overfeat.training.task import Sums, Task, check_classes, check_objects, describe_data

RECALL_AT = 10  # highest-confidence boxes whose recall is reported
MIN_IOU = 0.5  # of a box that recalls an object


class MultiBoxTask(Task):
    """Trains DeepMultiBox on square crops of images.

    The figures of the log are means over objects that are not marked difficult: missed_error is the fraction whose IoU
    with each of the RECALL_AT highest-confidence boxes (of its class, if there are classes) is below 0.5. On the centre
    squares of the validation images it decides which epoch is best.

    Arguments: see `Task`; `build_multibox` makes the model, whose `flip` and dropout become those of the options.
    """

    monitor = "validation_missed_error"
    options: MultiBoxConfig

    def __init__(
        self,
        model: MultiBox,
        data: Annotated,
        validation: Annotated | None = None,
        options: MultiBoxConfig = MultiBoxConfig(),
        train: TrainConfig = MULTIBOX_TRAINING,
    ):
        if options.matching == "prior" and model.priors is None:
            raise ArgumentError("matching", "must be prediction for a model without priors")
        check_classes(model.class_names, data, validation)
        check_objects(data, validation)
        model.flip, model.net.dropout = options.flip, options.dropout
        size, limit = model.image_size, options.max_pixels
        centres = SquareDataset(validation, size, centred=True, max_pixels=limit) if validation else None
        if centres and not len(centres.ground_truth(1)):
            raise InputError("no object lies in the centre square of a validation image; give others")
        samples = options.samples_per_image or samples_for(len(data), len(COVERAGE_BINS))
        squares = SquareDataset(data, size, samples, flip=options.flip, seed=train.seed, max_pixels=limit)
        architecture = model.net.architecture.to_json()
        description = {**describe_data(data, validation), "architecture": architecture, **json.loads(model.to_json())}
        self.model = model
        super().__init__(model, squares, centres, options, train, description)

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """The mean of F over the squares, and sums over the objects."""
        boxes, logits = module(torch.stack(batch["image"]))
        boxes, logits = boxes.flatten(0, 1), logits.flatten(0, 1)
        truths, difficult = self._by_group(batch)
        priors, alpha = self.model.priors if self.options.matching == "prior" else None, self.options.alpha
        losses, match, assigned = multibox_loss(boxes, logits, truths, priors=priors, alpha=alpha, difficult=difficult)
        readable = batch["unreadable"] < 0
        losses = losses * readable.to(losses).repeat_interleave(self.model.num_groups)
        with torch.no_grad():
            easy, true = ~torch.cat(difficult), torch.cat(truths)
            image, box, number = assigned[easy[assigned[:, 2]]].unbind(dim=1)
            overlaps = paired_iou(sorted_edges(boxes[image, box]), true[number])
            items = zip(boxes, logits, truths, difficult, strict=True)
            sums: Sums = {
                "samples": int(easy.sum()),
                "loss": losses.sum(),
                "match_loss": match.sum(),
                "iou_error": int(easy.sum()) - overlaps.sum(),  # objects without a box have no overlap
                "missed_error": sum(num_missed(b, logit, t[~d]) for b, logit, t, d in items),
            }
        return losses.sum() / max(1, int(readable.sum())), sums

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load_multibox` reads it."""
        checkpoint.save_multibox(self.model, path)

    def _by_group(self, batch: dict) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes and difficult flags of the objects of each image, or of each class in each image."""
        truths, difficult = [], []
        for boxes, labels, flags in zip(batch["boxes"], batch["labels"], batch["difficult"], strict=True):
            for group in range(self.model.num_groups):
                own = labels == group if self.model.class_names is not None else torch.ones_like(flags)
                truths.append(boxes[own])
                difficult.append(flags[own])
        return truths, difficult


class BoxClassifierTask(ClassificationTask):
    """Trains the classifier of boxes on square crops around boxes (section 4.2.1); validates it on such squares.

    Objects marked difficult are no positives. Arguments: see `Task`; after the classes of data the net has the
    background, and its `flip` and `dropout` become those of the options.
    """

    def __init__(
        self,
        net: OverFeat,
        data: Annotated,
        validation: Annotated | None = None,
        options: BoxClassifierConfig = BoxClassifierConfig(),
        train: TrainConfig = BOX_CLASSIFIER_TRAINING,
    ):
        check_classes(net.class_names[: net.num_foreground_classes], data, validation)
        check_objects(data, validation)
        if not net.background:
            raise InputError("the net has no background class; see models.transfer.with_background")
        if net.context is not None:
            net.context.requires_grad_(False)  # not used for squares
        net.flip, net.dropout = options.flip, options.dropout
        size = net.architecture.window
        samples = options.samples_per_image or samples_for(len(data), CROPS_PER_POSITIVE)
        common: dict[str, Any] = {"square": options.square, "seed": train.seed, "max_pixels": options.max_pixels}
        crops = BoxCropDataset(data, size, samples, flip=options.flip, **common)
        per_image = CROPS_PER_POSITIVE
        centres = BoxCropDataset(validation, size, per_image, flip=False, **common) if validation else None
        description = {**describe_data(data, validation), "architecture": net.architecture.to_json()}
        self.net = net
        train_together(net)
        super().__init__(net, crops, centres, options, train, description)

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load` reads it."""
        checkpoint.save(self.net, path)


def num_missed(boxes: Tensor, logits: Tensor, true: Tensor) -> float:
    """How many objects [M, 4] have an IoU below MIN_IOU with each of the highest-confidence boxes of [K, 4]."""
    best = sorted_edges(boxes[logits.topk(min(RECALL_AT, len(logits))).indices])
    return float((iou(best, true).amax(dim=0) < MIN_IOU).sum()) if len(true) else 0.0
