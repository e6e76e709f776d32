"""The options of detection and of training a detector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overfeat.options import Options, fraction, one_or_several, option
from overfeat.training.config import BACKBONE, BoxHeadOptions, NetOptions, TaskOptions, TrainConfig

NEGATIVE_SAMPLING = ("curriculum", "half_hard", "hard", "random", "none")
SAMPLES = 1000  # tiles in an epoch, at least
MIN_SCORE = 0.3  # of the detections that are shown and counted; average precision has none
IOUS, MAX_MISTAKES = (0.5,), 24  # of an evaluation: smallest IoUs of a match, how many mistakes of each kind are listed
TILES = 40_000  # of all epochs
MIN_EPOCHS = 6
TRAINING = TrainConfig(
    optimizer="adamw", lr=0.0015, weight_decay=0.001, lr_schedule="cosine", warmup=0.1, epochs=None, batch_size=16
)  # the loop's defaults


@dataclass(frozen=True)
class DetectorConfig(BoxHeadOptions, NetOptions, TaskOptions):
    """How to train a detector on tiles of images (section 5)."""

    init: Path | None = option(
        None, "start from the layers of this net that match (default: of the shipped net, if it knows the classes)",
        metavar="WEIGHTS",
    )  # fmt: skip
    net: str | None = option(
        None, "squeezenet, fast, accurate or small (default: squeezenet; small for the digits of the shipped net)",
        metavar="NAME",
    )  # fmt: skip
    freeze_features: bool = option(False, "do not train the feature layers of the initial net")
    backbone_lr: float = option(
        0.1, "learning rate of squeezenet's feature layers, as a fraction of that of the new layers", minimum=0
    )
    samples_per_image: int | None = option(
        None, f"tiles per image and epoch (default: enough for {SAMPLES} an epoch)", minimum=1
    )
    context: bool | None = option(
        None, "add features of each window's surroundings, at half the resolution (default: of built-in nets)"
    )
    scales: tuple[float, ...] | None = option(
        None, "scale factors, such as 0.5,0.7,1.0 (default: chosen from the boxes)", minimum=0.001, below=64
    )
    reach: float | None = option(
        None, "how far windows reach beyond the image, as a fraction of the window (default: chosen from the boxes)",
        minimum=0, below=1,
    )  # fmt: skip
    quarter_turns: bool | None = option(
        None, "train on images turned by 90, 180 and 270 degrees too (default: if boxes are as often wide as high)"
    )
    color_jitter: float = option(
        0.2, "largest relative change of brightness, contrast and saturation in training", minimum=0, below=1
    )
    negative_sampling: str = option(
        "curriculum", "negatives in the loss: random ones, the hardest of a random subset, half of each; curriculum: "
        "random, then the hardest", choices=NEGATIVE_SAMPLING,
    )  # fmt: skip
    random_negatives: float = option(
        0.1, "of the curriculum, the fraction of training with random negatives", minimum=0, below=1
    )
    negative_pool: int = option(128, "random negative windows per tile, of which the hardest are chosen", minimum=1)
    negatives_per_tile: int = option(32, "negative windows per tile in the loss, on average over a batch", minimum=1)
    box_weight: float = option(2.0, "weight of the boxes' loss, 1 - IoU, beside that of the classes", minimum=0)

    @property
    def start(self) -> object:
        """The option that names the initial net; None: it is chosen from the data."""
        return self.init or self.net or self.from_scratch or self.node or self.window or None

    @property
    def is_on_backbone(self) -> bool:
        """Whether the net is a new one on SqueezeNet's features, unless the data choose another."""
        return self.net == BACKBONE or not (self.net or self.init or self.from_scratch)


MATCH_THRESHOLD, SCORE_THRESHOLD = 0.5, 0.3  # chosen on validation images of the synthetic digits
MAX_CANDIDATES = 100_000  # a trained detector leaves a few thousand in a photograph


@dataclass(frozen=True)
class DetectionConfig(Options):
    """How `detect` selects and merges boxes. None: as the weights have it, else the default."""

    postprocess: Literal["vote", "merge", "nms"] | None = option(
        None, "vote: keep the boxes that most others overlap, as their average; merge: merge boxes that match and sum "
        "their confidences; nms: keep those that score highest (default: as chosen in training, else vote)"
    )  # fmt: skip
    match_threshold: float | tuple[float, ...] | None = option(
        None, "merge boxes while the best match score is this or less; one number, or one for each class, such as "
        f"0.5,0.4 (default: as chosen in training, else {MATCH_THRESHOLD:g})",
        parse=one_or_several, metavar="T",
    )  # fmt: skip
    nms_iou_threshold: float | None = option(
        None, "NMS drops boxes with a larger IoU with a box of their class that scores higher (default: as chosen in "
        "training, else 0.3, after merging, where 1 keeps all; 0.35 for voting; 0.2 for NMS alone; 0.5 for "
        "DeepMultiBox)",
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
