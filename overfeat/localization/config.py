"""The options of localization and of training a box regressor."""

from dataclasses import dataclass
from pathlib import Path

from overfeat.dense.config import Scales, parse_scales
from overfeat.options import fraction, non_negative, option, positive
from overfeat.training.config import BOX_TRAINING, BoxHeadOptions, TaskOptions

LOSSES = ("l2", "iou", "giou")
TRAINING = BOX_TRAINING  # the loop's defaults


@dataclass(frozen=True)
class BoxRegressorConfig(BoxHeadOptions, TaskOptions):
    """How to train a box regressor on a trained net (section 4.2)."""

    init: Path | None = option(None, "the trained net (safetensors); needed", metavar="WEIGHTS")
    dropout: float = option(0.0, "dropout of the hidden layers of boxes", minimum=0, below=1)
    loss: str = option("l2", "squared difference, or 1 - IoU or 1 - GIoU of the boxes", choices=LOSSES)
    train_backbone: bool = option(False, "train the net's layers and classes as well")
    scales: Scales = option(None, "as in `overfeat classify`", parse=parse_scales, metavar="LIST")


@dataclass(frozen=True)
class LocalizationConfig:
    """How `localize` selects and merges boxes; the thresholds were chosen on validation images."""

    top_k: int = option(
        5, "classes of each scale whose boxes are merged, and predictions of an image", parse=positive, metavar="N",
        flags=("-n", "--top-k"),
    )  # fmt: skip
    relative_threshold: float = option(
        0.7, "drop the boxes of positions that score less than this fraction of their class's maximum in the image",
        parse=fraction, metavar="S",
    )  # fmt: skip
    match_threshold: float = option(
        0.4, "merge boxes while the best match score is this or less", parse=non_negative, metavar="T"
    )
