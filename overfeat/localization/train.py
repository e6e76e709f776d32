"""Training a box regressor on annotated images: the task that `training.train` needs (section 4.2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat.data.annotated import Annotated
from overfeat.dense.config import Scales
from overfeat.dense.grid import Grid
from overfeat.dense.tiling import Tile, tile_features
from overfeat.errors import InputError
from overfeat.localization.data import ScaledDataset
from overfeat.models import checkpoint
from overfeat.models.architecture import Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat
from overfeat.ops.boxes import areas, decode, encode, intersections, paired_iou
from overfeat.training.box_task import BoxTask, check_classes
from overfeat.training.config import TrainConfig

LOSSES = ("l2", "iou", "giou")
INSIDE = 0.5  # of an object must lie in a window for the window to train


class Localizer(nn.Module):
    """A net and its regressor in one pass: what one process trains.

    whole: the net is trained as well; otherwise it stays as it is, and in evaluation mode.
    """

    def __init__(self, net: OverFeat, regressor: BoxRegressor, whole: bool = False):
        super().__init__()
        self.net, self.regressor, self.whole = net, regressor, whole
        net.requires_grad_(whole)
        if net.context is not None:
            net.context.requires_grad_(False)  # has no part in this

    def train(self, mode: bool = True) -> "Localizer":
        super().train(mode)
        self.net.train(mode and self.whole)
        return self

    def forward(
        self, images: Sequence[Tensor], places: Sequence["_Places"], stride: Stride
    ) -> tuple[Tensor, Tensor | None]:
        """Boxes [chosen places, classes or 1, 4] and, if `whole`, class scores [all places, classes]."""
        with torch.set_grad_enabled(self.whole and torch.is_grad_enabled()):
            maps = [
                tile_features(self.net, image[None], p.tile, stride) for image, p in zip(images, places, strict=True)
            ]
        values, _ = self.regressor.forward_flat(maps, stride, [p.chosen for p in places])
        return values, self.net.forward_head_flat(maps, stride)[0] if self.whole else None


@dataclass(frozen=True)
class _Places:
    """The positions of one image that train: `chosen`, int64 [k], of the tile's, row by row.

    windows, boxes: [k, 4], of each position and of the object that it learns; labels: int64 [k].
    """

    tile: Tile
    chosen: Tensor
    windows: Tensor
    boxes: Tensor
    labels: Tensor


class RegressorTask(BoxTask):
    """Trains a box regressor at all places of all scales whose window holds half of an object or more.

    data, validation: images with boxes labelled by net.class_names. loss: "l2", the paper's squared
    difference in the window's frame; "iou" or "giou", 1 less the overlap of the boxes. scales: see
    dense.scale_sizes. whole: train the net through, too (the paper's future work), with the cross
    entropy of its classes at the same places, so that they stay what they are. Within a batch every image
    with such places counts the same, however many it has. Raises InputError where classes or sizes do not fit.
    """

    monitor = "validation_iou_error"

    def __init__(
        self,
        net: OverFeat,
        regressor: BoxRegressor,
        data: Annotated,
        config: TrainConfig,
        validation: Annotated | None = None,
        loss: str = "l2",
        scales: Scales = None,
        stride: Stride = "fine",
        whole: bool = False,
        max_pixels: int | None = None,
    ):
        check_classes(net.class_names, data, validation)
        if regressor.architecture != net.architecture or regressor.num_classes not in (
            None,
            net.num_foreground_classes,
        ):
            raise InputError("the regressor was made for another net")
        if loss not in LOSSES:
            raise InputError(f"the loss is one of {', '.join(LOSSES)}, not {loss!r}")
        self.loss_name, self.stride = loss, stride
        trained = ScaledDataset(data, net.architecture, scales, net.flip, max_pixels)
        judged = validation and ScaledDataset(validation, net.architecture, scales, False, max_pixels)
        super().__init__(Localizer(net, regressor, whole), config, trained, judged)
        self.settings = {
            "from": _fingerprint(net),
            "data": data.describe(),
            "validation": validation and validation.describe(),
            **regressor.fingerprint(),
            "dropout": regressor.dropout,
            "loss": loss,
            "scales": str(self.data.scales),
            "stride": stride,
            "train_backbone": whole,
            "max_pixels": max_pixels,
        }

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mean over the images of the mean over their places, and sums over the images."""
        found = [self._places(*sample) for sample in zip(batch["image"], batch["boxes"], batch["labels"], strict=True)]
        some = [number for number, places in enumerate(found) if len(places.chosen)]
        used = some or [0]  # where nothing trains, one place goes through all the same: other processes wait for it
        images, found = [batch["image"][number] for number in used], [found[number] for number in used]
        values, scores = module(images, found, self.stride)
        total = values.sum() * 0 + (0 if scores is None else scores.sum() * 0)  # all weights take part
        sums = {"samples": 0, "loss": 0.0, "iou_error": 0.0}
        start = 0
        of_boxes = values.split([len(places.chosen) for places in found])
        for places, of_places in zip(found, of_boxes, strict=True) if some else ():
            rows = start + places.chosen
            start += places.tile.num_positions
            own = places.labels if self.module.regressor.num_classes else torch.zeros_like(places.labels)
            loss, iou = self._losses(of_places[torch.arange(len(own)), own], places.windows, places.boxes)
            if scores is not None:
                loss = loss + F.cross_entropy(scores[rows], places.labels, reduction="none")
            total = total + loss.mean()
            sums["samples"] += 1
            sums["loss"] += loss.mean()
            sums["iou_error"] += 1 - iou.mean()
        return total / max(1, sums["samples"]), sums

    def save(self, path: Path) -> None:
        """Write net and regressor as `overfeat.load` and `load_regressor` read them."""
        checkpoint.save(self.module.net, path, regressor=self.module.regressor)

    def _places(self, image: Tensor, boxes: Tensor, labels: Tensor) -> _Places:
        """The places of an image whose window holds half of an object or more; [0, 0] stands in where there is none."""
        architecture, size = self.module.net.architecture, tuple(image.shape[1:])
        grid = Grid(architecture.window, architecture.stride(self.stride), size, size)
        windows = torch.from_numpy(grid.boxes()).to(boxes)
        inside = intersections(windows.view(-1, 4), boxes) / areas(boxes)
        if not len(boxes):
            inside = inside.new_zeros(len(inside), 1)
        share, nearest = inside.max(dim=1)  # of several objects the one that lies in the window most
        trains = share.view(grid.shape) >= INSIDE
        rows, columns = (_span(trains.any(dim=axis)) for axis in (1, 0))
        chosen = trains[rows, columns].flatten().nonzero()[:, 0]
        which = nearest.view(grid.shape)[rows, columns].flatten()[chosen]
        windows = windows[rows, columns].reshape(-1, 4)[chosen]
        tile = Tile(grid, 0, slice(0, 1), rows, columns)
        return _Places(tile, chosen, windows, boxes[which], labels[which])

    def _losses(self, values: Tensor, windows: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [k] of each place, and the IoU [k] of its box."""
        form, values = self.module.regressor.box_coder, values.float()
        # In the windows' own frame, where all sizes are alike.
        target = encode(boxes, windows, form)
        unit = torch.zeros_like(windows)
        unit[:, 2:] = 1
        found, true = decode(values, unit, form), decode(target, unit, form)
        if self.loss_name == "l2":
            with torch.no_grad():
                iou = paired_iou(found, true)
            return (values - target).square().sum(dim=1), iou
        iou = paired_iou(found, true)
        return 1 - (paired_iou(found, true, generalised=True) if self.loss_name == "giou" else iou), iou.detach()


def _span(found: Tensor) -> slice:
    """From the first to the last that is true; the first alone where none is."""
    places = found.nonzero()[:, 0].tolist() or [0]
    return slice(places[0], places[-1] + 1)


def _fingerprint(net: OverFeat) -> str:
    """The same for the same weights."""
    digest = hashlib.sha256()
    for parameter in net.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
