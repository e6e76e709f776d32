"""What the tasks that learn from annotated boxes have in common, for `training.train`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from overfeat.data.annotated import Annotated
from overfeat.data.items import collate_list
from overfeat.errors import InputError
from overfeat.training.config import TrainConfig
from overfeat.training.sampler import SkippedFiles, validation_figures, validation_loader


class BoxTask(ABC):
    """A task whose items are lists, with boxes, and whose validation figures are sums of its loss.

    module, config: as in training.Task; data: what trains, with the `store` of its images;
    validation: or None.
    """

    module: nn.Module

    def __init__(self, module: nn.Module, config: TrainConfig, data: Dataset, validation: Dataset | None):
        self.module, self.config, self.data, self.validation = module, config, data, validation
        self.data.cache.check()
        self.unreadable = SkippedFiles()

    def dataset(self) -> Dataset:
        """What trains."""
        return self.data

    def collate(self, samples: list[dict]) -> dict:
        """See data.scaled.listed."""
        return collate_list(samples)

    @abstractmethod
    def loss(self, module: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor | float]]:
        """As in training.Task."""

    def validate(self) -> dict[str, object]:
        """The figures of training on the validation data."""
        if self.validation is None:
            return {}
        device = next(self.module.parameters()).device
        return validation_figures(self._loader, partial(self.loss, self.module), device, self.unreadable)

    @cached_property
    def _loader(self) -> DataLoader:
        return validation_loader(self.validation, self.config.batch, self.config.workers, collate_list)


def check_classes(names: Sequence[str] | None, *data: Annotated | None) -> None:
    """Raises InputError where annotated data counts in other classes than these; None: any will do."""
    if any(annotated is not None and names not in (None, annotated.class_names) for annotated in data):
        raise InputError("the boxes' classes are not the net's class_names; see data.annotated.align_boxes")
