"""Training a detector: positive windows, negatives chosen on the fly, and boxes (section 5)."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import ops
from overfeat.data.annotated import Annotated
from overfeat.dense.context import context_features, half_resolution
from overfeat.dense.grid import Grid
from overfeat.dense.tiling import Tile
from overfeat.detection.build import choose_options, choose_training, fitting
from overfeat.detection.calibrate import MAX_IMAGES, choose_thresholds
from overfeat.detection.config import TRAINING, DetectorConfig
from overfeat.detection.data import TileDataset
from overfeat.detection.hard_negatives import sample_negatives
from overfeat.detection.targets import assign_targets
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor, train_together
from overfeat.models.fc_layers import gather_windows
from overfeat.models.geometry import Stride
from overfeat.models.overfeat import ContextFeatures, OverFeat
from overfeat.ops.boxes import decode, encode, paired_iou
from overfeat.training.config import TrainConfig
from overfeat.training.task import Sums, Task, check_classes, check_objects, describe_data

TILE_WINDOWS = 4  # windows along a tile's side
MAX_POSITIVES = 64  # of a tile that contribute to the loss
VALIDATION_TILES = 200  # of the validation data, at least
FIGURES = ("loss", "missed_error", "false_error", "iou_error", "score_spread")
MIN_SPREAD = 0.02  # standard deviation of the windows' scores, below which they are called equal


class Detector(nn.Module):
    """A net with a background class and its regressor in one forward pass."""

    def __init__(self, net: OverFeat, regressor: BoxRegressor, freeze_features: bool = False):
        super().__init__()
        self.net, self.regressor, self.freeze_features = net, regressor, freeze_features
        net.feature_layers.requires_grad_(not freeze_features)

    def forward(
        self, images: Sequence[Tensor], stride: Stride, positions: Sequence[Tensor], positives: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class scores of some windows [windows, classes], and boxes of others [positives, classes or 1, 4].

        Args:
            images: uint8 [3, H, W] each.
            stride: Of the windows.
            positions: int64 [n] for each image, the numbers of the windows with class scores, row by row.
            positives: int64 [n] for each image, those of the windows with boxes.
        """
        net, context, windows, objects = self.net, [], [], []
        pool, kernel, step = net.architecture.pool, net.architecture.kernel, net.architecture.maps_stride(stride)
        pooled_boxes, box_kernel = self.regressor.box_features == "pooled", self.regressor.fc_layers[0].kernel_size[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_features):
            maps = self._maps(images)
            pooled = [ops.offset_max_pool(m, pool) for m in maps]
            for i, (of_image, of_objects) in enumerate(zip(positions, positives, strict=True)):
                windows.append(gather_windows(pooled[i], kernel, step, of_image, pool))
                source, tap = (pooled[i], pool) if pooled_boxes else (maps[i], 1)
                objects.append(gather_windows(source, box_kernel, step, of_objects, tap))
                if net.context is not None:
                    context.append(self._context(images[i], stride, of_image))
        logits = net.forward_windows(torch.cat(windows), stride, context)
        if net.context is not None:  # DDP needs its gradient even where no image is large enough for it
            logits = logits + 0 * net.context.weight.sum()
        boxes = self.regressor.forward_windows(torch.cat(objects))
        return logits, boxes

    def _context(self, image: Tensor, stride: Stride, positions: Tensor) -> ContextFeatures:
        """What the windows at these positions of an image see of their surroundings."""
        net, size = self.net, (image.shape[1], image.shape[2])
        grid = Grid(net.geometry.window, net.geometry.stride(stride), size, size)
        around = context_features(net, half_resolution(net, image[None], size), Tile.whole(grid))
        return replace(around, positions=around.positions[positions])

    def _maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The last maps [1, C, h, w] of every image; images of the same size are one batch."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(tuple(image.shape), []).append(number)
        maps: dict[int, Tensor] = {}
        for numbers in by_size.values():
            of_size = self.net.features(torch.stack([images[number] for number in numbers]))
            maps.update(zip(numbers, of_size.split(1), strict=True))
        return [maps[number] for number in range(len(images))]


class DetectorTask(Task):
    """Trains a net with a background class on tiles of images, and the boxes of the positive windows.

    `assign_targets` decides which window is positive for which object; the loss is that of the positive windows and of
    the negatives that `sample_negatives` chooses of a random subset. Positive and negative windows of a batch weigh
    the same, whatever their numbers. The figures of the log are means over the batches with positive windows.
    Arguments: see `Task`; `build_detector` makes the nets. The net's `dropout` becomes that of the options, and mirror
    images are part of its evaluation if they are part of its training. Labels do not count the net's last class, the
    background.
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
        options, train = choose_options(data, options), choose_training(data, options, train)
        net.flip, net.dropout = options.flip, options.dropout
        side, factors = TILE_WINDOWS * net.architecture.window, net.scale_factors or ()
        common: dict[str, Any] = {"margin": net.margin[0], "color": net.mean_color, "max_pixels": options.max_pixels}

        def tiles_of(data: Annotated, samples: int, **augmentation: Any) -> TileDataset:
            return TileDataset(
                data, net.geometry, factors, side, samples_per_image=samples, seed=train.seed, **common, **augmentation
            )

        assert options.samples_per_image and options.quarter_turns is not None
        tiles = tiles_of(
            data, options.samples_per_image,
            flip=options.flip, quarter_turns=options.quarter_turns, color_jitter=options.color_jitter,
        )  # fmt: skip
        samples = -(-VALIDATION_TILES // len(validation)) if validation else 0
        validation_tiles = tiles_of(validation, samples, flip=False) if validation else None
        description = {
            **describe_data(data, validation),
            "architecture": net.architecture.to_json(),
            "scales": list(net.scale_factors or ()),
            "reach": net.reach,
            "context": net.context is not None,
            **json.loads(regressor.to_json()),
            **({"epochs": train.epochs} if options.negative_sampling == "curriculum" else {}),
        }
        self.detector, self.validation_data = Detector(net, regressor, options.freeze_features), validation
        train_together(net, regressor)
        super().__init__(self.detector, tiles, validation_tiles, options, train, description)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """The weights with the factors of their learning rate, lower for a backbone, which is trained already."""
        net = self.detector.net
        trained = set() if net.backbone is None else set(net.backbone.parameters())
        weights = [weight for weight in self.detector.parameters() if weight.requires_grad]
        fine_tuned = [weight for weight in weights if weight in trained]
        new = [weight for weight in weights if weight not in trained]
        return [(new, 1.0)] + ([(fine_tuned, self.options.backbone_lr)] if fine_tuned else [])

    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """Cross entropy of positive and negative windows, and 1 - IoU of the boxes; sums of batches with positives."""
        names = ("image", "boxes", "labels", "difficult", "unreadable")
        tiles = [self._sample_windows(*item) for item in zip(*(batch[name] for name in names), strict=True)]
        targets, background = torch.cat([tile.targets for tile in tiles]), self.detector.net.num_classes - 1
        positives = [tile.positions[tile.targets != background] for tile in tiles]
        logits, values = module(batch["image"], self.options.stride, [tile.positions for tile in tiles], positives)
        logits, values = logits.float(), values.float()
        entropy, errors = F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=1) != targets
        positive = (targets != background).nonzero()[:, 0]
        chosen = self._choose_negatives(entropy.detach(), targets == background, len(tiles))
        loss = (logits.sum() + values.sum()) * 0  # DDP needs gradients of all weights
        figures: Sums = {}
        for name, indices in (("missed_error", positive), ("false_error", chosen)):
            if len(indices):
                loss = loss + entropy[indices].mean()
                figures[name] = errors[indices].float().mean()
        if not len(positive):
            return loss, {"samples": 0, **dict.fromkeys(FIGURES, 0.0)}
        windows, boxes = (torch.cat([getattr(tile, name) for tile in tiles])[positive] for name in ("windows", "boxes"))
        iou_error = (1 - self._box_iou(values, windows, boxes, targets[positive])).mean()
        loss = loss + self.options.box_weight * iou_error
        spread = logits.detach().softmax(dim=1)[:, -1].std()
        figures |= {"samples": 1, "iou_error": iou_error.detach(), "loss": loss.detach(), "score_spread": spread}
        return loss, {"samples": 0, **dict.fromkeys(FIGURES, 0.0), **figures}

    def validate(self) -> dict[str, float]:
        """The figures of training on tiles of the validation images, the same tiles in every epoch."""
        torch.manual_seed(self.train.seed)
        return super().validate()

    def warnings(self, record: dict, log: Sequence[dict]) -> list[str]:
        """What an epoch's figures say of a detector that does not learn, with likely causes."""
        lines = []
        if record["train_missed_error"] >= 1:
            causes = "boxes that do not lie on their objects, or too high or low a learning rate"
            lines.append(f"not one positive window was classified correctly in this epoch; likely causes: {causes}")
        if record["train_score_spread"] < MIN_SPREAD:
            causes = "a learning rate that is too high, or windows or scales that do not show the objects"
            lines.append(f"all windows score nearly the same; likely causes: {causes}")
        return lines

    def finish(self, path: Path) -> None:
        """Choose the post-processing and its thresholds on the validation data, and write them into the file."""
        if self.validation_data is None:
            print("thresholds: the defaults, without validation data to choose them on", flush=True)
            return
        print(f"thresholds for {path.name}: being chosen on up to {MAX_IMAGES} validation images", flush=True)
        device, limit = self.detector.net.device, self.options.max_pixels
        net, regressor = checkpoint.load(path).to(device), checkpoint.load_regressor(path).to(device)
        try:
            net.thresholds = choose_thresholds(net, regressor, self.validation_data, max_pixels=limit)
        except InputError as error:  # no reason to lose a trained net
            warnings.warn(f"no thresholds were chosen: {error}", stacklevel=2)
            return
        checkpoint.save(net, path, regressor=regressor)
        print(f"thresholds for {path.name}: {net.thresholds or 'the defaults'}", flush=True)

    def save(self, path: Path) -> None:
        """Write net and regressor as `overfeat.load` and `load_regressor` read them."""
        checkpoint.save(self.detector.net, path, regressor=self.detector.regressor)

    def _sample_windows(
        self, image: Tensor, boxes: Tensor, labels: Tensor, difficult: Tensor, unreadable: Tensor
    ) -> "Windows":
        """Positive windows of a tile, and random negatives; none of an image that could not be read."""
        net, size = self.detector.net, (image.shape[1], image.shape[2])
        grid = Grid(net.geometry.window, net.geometry.stride(self.options.stride), size, size)
        windows, background = torch.from_numpy(grid.boxes()).to(boxes), net.num_classes - 1
        targets, objects = assign_targets(windows, boxes, labels, background=background, ignored=difficult)
        targets, objects, windows = targets.flatten(), objects.flatten(), windows.view(-1, 4)
        positive = _random_subset((objects >= 0).nonzero()[:, 0], MAX_POSITIVES)
        negative = _random_subset((targets == background).nonzero()[:, 0], self.options.negative_pool)
        positions = torch.cat([positive, negative])[: 0 if unreadable >= 0 else None]
        own = torch.cat([boxes[objects[positive]], boxes.new_zeros(len(negative), 4)])[: len(positions)]
        return Windows(positions, targets[positions], windows[positions], own)

    def _choose_negatives(self, loss: Tensor, negative: Tensor, tiles: int) -> Tensor:
        """Indices of the negative windows of a batch that contribute to its loss; random ones in validation."""
        options = self.options
        sampling = options.negative_sampling if self.module.training else "random"
        if sampling == "curriculum":
            sampling = "random" if self.progress < options.random_negatives else "hard"
        return sample_negatives(loss, negative, sampling, options.negatives_per_tile * tiles)

    def _box_iou(self, values: Tensor, windows: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """IoU [k] of the predicted boxes [k, classes or 1, 4] with those of the objects."""
        coder = self.detector.regressor.box_coder
        column = labels if self.detector.regressor.num_classes else torch.zeros_like(labels)
        unit = values.new_tensor([0.0, 0, 1, 1]).expand(len(labels), 4)
        true = decode(encode(boxes, windows, coder), unit, coder)
        predicted = values[torch.arange(len(column), device=column.device), column]
        return paired_iou(decode(predicted, unit, coder), true)


class Windows(NamedTuple):
    """Some windows of a tile, of which those with an object are positive."""

    positions: Tensor  # int64 [n], their numbers in the tile's grid
    targets: Tensor  # int64 [n], classes
    windows: Tensor  # [n, 4], in the tile's pixels
    boxes: Tensor  # [n, 4], of their objects; 0 for negatives


def _random_subset(indices: Tensor, count: int) -> Tensor:
    """At most `count` of the indices."""
    return indices[torch.randperm(len(indices))[:count].to(indices.device)] if len(indices) > count else indices


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
        if not (fitting(annotated, net) & ~annotated.difficult).any():
            factors = ", ".join(f"{factor:g}" for factor in net.scale_factors)
            raise InputError(
                f"no object of the {name} data fits the window of {net.architecture.window} px when images are "
                f"evaluated at {factors} times their size; give other scales, or a larger reach"
            )
