"""The options of the training loop, and those that the tasks share."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overfeat.data.limits import MAX_PIXELS
from overfeat.errors import ArgumentError
from overfeat.options import Options, option

OPTIMIZERS = ("sgd", "adagrad", "adam", "adamw")
LR_SCHEDULES = ("step", "cosine")
PRECISIONS = ("float32", "bfloat16", "float16")

BACKBONE = "squeezenet"  # the net on feature maps of the SqueezeNet that ships

# What a resumed run may change: how long and where it runs, and the start that its checkpoint has superseded.
RESUMABLE = ("epochs", "num_workers", "device", "checkpoint_steps", "net", "init", "from_scratch")


@dataclass(frozen=True)
class TrainConfig(Options):
    """How to train; the defaults are the paper's (section 3.1). Raises ArgumentError for values out of range."""

    epochs: int | None = option(90, "passes over the samples", minimum=1)
    batch_size: int = option(128, "samples per step, over all processes", minimum=1)
    optimizer: str = option("sgd", "optimizer", choices=OPTIMIZERS)
    lr: float = option(0.05, "initial learning rate", minimum=0)
    momentum: float = option(0.6, "momentum of SGD", minimum=0)
    weight_decay: float = option(1e-5, "weight decay, of biases too", minimum=0)
    lr_schedule: str = option(
        "step", "halve the learning rate after the milestones, or let it fall by a cosine to 0 at the last step",
        choices=LR_SCHEDULES,
    )  # fmt: skip
    lr_milestones: tuple[int, ...] = option(
        (30, 50, 60, 70, 80), "of the step schedule, halve the rate after these epochs; '' for never", minimum=1
    )
    warmup: float = option(0.0, "fraction of all steps over which the learning rate first rises", minimum=0, below=1)
    seed: int = option(0, "seed of weights, order, crops and dropout", minimum=0)
    num_workers: int = option(min(4, os.cpu_count() or 1), "processes that read images", minimum=0)
    precision: str = option("float32", "of the forward and backward pass", choices=PRECISIONS)
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", metavar="NAME")
    checkpoint_steps: int = option(1000, "steps between checkpoints within an epoch", minimum=1)

    @property
    def has_fixed_length(self) -> bool:
        """Whether the learning rate depends on the number of epochs, so that a resumed run must keep it."""
        return self.lr_schedule == "cosine" or self.warmup > 0

    def lr_at(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of a step of an epoch, both counted from 0; an epoch has `steps` steps."""
        if not self.has_fixed_length:
            return self._lr_after(epoch)
        assert self.epochs is not None, "chosen before the training starts"
        completed, total = epoch * steps + step, self.epochs * steps
        warmup = math.ceil(self.warmup * total)
        if completed < warmup:
            return self._lr_after(epoch) * (completed + 1) / warmup
        if self.lr_schedule == "step":
            return self._lr_after(epoch)
        return self.lr * (1 + math.cos(math.pi * (completed - warmup) / (total - warmup))) / 2

    def _lr_after(self, epoch: int) -> float:
        """The learning rate after the milestones of the step schedule; that of the cosine has none."""
        milestones = self.lr_milestones if self.lr_schedule == "step" else ()
        return self.lr * 0.5 ** sum(milestone <= epoch for milestone in milestones)


# The loop's defaults for the tasks that train on annotated boxes.
BOX_TRAINING = TrainConfig(optimizer="adam", lr=0.001, epochs=12, lr_milestones=(6, 8, 10, 11), batch_size=32)


@dataclass(frozen=True)
class TaskOptions(Options):
    """Options of every task."""

    init: Path | None = option(None, "start from this net (safetensors)", metavar="WEIGHTS")
    dropout: float = option(0.2, "dropout of the hidden layers", minimum=0, below=1)
    max_pixels: int = option(MAX_PIXELS, "refuse larger images", minimum=1)


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Options of the feature layers of a net."""

    net: str | None = option(None, "fast, accurate, small or squeezenet", metavar="NAME")
    node: str | None = option(
        None,
        "of squeezenet, the layer whose maps are the features (default: fire9; of detectors fire5)",
        metavar="NAME",
    )
    window: int | None = option(
        None, "of squeezenet, the window; the nearest that the layer can have (default: 143; of detectors 55)",
        minimum=1, metavar="PX",
    )  # fmt: skip
    freeze_features: bool | None = option(
        None, "do not train the feature layers of the initial net (default: only those of squeezenet)"
    )

    @property
    def is_on_backbone(self) -> bool:
        """Whether the net is a new one on SqueezeNet's features."""
        return self.net == BACKBONE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("node", "window"):
            if getattr(self, name) is not None and not self.is_on_backbone:
                raise ArgumentError("net", f"must be {BACKBONE} where {name} is given")

    def frozen(self, on_backbone: bool) -> bool:
        """Whether the feature layers are frozen, of a net on a backbone or of any other."""
        return on_backbone if self.freeze_features is None else self.freeze_features


@dataclass(frozen=True)
class NetOptions(FeatureOptions):
    """Options of the tasks that train a whole net on annotated boxes."""

    net: str | None = option(None, "fast, accurate, small or squeezenet (default: small)", metavar="NAME")
    init: Path | None = option(
        None, "start from the layers of this net that match (default: the shipped small net)", metavar="WEIGHTS"
    )
    from_scratch: bool = option(False, "start from random weights")
    flip: bool = option(True, "train on mirror images too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init and (self.net or self.from_scratch):
            other = "net" if self.net else "from_scratch"
            raise ArgumentError(other, f"does not go with init: {self.init} determines the net and its weights")
        if self.net == BACKBONE and self.from_scratch:
            raise ArgumentError("from_scratch", f"does not go with net {BACKBONE}, whose weights are its features")


@dataclass(frozen=True)
class BoxHeadOptions(Options):
    """Options of a box regressor (section 4.2)."""

    per_class: bool = option(False, "predict a box for every class; otherwise one for all")
    box_features: Literal["pooled", "unpooled"] | None = option(
        None,
        "predict boxes from the pooled maps, as in the paper, or from those before the last pooling, which locate "
        "objects better (default: pooled; of detectors with the small net unpooled)",
        choices=("pooled", "unpooled"),
    )
    hidden: tuple[int, ...] | None = option(
        None, "channels of the two hidden layers of boxes (default: 4096,1024, less for smaller nets)", minimum=1
    )
    box_coder: str = "xyxy"
    stride: Literal["coarse", "fine"] = "fine"
