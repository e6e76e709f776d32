"""Random parts of annotated images, and batches of them."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from overfeat.data.annotated import Annotated, Sample
from overfeat.data.image_cache import ImageCache
from overfeat.data.image_folder import ImageFolder

MAX_WORKERS = 8  # that share the memory for images without reading any twice


class PartDataset(Dataset, ABC):
    """`parts` random parts of every image; what a part is, `part` says.

    An item's key is (epoch, index); index counts images, then the image's parts. All chance is seeded by
    (seed, epoch, image, part). side: of the smallest part that training asks for. An item is what `part` gives,
    with "unreadable": -1, or the number of the image that cannot be used, in whose place comes `nothing`.
    """

    def __init__(
        self, annotated: Annotated, side: int, parts: int, seed: int, max_pixels: int | None, cache_bytes: int
    ):
        self.annotated, self.parts, self.seed = annotated, parts, seed
        folder = ImageFolder(annotated.class_names, [(sample.path, 0) for sample in annotated.samples])
        self.store = ImageCache(folder, (side, side + 1), max_pixels, cache_bytes, self._check, lru=True)
        self.together = cache_bytes // MAX_WORKERS  # bytes of images whose parts come mixed

    def __len__(self) -> int:
        return len(self.annotated) * self.parts

    def order(self, samples: int, generator: torch.Generator) -> Tensor:
        """All indices in random order: group after group of images that fit into the memory of any worker.

        So each process reads an image once an epoch. It does not depend on the number of workers.
        """
        groups, used = [[]], 0
        for number in torch.randperm(samples // self.parts, generator=generator).tolist():
            height, width = self.annotated.samples[number].size
            used += 3 * height * width
            if groups[-1] and used > self.together:
                groups.append([])
                used = 3 * height * width
            groups[-1].append(number)
        found = []
        for group in groups:
            parts = (torch.tensor(group)[:, None] * self.parts + torch.arange(self.parts)).flatten()
            found.append(parts[torch.randperm(len(parts), generator=generator)])
        return torch.cat(found)

    def __getitem__(self, key: tuple[int, int] | int) -> dict:
        epoch, index = (0, key) if isinstance(key, int) else key
        number, part = divmod(index, self.parts)
        image = self.store.get(number)
        if image is None:
            return {**self.nothing(), "unreadable": number}
        draw = np.random.default_rng([self.seed, epoch, number, part])
        return {**self.part(draw, part, image, self.annotated.samples[number]), "unreadable": -1}

    @abstractmethod
    def part(self, draw: np.random.Generator, number: int, image: Tensor, sample: Sample) -> dict:
        """Part `number` of an image uint8 [3, H, W]."""

    @abstractmethod
    def nothing(self) -> dict:
        """What stands in for an image that cannot be used."""

    def error_for(self, number: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image named in "unreadable"."""
        return self.store.error_for(number)

    def _check(self, number: int, image: Tensor) -> None:
        self.annotated.samples[number].check(image)


def without_boxes(side: int) -> dict:
    """A black square image and no boxes."""
    return {
        "image": torch.zeros(3, side, side, dtype=torch.uint8),
        "boxes": torch.empty(0, 4),
        "labels": torch.empty(0, dtype=torch.int64),
        "difficult": torch.empty(0, dtype=torch.bool),
    }


def mirror_image(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The image [3, H, W] and its boxes [n, 4], left for right."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[2]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def collate_list(samples: list[dict]) -> dict:
    """A batch of images of any sizes: a list of each of the items' values, and the tensor "unreadable"."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0] if name != "unreadable"}
    return {**batch, "unreadable": torch.tensor([sample["unreadable"] for sample in samples])}
