"""How to train: the options of the training loop."""

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch

from overfeat.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIMIZERS = {
    "sgd": lambda weights, c: torch.optim.SGD(weights, c.lr, c.momentum, weight_decay=c.weight_decay),
    "adagrad": lambda weights, c: torch.optim.Adagrad(weights, c.lr, weight_decay=c.weight_decay),
    "adam": lambda weights, c: torch.optim.Adam(weights, c.lr, weight_decay=c.weight_decay),
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the paper's (section 3.1).

    batch: samples a step, over all processes. optimizer: "sgd", or "adagrad" or "adam", which
    have no use for the momentum. lr_milestones: the rate is halved after these epochs.
    precision: of the forward and backward pass; weights stay float32. checkpoint_steps: steps
    between checkpoints within an epoch. Raises InputError for values that make no sense.
    """

    epochs: int = 90
    batch: int = 128
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.6
    weight_decay: float = 1e-5
    lr_milestones: tuple[int, ...] = (30, 50, 60, 70, 80)
    seed: int = 0
    workers: int = min(4, os.cpu_count() or 1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    checkpoint_steps: int = 1000

    def __post_init__(self):
        least = {"epochs": 1, "batch": 1, "seed": 0, "workers": 0, "checkpoint_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{flag(name)} must be at least {low}, not {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)} must be a number from 0 up, not {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"--optimizer is one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        if self.precision not in DTYPES:
            raise InputError(f"--precision is one of {', '.join(DTYPES)}, not {self.precision!r}")

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        return self.lr * 0.5 ** sum(after <= epoch for after in self.lr_milestones)


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")
