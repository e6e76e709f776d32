"""The options of DeepMultiBox and of training its two nets."""

from dataclasses import dataclass, replace
from typing import Literal

from overfeat.errors import ArgumentError
from overfeat.options import fraction, option, positive
from overfeat.training.config import BOX_TRAINING, NetOptions, TaskOptions

MATCHING = ("prior", "prediction")
ALPHA = 0.3  # weight of the localization loss (DeepMultiBox, equation 3)
SAMPLES = 4000  # samples in an epoch, at least
MULTIBOX_TRAINING = replace(BOX_TRAINING, optimizer="adagrad", lr=0.01, weight_decay=0.0)  # the loop's defaults
BOX_CLASSIFIER_TRAINING = replace(BOX_TRAINING, batch_size=64)


@dataclass(frozen=True)
class MultiBoxConfig(NetOptions, TaskOptions):
    """How to train DeepMultiBox on square crops of images (its sections 3 and 4)."""

    samples_per_image: int | None = option(
        None, f"square crops per image and epoch, a multiple of 4 (default: enough for {SAMPLES} an epoch)", minimum=1
    )
    image_size: int | None = option(
        None, "side of the square input (default: the net's window; small: 143)", minimum=1, metavar="PX"
    )
    hidden: tuple[int, ...] | None = option(
        None, "channels of the hidden layers; '' for none (default: the net's own)", minimum=1
    )
    num_boxes: int = option(100, "boxes per forward pass", minimum=1, metavar="K")
    per_class: bool = option(False, "predict K boxes for every class; otherwise K class-agnostic ones")
    priors: bool = option(True, "predict offsets from the means of clusters of the training boxes")
    matching: str = option(
        "prior", "match objects by the distance of a box's prior, or of the box and its confidence", choices=MATCHING
    )
    alpha: float = option(ALPHA, "weight of the localization loss", minimum=1e-12)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matching == "prior" and not self.priors:
            raise ArgumentError("matching", "must be prediction without priors")


@dataclass(frozen=True)
class BoxClassifierConfig(NetOptions, TaskOptions):
    """How to train the classifier of DeepMultiBox's boxes (its section 4.2.1)."""

    samples_per_image: int | None = option(
        None, f"square crops per image and epoch, a multiple of 3 (default: enough for {SAMPLES} an epoch)", minimum=1
    )
    square: str = "maximum"


@dataclass(frozen=True)
class ProposalConfig:
    """How `propose` and `detect_multibox` select boxes (section 4.2.2)."""

    crops: Literal["both", "centre"] = option(
        "both", "evaluate the square in the middle of the image (centre), or 3 x 3 smaller squares as well"
    )
    max_detections: int = option(10, "highest-confidence boxes to keep", parse=positive, metavar="N")
    nms_iou_threshold: float = option(
        0.5, "NMS drops boxes of larger IoU with a better one", parse=fraction, metavar="T", flags=("--nms-iou",)
    )
