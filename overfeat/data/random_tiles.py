"""The base of data sets that draw random tiles from annotated images, and what their items have in common."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.image_cache import CACHE_BYTES, ImageCache

MAX_WORKERS = 8  # that share the memory for images without any image being read twice


class RandomTileDataset(Dataset, ABC):
    """`samples_per_image` random tiles of every image.

    An item's key is (epoch, index); the index counts images, then the image's tiles. All randomness is seeded by (seed,
    epoch, image, tile). An item is what `sample_tile` returns, with "unreadable": -1, or the index of an image that
    cannot be used, which is replaced by `empty_item`.

    Args:
        annotated: Images and their boxes.
        side: Shorter side of the smallest tile.
        samples_per_image: Number of tiles per image and epoch.
        seed: Of all randomness.
        max_pixels, cache_bytes: See `ImageCache`.
    """

    def __init__(
        self, annotated: Annotated, side: int, samples_per_image: int, *, seed: int = 0, max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):  # fmt: skip
        self.annotated, self.side, self.samples_per_image, self.seed = annotated, side, samples_per_image, seed
        paths = [sample.path for sample in annotated.samples]
        self.cache = ImageCache(
            paths, (side, side + 1), max_pixels=max_pixels, cache_bytes=cache_bytes, check=self._check_size, lru=True
        )
        self.group_bytes = cache_bytes // MAX_WORKERS  # of images whose tiles are shuffled together

    def __len__(self) -> int:
        return len(self.annotated) * self.samples_per_image

    def order(self, samples: int, generator: torch.Generator) -> Tensor:
        """All indices in random order: group after group of images that fit into the memory of any worker.

        So each process reads an image once an epoch. It does not depend on the number of workers.
        """
        groups: list[list[int]] = [[]]
        used = 0
        for image in torch.randperm(samples // self.samples_per_image, generator=generator).tolist():
            height, width = self.annotated.samples[image].size
            used += 3 * height * width
            if groups[-1] and used > self.group_bytes:
                groups.append([])
                used = 3 * height * width
            groups[-1].append(image)
        shuffled = []
        for group in groups:
            tiles = torch.tensor(group)[:, None] * self.samples_per_image + torch.arange(self.samples_per_image)
            shuffled.append(tiles.flatten()[torch.randperm(tiles.numel(), generator=generator)])
        return torch.cat(shuffled)

    def __getitem__(self, key: tuple[int, int] | int) -> dict:
        epoch, index = (0, key) if isinstance(key, int) else key
        number, tile = divmod(index, self.samples_per_image)
        image = self.cache.get(number)
        if image is None:
            return {**self.empty_item(), "unreadable": number}
        rng = np.random.default_rng([self.seed, epoch, number, tile])
        return {**self.sample_tile(rng, tile, image, self.annotated.samples[number]), "unreadable": -1}

    @abstractmethod
    def sample_tile(self, rng: np.random.Generator, index: int, image: Tensor, sample: Sample) -> dict:
        """Random tile number `index` of an image uint8 [3, H, W]."""

    def empty_item(self) -> dict:
        """The item in place of an image that cannot be used: a black image without boxes."""
        return empty_image(self.side)

    def _check_size(self, number: int, image: Tensor) -> None:
        self.annotated.samples[number].check(image)


def empty_image(side: int) -> dict:
    """A black square image without boxes."""
    boxes = {"boxes": torch.empty(0, 4), "labels": torch.empty(0).long(), "difficult": torch.empty(0).bool()}
    return {"image": torch.zeros(3, side, side, dtype=torch.uint8), **boxes}


def collate_list(samples: list[dict]) -> dict:
    """A batch of images of any sizes: a list of each of the items' values, and the tensor "unreadable"."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0] if name != "unreadable"}
    return {**batch, "unreadable": torch.tensor([sample["unreadable"] for sample in samples])}
