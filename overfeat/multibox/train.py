"""Training DeepMultiBox (its sections 3 and 4): boxes matched with objects, and the net that tells what is in a box."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.classification.train import ClassifierTask
from overfeat.data.annotated import Annotated
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.multibox.data import BoxDataset, SquareDataset
from overfeat.multibox.matching import ALPHA, multibox_loss
from overfeat.ops.boxes import SQUARES, iou, paired_iou, sorted_edges
from overfeat.training.box_task import BoxTask, check_classes
from overfeat.training.config import TrainConfig
from overfeat.training.sampler import SkippedFiles

MATCHING = ("prior", "prediction")
RECALL_AT = 10  # boxes that are judged by how many objects they find
PRIOR_BOXES = 10_000  # that priors are the means of


def copy_matching_weights(layers: Sequence[nn.Conv2d], known: Sequence[nn.Conv2d]) -> int:
    """Give layers the weights of others, from the first to the last of the same form; their number."""
    count = 0
    for layer, other in zip(layers, known, strict=False):
        if layer.weight.shape != other.weight.shape:
            break
        layer.load_state_dict(other.state_dict())
        count += 1
    return count


class MultiBoxTask(BoxTask):
    """Trains DeepMultiBox on squares of images.

    model: with the classes of data as its class_names, if it has any. matching: of objects with the "prior" boxes, or
    with each "prediction". squares: of each image and epoch. The figures of the log are means over objects that are
    not marked difficult: missed_error is the share that none of the FOUND boxes of most confidence (of its class, if
    there are classes) overlaps by half; for the validation data, in the middle square of each image, it decides
    which epoch is best. Raises InputError where things do not fit.
    """

    monitor = "validation_missed_error"

    def __init__(
        self,
        model: MultiBox,
        data: Annotated,
        config: TrainConfig,
        validation: Annotated | None = None,
        matching: str = MATCHING[0],
        alpha: float = ALPHA,
        squares: int = 4,
        max_pixels: int | None = None,
    ):
        if matching not in MATCHING:
            raise InputError(f"--matching is one of {', '.join(MATCHING)}, not {matching!r}")
        if matching == "prior" and model.priors is None:
            raise InputError("--matching prior needs priors; give --matching prediction with --no-priors")
        if not 0 < alpha < float("inf"):
            raise InputError(f"--alpha is a number above 0, not {alpha}")
        check_classes(model.class_names, data, validation)
        for annotated, what in ((data, "training"), (validation, "validation")):
            if annotated is not None and all(sample.difficult.all() for sample in annotated.samples):
                raise InputError(f"the {what} data has no object that is not marked difficult, and such teach nothing")
        self.matching, self.alpha = matching, alpha
        judged = validation and SquareDataset(validation, model.image_size, max_pixels=max_pixels, centred=True)
        if judged and not len(judged.truths(1)):
            raise InputError("no object lies in the middle square of a validation image; give others")
        trained = SquareDataset(data, model.image_size, squares, model.flip, config.seed, max_pixels)
        super().__init__(model, config, trained, judged)
        self.settings = {
            "data": data.describe(),
            "validation": validation and validation.describe(),
            "size": model.image_size,
            "hidden": " ".join(map(str, model.net.architecture.hidden)),
            "net": model.net.architecture.to_json(),
            "predictions": model.num_boxes,
            "per_class": model.class_names is not None,
            "priors": model.priors is not None,
            "matching": matching,
            "alpha": alpha,
            "squares": squares,
            "flip": model.flip,
            "dropout": model.net.dropout,
            "fixed": sum(not layer.weight.requires_grad for layer in model.net.conv_layers),
            "max_pixels": max_pixels,
        }

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mean of F over the squares, and sums over the objects."""
        boxes, logits = module(torch.stack(batch["image"]))
        readable, groups = batch["unreadable"] < 0, self.module.num_groups
        every = zip(batch["boxes"], batch["labels"], batch["difficult"], strict=True)
        truths, difficult = [], []
        for true, labels, hard in every:
            for group in range(groups):
                own = labels == group if groups > 1 else torch.ones_like(hard)
                truths.append(true[own])
                difficult.append(hard[own])
        boxes, logits = boxes.flatten(0, 1), logits.flatten(0, 1)
        priors = self.module.priors if self.matching == "prior" else None
        losses, match, assigned = multibox_loss(boxes, logits, truths, priors, self.alpha, difficult)
        losses = losses * readable.to(losses).repeat_interleave(groups)
        total = losses.sum() / max(1, int(readable.sum()))
        with torch.no_grad():
            hard, true = (torch.cat(of_all) for of_all in (difficult, truths))
            image, box, object_ = assigned[~hard[assigned[:, 2]]].unbind(dim=1)
            overlaps = paired_iou(sorted_edges(boxes[image, box]), true[object_])
            every = zip(boxes, logits, truths, difficult, strict=True)
            sums = {
                "samples": int((~hard).sum()),
                "loss": losses.sum(),
                "match_loss": match.sum(),
                "iou_error": int((~hard).sum()) - overlaps.sum(),  # objects that were left over have no overlap
                "missed_error": sum(_missed(found, sure, t[~d]) for found, sure, t, d in every),
            }
        return total, sums

    def save(self, path: Path) -> None:
        """Write the net as `overfeat.load_multibox` reads it."""
        checkpoint.save_multibox(self.module, path)


class BoxClassifierTask(ClassifierTask):
    """Trains the net that tells what is in a box, on squares around boxes of images (section 4.2.1).

    net: with the classes of data, and after them the background. Objects marked difficult are no positives. parts: of
    each image and epoch, see BoxDataset; square: see boxes.squares_around. Validation is on such
    squares of the validation images, the same in every epoch. Raises InputError where classes or files do not fit.
    """

    def __init__(
        self,
        net: OverFeat,
        data: Annotated,
        config: TrainConfig,
        validation: Annotated | None = None,
        parts: int = 3,
        square: str = SQUARES[0],
        max_pixels: int | None = None,
    ):
        check_classes(net.class_names[: net.num_foreground_classes], data, validation)
        for annotated in (data, validation):
            if annotated is not None and all(sample.difficult.all() for sample in annotated.samples):
                raise InputError("every object is marked difficult, and such are not taken for objects")
        if not net.background:
            raise InputError("the net has no background class; see detector_training.detector_from")
        if net.context is not None:
            net.context.requires_grad_(False)  # a square has no surroundings
        self.module, self.config = net, config
        side = net.architecture.window
        self.data = BoxDataset(data, side, parts, square, net.flip, config.seed, max_pixels)
        self.data.cache.check()
        self.validation = validation and BoxDataset(validation, side, 3, square, False, config.seed, max_pixels)
        self.unreadable = SkippedFiles()
        self.settings = {
            "data": data.describe(),
            "validation": validation and validation.describe(),
            "net": net.architecture.to_json(),
            "parts": parts,
            "square": square,
            "flip": net.flip,
            "dropout": net.dropout,
            "max_pixels": max_pixels,
        }

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """That of a classifier, over the squares of images that can be used."""
        scores, usable = module(batch["image"]).flatten(1), batch["label"] >= 0
        labels = batch["label"][usable]
        total = F.cross_entropy(scores[usable], labels, reduction="sum") + 0 * scores.sum()  # all weights take part
        wrong = (scores.detach()[usable].argmax(1) != labels).sum()
        return total / max(1, len(labels)), {"samples": len(labels), "loss": total.detach(), "top1_error": wrong}


def _missed(boxes: Tensor, logits: Tensor, true: Tensor) -> float:
    """How many objects [M, 4] none of the best boxes of [K, 4] overlaps by half."""
    best = sorted_edges(boxes[logits.topk(min(RECALL_AT, len(logits))).indices])
    return float((iou(best, true).amax(dim=0) < 0.5).sum()) if len(true) else 0.0
