"""The voting protocols of classification, and the options of training a classifier."""

from dataclasses import dataclass
from pathlib import Path

from overfeat.errors import ArgumentError
from overfeat.models.geometry import Stride
from overfeat.options import option
from overfeat.training.config import FeatureOptions, TaskOptions, TrainConfig

TRAINING = TrainConfig()  # the loop's defaults

# How to vote over positions and scales: which of the six scales, and the stride. The rows of the paper's
# table 2, then what explains them.
DENSE_PROTOCOLS: dict[str, tuple[tuple[int, ...], Stride]] = {
    "1 scale, coarse": ((1,), "coarse"),
    "1 scale, fine": ((1,), "fine"),
    "4 scales, fine": ((1, 2, 4, 6), "fine"),
    "6 scales, fine": ((1, 2, 3, 4, 5, 6), "fine"),
    "scales 1-3, fine": ((1, 2, 3), "fine"),
    **{f"scale {k} alone, fine": ((k,), "fine") for k in range(2, 7)},
}
PROTOCOLS = ("centre crop", "10 views", *DENSE_PROTOCOLS)
DEFAULT_PROTOCOLS = PROTOCOLS[:6]


@dataclass(frozen=True)
class ClassifierConfig(FeatureOptions, TaskOptions):
    """How to train a classifier on random crops; the defaults are the paper's (section 3.1)."""

    net: str | None = option(None, "fast, accurate, small or squeezenet (default: fast)", metavar="NAME")
    init: Path | None = option(
        None, "fine-tune this net (safetensors); its last layer is replaced if its classes differ", metavar="WEIGHTS"
    )
    dropout: float = option(0.5, "dropout of the hidden layers", minimum=0, below=1)
    flip: bool = option(True, "train on mirror images too")
    resize: tuple[int, ...] | None = option(
        None, "shorter side before cropping, or its range (default: 256; small net 54)", minimum=1, metavar="MIN[,MAX]"
    )
    crops: int = option(5, "random crops per image and epoch", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and len(self.resize) not in (1, 2):
            raise ArgumentError("resize", f"must be one size or two, not {len(self.resize)}")
