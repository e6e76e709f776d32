"""What the training loop asks of a task, and what all tasks share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from overfeat.data.annotated import Annotated
from overfeat.data.random_tiles import collate_list
from overfeat.errors import InputError
from overfeat.options import Options
from overfeat.training.config import RESUMABLE, TrainConfig
from overfeat.training.distributed import rank_and_world_size
from overfeat.training.sampler import SkippedFiles, evaluate_means, make_loader

Sums = dict[str, Tensor | float]


class TrainingDataset(Protocol):
    """A dataset as the loop uses it: keys are (epoch, index).

    Of items with "unreadable", -1 or the number of an image that could not be used, the loop reports the error.
    """

    cache: Any  # its ImageCache

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> dict: ...


class Task(ABC):
    """One kind of training: a module, its data, its loss and its validation figures.

    Subclasses take the nets, `data` and perhaps `validation`, images labelled by the net's class_names; `options`, how
    to train; and `train`, the options of the loop. They raise InputError where classes, sizes or files do not match.

    Args:
        module: Its parameters that require gradients are trained.
        dataset, validation: Samples.
        options, train: Of the task and of the loop.
        description: Further entries of the fingerprint: the data and the architecture of the module.

    Attributes:
        progress: The steps of training completed before the current one, a fraction of those of all epochs, 0 to 1.

    Raises:
        InputError: Not one training image can be used.
    """

    monitor = "validation_loss"  # the validation figure that is lowest at the best epoch
    progress = 0.0

    def __init__(
        self,
        module: nn.Module,
        dataset: TrainingDataset,
        validation: TrainingDataset | None,
        options: Options,
        train: TrainConfig,
        description: Mapping[str, object],
    ):
        self.module, self.dataset, self.validation = module, dataset, validation
        self.options, self.train, self.description = options, train, description
        self.dataset.cache.check()
        self.skipped = SkippedFiles()

    def collate(self, samples: list[dict]) -> dict:
        """A batch from samples; see `collate_list`."""
        return collate_list(samples)

    @abstractmethod
    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, Sums]:
        """The mean loss over a batch of `collate`, and sums over it for the log.

        The sums hold "loss" and "samples", the number that the others are divided by. `module` wraps self.module.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the trained module to a file."""

    def finish(self, path: Path) -> None:  # noqa: B027  nothing is to do by default
        """Complete a file of `save` after the last epoch, such as by thresholds chosen on validation data.

        Called for the net of the last epoch and for that of the best, by one process.
        """

    def warnings(self, record: dict, log: Sequence[dict]) -> list[str]:
        """What is wrong after an epoch, a line each: the likely cause and the remedy; by default nothing.

        Printed, and kept in the log's record as "warnings".

        Args:
            record: The epoch's: epoch, lr, means over the samples (train_loss, ...) and the validation figures.
            log: The records of the epochs before.
        """
        return []

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """The weights of `module` in groups, each with the factor of its learning rate; by default one group, 1.0.

        Every weight that is trained is in one group; those that require no gradients may be left out. What decides
        the factors belongs into `options` or `description`, which are compared when a run is resumed.
        """
        return [(list(self.module.parameters()), 1.0)]

    def score(self, batch: dict) -> Sums:
        """The sums of a validation batch; by default those of the loss."""
        return self.loss(self.module, batch)[1]

    def validate(self) -> dict[str, float]:
        """Means over the validation data, the same on every process; {} without validation data.

        Called in evaluation mode and without gradients.
        """
        if self.validation is None:
            return {}
        device = next(self.module.parameters()).device
        means = evaluate_means(self._validation_loader, self.score, device, self.skipped)
        return {f"validation_{key}": value for key, value in means.items()}

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """What must not change when a run is resumed: options, data, architecture and the frozen weights."""
        return {
            **fingerprint(self.options),
            **fingerprint(self.train),
            **({"epochs": self.train.epochs} if self.train.has_fixed_length else {}),
            **self.description,
            "frozen_weights": _digest([weight for weight in self.module.parameters() if not weight.requires_grad]),
        }

    @cached_property
    def _validation_loader(self) -> DataLoader:
        """This process' shard of the validation data, in order."""
        rank, world = rank_and_world_size()
        own = range(rank, len(self.validation or ()), world)
        return make_loader(self.validation, self.train, self.collate, batch_size=self.train.batch_size, sampler=own)


def fingerprint(options: Options) -> dict[str, object]:
    """The options that decide the result, by name, as plain values."""
    values = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in RESUMABLE}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def describe_data(data: Any, validation: Any) -> dict[str, object]:
    """Training and validation data for the fingerprint."""
    return {"data": data.describe(), "validation": validation and validation.describe()}


def check_classes(names: Sequence[str] | None, *data: Annotated | None) -> None:
    """Raises InputError where labels of annotated data do not index these class names; None: any will do."""
    if any(annotated is not None and names not in (None, annotated.class_names) for annotated in data):
        raise InputError("the boxes' classes are not the net's class_names; see data.annotated.align_boxes")


def check_objects(data: Annotated, validation: Annotated | None) -> None:
    """Raises InputError where all objects are marked difficult."""
    for annotated, name in ((data, "training"), (validation, "validation")):
        if annotated is not None and all(sample.difficult.all() for sample in annotated.samples):
            raise InputError(
                f"every object of the {name} data is marked difficult, and those do not contribute to the loss"
            )


def _digest(weights: Sequence[Tensor]) -> str:
    """The same for the same weights."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
