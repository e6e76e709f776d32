"""What the training loop asks of a task."""

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset


class Task(Protocol):
    """What the loop needs to know of a head: what to train, on what, and how to judge it.

    module: what is trained, where its parameters require gradients. settings: whatever must not
    change when a run is resumed, by the name of the flag that sets it; plain values. monitor:
    the key of `validate` that is lowest at the best epoch.
    """

    module: nn.Module
    settings: dict[str, str | int | float | bool | None]
    monitor: str

    def dataset(self) -> Dataset:
        """The training samples; keys are (epoch, index), index in 0..len-1, in the order that it gives if it has one.

        A batch that is a dict with "unreadable" (int64, -1 or the number of a sample that could
        not be used) makes the loop report `dataset.error_for(number) -> (file, what is wrong)`.
        """

    def collate(self, samples: list) -> object:
        """A batch from samples."""

    def loss(self, module: nn.Module, batch: object) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mean loss over a batch, and sums over it for the log.

        module: what to call instead of self.module, which it wraps. The sums must hold "samples",
        the number that the others are divided by, and "loss".
        """

    def validate(self) -> dict[str, object]:
        """Figures on the validation data, the same on every process; {} where there is none.

        Called in evaluation mode and without gradients; `evaluate_means` does most of it. A list of
        files under "unreadable" is joined with those of the training data.
        """

    def save(self, path: Path) -> None:
        """Write the trained module to a file."""
