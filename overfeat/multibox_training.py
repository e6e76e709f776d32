"""Training DeepMultiBox (its sections 3 and 4): boxes matched with objects, and the net that tells what is in a box."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from overfeat import weights
from overfeat.architectures import ARCHITECTURES, Conv
from overfeat.batches import Unreadable
from overfeat.box_task import BoxTask, check_classes
from overfeat.boxes import SQUARES, iou, paired_iou, sorted_edges
from overfeat.classifier_training import ClassifierTask
from overfeat.data.annotated import Annotated
from overfeat.data.squares import BoxDataset, SquareDataset
from overfeat.files import InputError
from overfeat.heads import MultiBox
from overfeat.nets import OverFeat
from overfeat.training import TrainConfig

# What DeepMultiBox is made of. The small net has a small window: it looks at a larger square, with more layers.
NETS = {
    **ARCHITECTURES,
    "small": replace(
        ARCHITECTURES["small"],
        name="small multibox",
        convs=(*ARCHITECTURES["small"].convs, Conv(192, 3, pad=1), Conv(128, 3, pad=1), Conv(64, 1)),
        kernel=10,
        hidden=(),
    ),
}
MATCHING = ("prior", "prediction")
ALPHA = 0.3
FOUND = 10  # boxes that are judged by how many objects they find
PRIOR_BOXES = 10_000  # that priors are the means of


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
        assigned = assign(costs, counts).to(boxes.device)
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


def assign(costs: Tensor, counts: Sequence[int]) -> Tensor:
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


def find_priors(boxes: np.ndarray, count: int, seed: int = 0) -> Tensor:
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


def adopt(layers: Sequence[nn.Conv2d], known: Sequence[nn.Conv2d]) -> int:
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

    judged_by = "validation_missed_error"

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
        judged = validation and SquareDataset(validation, model.side, max_pixels=max_pixels, centred=True)
        if judged and not len(judged.truths(1)):
            raise InputError("no object lies in the middle square of a validation image; give others")
        trained = SquareDataset(data, model.side, squares, model.flip, config.seed, max_pixels)
        super().__init__(model, config, trained, judged)
        self.settings = {
            "data": data.describe(),
            "validation": validation and validation.describe(),
            "size": model.side,
            "hidden": " ".join(map(str, model.net.architecture.hidden)),
            "net": model.net.architecture.to_json(),
            "predictions": model.boxes,
            "per_class": model.class_names is not None,
            "priors": model.priors is not None,
            "matching": matching,
            "alpha": alpha,
            "squares": squares,
            "flip": model.flip,
            "dropout": model.net.dropout,
            "fixed": sum(not layer.weight.requires_grad for layer in model.net.convs),
            "max_pixels": max_pixels,
        }

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mean of F over the squares, and sums over the objects."""
        boxes, logits = module(torch.stack(batch["image"]))
        readable, groups = batch["unreadable"] < 0, self.module.groups
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
        weights.save_multibox(self.module, path)


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
        check_classes(net.class_names[: net.object_classes], data, validation)
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
        self.data.store.check()
        self.validation = validation and BoxDataset(validation, side, 3, square, False, config.seed, max_pixels)
        self.unreadable = Unreadable()
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
    best = sorted_edges(boxes[logits.topk(min(FOUND, len(logits))).indices])
    return float((iou(best, true).amax(dim=0) < 0.5).sum()) if len(true) else 0.0
