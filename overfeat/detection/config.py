"""The options of detection and of training a detector."""

from dataclasses import dataclass, replace
from typing import Literal

from overfeat.options import fraction, non_negative, option
from overfeat.training.config import BOX_TRAINING, BoxHeadOptions, NetOptions, TaskOptions

NEGATIVE_SAMPLING = ("half_hard", "hard", "random", "none")
SAMPLES = 1000  # tiles in an epoch, at least
MIN_SCORE = 0.3  # of the detections that are shown and counted; average precision has none
IOUS, MAX_MISTAKES = (0.5,), 24  # of an evaluation: smallest IoUs of a match, how many mistakes of each kind are listed
TRAINING = replace(BOX_TRAINING, batch_size=16)  # the loop's defaults


@dataclass(frozen=True)
class DetectorConfig(BoxHeadOptions, NetOptions, TaskOptions):
    """How to train a detector on tiles of images (section 5)."""

    net: str | None = option(
        None, "fast, accurate, small or squeezenet (default: small; on a GPU fast for large objects)", metavar="NAME"
    )
    samples_per_image: int | None = option(
        None, f"tiles per image and epoch (default: enough for {SAMPLES} an epoch)", minimum=1
    )
    context: bool = option(True, "add features of each window's surroundings, at half the resolution")
    scales: tuple[float, ...] | None = option(
        None, "scale factors, such as 0.5,0.7,1.0 (default: chosen from the boxes)", minimum=0.001, below=64
    )
    negative_sampling: str = option(
        "half_hard", "negatives in the loss: the hardest, random ones, or half of each", choices=NEGATIVE_SAMPLING
    )
    negatives_per_tile: int = option(16, "negative windows per tile", minimum=1)


@dataclass(frozen=True)
class DetectionConfig:
    """How `detect` selects and merges boxes; the thresholds were chosen on validation images."""

    postprocess: Literal["merge", "nms"] = option(
        "merge", "merge boxes that match and sum their confidences; or non-maximum suppression (NMS)"
    )
    match_threshold: float = option(
        0.5, "merge boxes while the best match score is this or less", parse=non_negative, metavar="T"
    )
    nms_iou_threshold: float | None = option(
        None, "NMS drops boxes with a larger IoU with a box of their class that scores higher (default: 0.3 after "
        "merging, where 1 keeps all; 0.2 for NMS alone; 0.5 for DeepMultiBox)",
        parse=fraction, metavar="T", flags=("--nms-iou",),
    )  # fmt: skip
    score_threshold: float = option(0.3, "drop the boxes of positions that score less", parse=fraction, metavar="S")
