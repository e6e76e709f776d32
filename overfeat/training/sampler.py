"""Which samples a process takes, and what it could not read: batches, shards and means over them."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from overfeat.errors import InputError
from overfeat.training.distributed import add, all_gather, all_reduce_sum, rank_and_world_size, to_device


def derive_seed(*numbers: int) -> int:
    """One seed from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


class ResumableBatchSampler(Sampler):
    """This process' part of the global batches of an epoch, as lists of (epoch, index).

    Every process draws the same permutation of all samples from (seed, epoch) and takes every
    world-th sample of each batch. The last, incomplete batch is left out. `epoch` and `start`,
    the batches to skip, are set before each pass. order(samples, generator=...): the permutation.
    """

    def __init__(
        self, samples: int, batch: int, seed: int, rank: int = 0, world: int = 1, order: Callable = torch.randperm
    ):
        self.samples, self.batch, self.seed, self.rank, self.world = samples, batch, seed, rank, world
        self.order = order
        self.steps = samples // batch
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = self.order(self.samples, generator=generator)
        for step in range(self.start, self.steps):
            chosen = order[step * self.batch + self.rank : (step + 1) * self.batch : self.world]
            yield [(self.epoch, index) for index in chosen.tolist()]


class SkippedFiles:
    """Files that samples had to do without; each is warned about once."""

    def __init__(self, files: list[str] | None = None):
        self.files = set(files or [])

    def record(self, dataset: Dataset, batch: object) -> None:
        """Warn of the samples that the batch says were unreadable."""
        if isinstance(batch, dict) and "unreadable" in batch:
            for number in batch["unreadable"][batch["unreadable"] >= 0].unique().tolist():
                file, complaint = dataset.error_for(number)
                if file not in self.files:
                    self.files.add(file)
                    tqdm.write(f"left out: {complaint}", file=sys.stderr)

    def everywhere(self) -> list[str]:
        """The files of all processes, sorted."""
        return sorted(set().union(*all_gather(sorted(self.files))))


def validation_loader(dataset: Dataset, batch: int, workers: int, collate: Callable | None = None) -> DataLoader:
    """This process' part of validation data, in order."""
    rank, world = rank_and_world_size()
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=range(rank, len(dataset), world),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


def evaluate_means(
    loader: DataLoader,
    score: Callable[[object], dict[str, Tensor | float]],
    device: torch.device,
    unreadable: SkippedFiles,
) -> dict[str, float]:
    """Means of what `score(batch)` sums up, over this loader and those of the other processes.

    The sums must hold "samples", the number that the others are divided by. Raises InputError
    where that is 0.
    """
    sums: dict = {}
    for batch in loader:
        unreadable.record(loader.dataset, batch)
        add(sums, score(to_device(batch, device)))
    sums = all_reduce_sum(sums)
    samples = sums.pop("samples", 0)
    if not samples:
        raise InputError("not one validation sample could be used")
    return {key: value / samples for key, value in sums.items()}


def validation_figures(
    loader: DataLoader, loss: Callable[[object], tuple], device: torch.device, unreadable: SkippedFiles
) -> dict[str, object]:
    """What Task.validate gives of a loss(batch) -> (loss, sums): the means of the sums, and the files left out."""
    means = evaluate_means(loader, lambda batch: loss(batch)[1], device, unreadable)
    return {**{f"validation_{key}": value for key, value in means.items()}, "unreadable": sorted(unreadable.files)}
