"""The options of detection and of training a detector."""

from dataclasses import dataclass, replace
from typing import Literal

from overfeat.options import Options, fraction, one_or_several, option
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


MATCH_THRESHOLD, SCORE_THRESHOLD = 0.5, 0.3  # chosen on validation images of the synthetic digits
MAX_CANDIDATES = 100_000  # a trained detector leaves a few thousand in a photograph


@dataclass(frozen=True)
class DetectionConfig(Options):
    """How `detect` selects and merges boxes. None: as the weights have it, else the default."""

    postprocess: Literal["merge", "nms"] = option(
        "merge", "merge boxes that match and sum their confidences; or non-maximum suppression (NMS)"
    )
    match_threshold: float | tuple[float, ...] | None = option(
        None, "merge boxes while the best match score is this or less; one number, or one for each class, such as "
        f"0.5,0.4 (default: as chosen in training, else {MATCH_THRESHOLD:g})",
        parse=one_or_several, metavar="T",
    )  # fmt: skip
    nms_iou_threshold: float | None = option(
        None, "NMS drops boxes with a larger IoU with a box of their class that scores higher (default: as chosen in "
        "training, else 0.3, after merging, where 1 keeps all; 0.2 for NMS alone; 0.5 for DeepMultiBox)",
        parse=fraction, metavar="T", flags=("--nms-iou",),
    )  # fmt: skip
    class_iou_threshold: float | None = option(
        None, "NMS drops boxes with a larger IoU with a box of another class that scores higher (default: as chosen "
        "in training, else 1, which keeps all)",
        parse=fraction, metavar="T", flags=("--class-nms-iou",),
    )  # fmt: skip
    score_threshold: float | None = option(
        None, f"drop the boxes of positions that score less (default: as chosen in training, else {SCORE_THRESHOLD:g})",
        parse=fraction, metavar="S",
    )  # fmt: skip
    max_candidates: int = option(
        MAX_CANDIDATES, "use only so many boxes of positions, those with the highest scores", minimum=1, metavar="N"
    )
