"""Which samples a process trains on, and which could not be read: batches, shards and means over them."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from overfeat.errors import InputError
from overfeat.training.config import TrainConfig
from overfeat.training.distributed import add, all_gather, all_reduce_sum, to_device


def derive_seed(*numbers: int) -> int:
    """One seed from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


class ResumableBatchSampler(Sampler):
    """This process' shard of the global batches of an epoch, as lists of (epoch, index).

    Every process draws the same permutation, order(samples, generator=...), from (seed, epoch) and yields every
    world-th sample of each batch; batch_size counts those of all processes. The last, incomplete batch is dropped.
    `epoch` and `start`, the number of batches to skip, are set before each pass.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1,
        *, order: Callable[..., Tensor] = torch.randperm,
    ):  # fmt: skip
        self.samples, self.batch_size, self.seed, self.rank, self.world = samples, batch_size, seed, rank, world
        self.order, self.steps = order, samples // batch_size
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = self.order(self.samples, generator=generator)
        for step in range(self.start, self.steps):
            indices = order[step * self.batch_size + self.rank : (step + 1) * self.batch_size : self.world]
            yield [(self.epoch, index) for index in indices.tolist()]


class SkippedFiles:
    """Files that could not be used as samples; each is warned about once."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def record(self, dataset: Any, batch: object) -> None:
        """Warn of the unreadable samples of a batch."""
        if isinstance(batch, dict) and "unreadable" in batch:
            for number in batch["unreadable"][batch["unreadable"] >= 0].unique().tolist():
                file, message = dataset.cache.error_for(number)
                if file not in self.files:
                    self.files.add(file)
                    tqdm.write(f"left out: {message}", file=sys.stderr)

    def everywhere(self) -> list[str]:
        """The files of all processes, sorted."""
        return sorted(set().union(*all_gather(sorted(self.files))))


def make_loader(dataset: Any, config: TrainConfig, collate: Callable[[list[dict]], dict], **options: Any) -> DataLoader:
    """A loader with the workers of the options of the loop."""
    workers = config.num_workers
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate, **options)


def evaluate_means(
    loader: DataLoader, score: Callable[[dict], dict[str, Tensor | float]], device: torch.device, skipped: SkippedFiles
) -> dict[str, float]:
    """Means of the sums that `score(batch)` returns, over this loader and those of the other processes.

    The sums must hold "samples", the number that the others are divided by. Raises InputError where that is 0.
    """
    sums: dict[str, Tensor | float] = {}
    for batch in loader:
        skipped.record(loader.dataset, batch)
        add(sums, score(to_device(batch, device)))
    total = all_reduce_sum(sums)
    samples = total.pop("samples", 0)
    if not samples:
        raise InputError("not one validation sample could be used")
    return {key: value / samples for key, value in total.items()}
