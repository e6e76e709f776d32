"""Training a detector: windows with objects, background chosen on the fly, boxes beside (section 5)."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.data.annotated import Annotated
from overfeat.dense.context import context_features, half_resolution
from overfeat.dense.grid import Grid
from overfeat.dense.scales import BEST_OBJECT_SIZE
from overfeat.dense.tiling import Tile
from overfeat.detection.data import TileDataset
from overfeat.detection.targets import HIGH, LOW, assign_targets
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES, Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat
from overfeat.ops.boxes import decode, encode, paired_iou
from overfeat.training.box_task import BoxTask, check_classes
from overfeat.training.config import TrainConfig

NEGATIVES = ("mixed", "hard", "random", "none")
OF_IMAGE = ("image", "boxes", "labels", "difficult")
FIGURES = ("loss", "missed_error", "false_error", "iou_error")
TILE = 4  # windows along a tile's side
TILES = 1000  # in an epoch, at least
VALIDATED = 200  # tiles of validation images, at least


class Detector(nn.Module):
    """A net with a background class and its regressor in one pass: what one process trains.

    fixed: the feature layers stay as they are.
    """

    def __init__(self, net: OverFeat, regressor: BoxRegressor, fixed: bool = False):
        super().__init__()
        self.net, self.regressor, self.fixed = net, regressor, fixed
        net.conv_layers.requires_grad_(not fixed)

    def forward(self, images: Sequence[Tensor], stride: Stride, places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class scores [all places, classes], and boxes [places, classes or 1, 4] at these places of each image."""
        net, maps, seen = self.net, [], []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            for image in images:
                size = tuple(image.shape[1:])
                grid = Grid(net.architecture.window, net.architecture.stride(stride), size, size)
                maps.append(net.features(image[None]))
                if net.context is not None:
                    half = half_resolution(net, image[None], size)
                    seen.append(context_features(net, half, Tile.whole(grid), stride))
        logits = net.forward_head_flat(maps, stride, seen)[0]
        if net.context is not None:  # takes part even where no image is large enough for it
            logits = logits + 0 * net.context.weight.sum()
        return logits, self.regressor.forward_flat(maps, stride, places)[0]


class DetectorTask(BoxTask):
    """Trains a net with a background class on tiles of images, and the boxes of the windows with objects.

    Which window is to find which object: windows.assign. negatives: which `count` windows of background an
    image teaches at each step: "random" ones, "hard" ones, those taken for objects most, half of each
    ("mixed"; a random one may be among the hard), or "none". The objects' windows and those of background
    count the same, whatever their numbers. data, validation: labelled by net.class_names without the last,
    the background. tiles: of each image and epoch. The figures in the log are means over the tiles that
    have an object. Raises InputError where classes or sizes do not fit.
    """

    monitor = "validation_loss"

    def __init__(
        self,
        net: OverFeat,
        regressor: BoxRegressor,
        data: Annotated,
        config: TrainConfig,
        validation: Annotated | None = None,
        negatives: str = "mixed",
        count: int = 16,
        tiles: int = 4,
        stride: Stride = "fine",
        fixed: bool = False,
        max_pixels: int | None = None,
    ):
        if not net.background or net.scale_factors is None:
            raise InputError("a detector's last class is the background, and it has the sizes of images it looks at")
        if regressor.architecture != net.architecture or regressor.num_classes not in (
            None,
            net.num_foreground_classes,
        ):
            raise InputError("the regressor was made for another net")
        check_classes(net.class_names[:-1], data, validation)
        for annotated, what in ((data, "training"), (validation, "validation")):
            if annotated is None:
                continue
            easy = ~np.concatenate([sample.difficult for sample in annotated.samples])
            if not easy.any():
                raise InputError(f"every object of the {what} data is marked difficult, and such teach nothing")
            if not (fitting(annotated, net) & easy).any():
                raise InputError(
                    f"no object of the {what} data fits the window of {net.architecture.window} px when images are "
                    f"searched at {', '.join(f'{zoom:g}' for zoom in net.scale_factors)} times their size; "
                    "give other --scales"
                )
        if negatives not in NEGATIVES or count < 1:
            raise InputError(f"--negatives is one of {', '.join(NEGATIVES)}, and 1 or more; not {negatives}, {count}")
        self.stride, self.negatives, self.count = stride, negatives, count
        tile, seed = TILE * net.architecture.window, config.seed
        trained = TileDataset(data, net.architecture, net.scale_factors, tile, tiles, net.flip, seed, max_pixels)
        judged = validation and TileDataset(
            validation,
            net.architecture,
            net.scale_factors,
            tile,
            -(-VALIDATED // len(validation)),
            False,
            seed,
            max_pixels,
        )
        super().__init__(Detector(net, regressor, fixed), config, trained, judged)
        self.settings = {
            "data": data.describe(),
            "validation": validation and validation.describe(),
            "net": net.architecture.name,
            "scales": ",".join(f"{zoom:g}" for zoom in net.scale_factors),
            "context": net.context is not None,
            **regressor.fingerprint(),
            "dropout": net.dropout,
            "flip": net.flip,
            "negatives": f"{negatives} {count}",
            "tiles": tiles,
            "stride": stride,
            "fixed": fixed,
            "max_pixels": max_pixels,
        }

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross entropy of objects' windows and of background, and the boxes' 1 - IoU; sums over tiles with objects."""
        net, form = self.module.net, self.module.regressor.box_coder
        found, asked = [], []
        for image, boxes, labels, difficult in zip(*(batch[key] for key in OF_IMAGE), strict=True):
            size = tuple(image.shape[1:])
            grid = Grid(net.architecture.window, net.architecture.stride(self.stride), size, size)
            windows = torch.from_numpy(grid.boxes()).to(boxes)
            targets, objects = assign_targets(windows, boxes, labels, net.num_classes - 1, difficult)
            found.append((windows.view(-1, 4), targets.flatten(), objects.flatten()))
            asked.append((objects.flatten() >= 0).nonzero()[:, 0])
        logits, values = module(batch["image"], self.stride, asked)
        logits, values = logits.float(), values.float()
        total = (logits.sum() + values.sum()) * 0  # all weights take part, whatever there is to learn
        sums: dict[str, Tensor | float] = {"samples": 0, **dict.fromkeys(FIGURES, 0.0)}
        readable = max(1, int((batch["unreadable"] < 0).sum()))
        of_classes = logits.split([len(targets) for _, targets, _ in found])
        of_boxes = values.split([len(places) for places in asked])
        for i, (windows, targets, objects) in enumerate(found):
            if batch["unreadable"][i] >= 0:
                continue
            entropy = F.cross_entropy(of_classes[i], targets.clamp(min=0), reduction="none")
            positive, loss = asked[i], logits.new_zeros(())
            chosen = self._background(entropy.detach(), targets == net.num_classes - 1)
            if len(chosen):
                loss = loss + entropy[chosen].mean()
            if len(positive):
                loss = loss + entropy[positive].mean()
                own = objects[positive]
                column = batch["labels"][i][own] if self.module.regressor.num_classes else torch.zeros_like(own)
                unit = values.new_tensor([0.0, 0, 1, 1]).expand(len(own), 4)
                true = decode(encode(batch["boxes"][i][own], windows[positive], form), unit, form)
                predicted = of_boxes[i][torch.arange(len(own), device=own.device), column]
                iou = paired_iou(decode(predicted, unit, form), true)
                loss = loss + (1 - iou).mean()
                sums["missed_error"] += (of_classes[i][positive].argmax(dim=1) != targets[positive]).float().mean()
                sums["iou_error"] += (1 - iou.detach()).mean()
                if len(chosen):
                    sums["false_error"] += (of_classes[i][chosen].argmax(dim=1) != targets[chosen]).float().mean()
                sums["samples"] += 1
                sums["loss"] += loss.detach()
            total = total + loss / readable
        return total, sums

    def _background(self, entropy: Tensor, background: Tensor) -> Tensor:
        """Which windows of background teach."""
        places = background.nonzero()[:, 0]
        hard = {"hard": self.count, "mixed": (self.count + 1) // 2}.get(self.negatives, 0)
        hardest = places[entropy[places].topk(min(hard, len(places))).indices]
        rest = 0 if self.negatives == "none" else self.count - hard
        chosen = torch.randperm(len(places))[:rest].to(places.device)
        return torch.cat([hardest, places[chosen]])

    def validate(self) -> dict[str, object]:
        """The figures of training on tiles of the validation images, the same in every epoch."""
        torch.manual_seed(self.config.seed)
        return super().validate()

    def save(self, path: Path) -> None:
        """Write net and regressor as `overfeat.load` and `load_regressor` read them."""
        checkpoint.save(self.module.net, path, regressor=self.module.regressor)


def check_names(names: Sequence[str]) -> None:
    """Raises InputError where a class has the background's name."""
    if "background" in names:
        raise InputError(
            'a class is called "background", as a detector calls everything else; rename it in the annotations'
        )


def detector_from(net: OverFeat, names: Sequence[str]) -> OverFeat:
    """The net with these classes and the background as its last layer; what it knows of them it keeps.

    Raises InputError as check_names.
    """
    check_names(names)
    old, known = net.fc_layers[-1], {name: label for label, name in enumerate(net.class_names)}
    net.reset_classifier([*names, "background"])
    with torch.no_grad():
        for label, name in enumerate(net.class_names):
            if name in known:
                net.fc_layers[-1].weight[label] = old.weight[known[name]]
                net.fc_layers[-1].bias[label] = old.bias[known[name]]
    net.background = True
    return net


def longer_sides(data: Annotated) -> np.ndarray:
    """Of every box, in pixels of its image."""
    boxes = np.concatenate([sample.boxes for sample in data.samples])
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1)


def fitting(data: Annotated, net: OverFeat) -> np.ndarray:
    """Which boxes a window is to find at one of the net's sizes, bool.

    An image is searched at the size that makes it a window where the net's sizes would make it smaller.
    """
    window, fits = net.architecture.window, []
    for sample in data.samples:
        scale_factors = np.maximum(net.scale_factors, window / min(sample.size))
        sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).max(axis=1, initial=0)
        relative = sides[:, None] * scale_factors / window
        fits.append(((relative >= LOW) & (relative <= HIGH)).any(axis=1))
    return np.concatenate(fits)


def net_for(sides: np.ndarray, gpu: bool) -> str:
    """The net whose window suits objects with these longer sides, of those that can be trained there.

    On a CPU that is the small one, whatever the objects: images are resized until they fit its window.
    """
    small, fast = (BEST_OBJECT_SIZE * ARCHITECTURES[name].window for name in ("small", "fast"))
    return "fast" if gpu and np.median(sides) > math.sqrt(small * fast) else "small"


def tiles_for(images: int) -> int:
    """Parts of each of so many images for an epoch of TILES."""
    return -(-TILES // images)
