"""Training data of box regressors: whole images at each of a net's scales, with their boxes (section 4.2)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from overfeat.data.annotated import Annotated
from overfeat.data.augment import mirror_image
from overfeat.data.image_cache import CACHE_BYTES, ImageCache
from overfeat.data.random_tiles import empty_image
from overfeat.data.resize import resize
from overfeat.dense.config import Scales, SixScales, check_scales
from overfeat.dense.scales import scale_sizes
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture


class ScaledDataset(Dataset):
    """Every image at every scale and, with `flip`, its mirror image.

    Items are keyed by (epoch, index) or an index, which counts images, then scales, then the image and its mirror
    image; nothing is random. They are dicts: "image" uint8 [3, H, W] at the scale; "boxes" float32 [n, 4] in its
    pixels; "labels" int64 [n]; "unreadable": -1, or the number of the image that cannot be used, which is replaced by
    a window of zeros without boxes.

    For `scales` see `DenseConfig`, for `max_pixels` and `cache_bytes` `ImageCache`.
    """

    def __init__(
        self, annotated: Annotated, architecture: Architecture, scales: Scales = None,
        *, flip: bool = False, max_pixels: int | None = None, cache_bytes: int = CACHE_BYTES,
    ):  # fmt: skip
        self.annotated, self.architecture, self.flip = annotated, architecture, flip
        self.scales = check_scales(scales) or SixScales()
        paths = [sample.path for sample in annotated.samples]
        # Factors give sizes that depend on the image; the cache does not consider them.
        fixed = self.scales if isinstance(self.scales, SixScales) else [s for s in self.scales if isinstance(s, tuple)]
        geometry = architecture.geometry
        sizes = scale_sizes(geometry, 100, 100, fixed) if fixed else [geometry.window]
        sides = (architecture.window, max(min(size) for size in sizes) + 1)
        self.cache = ImageCache(paths, sides, max_pixels=max_pixels, cache_bytes=cache_bytes, check=self._check)

    def __len__(self) -> int:
        return len(self.annotated) * len(self.scales) * (2 if self.flip else 1)

    def __getitem__(self, key: tuple[int, int] | int) -> dict:
        index = key if isinstance(key, int) else key[1]
        index, mirror = divmod(index, 2) if self.flip else (index, 0)
        number, scale = divmod(index, len(self.scales))
        image, sample = self.cache.get(number), self.annotated.samples[number]
        if image is None:
            empty = empty_image(self.architecture.window)
            return {name: empty[name] for name in ("image", "boxes", "labels")} | {"unreadable": number}
        size = scale_sizes(self.architecture.geometry, image.shape[1], image.shape[2], self.scales)[scale]
        factors = np.array([size[1] / image.shape[2], size[0] / image.shape[1]] * 2)
        boxes = torch.from_numpy(sample.boxes * factors).float()
        image = resize(image[None], size)[0]
        if mirror:
            image, boxes = mirror_image(image, boxes)
        return {"image": image, "boxes": boxes, "labels": torch.from_numpy(sample.labels), "unreadable": -1}

    def _check(self, number: int, image: Tensor) -> None:
        """Raises InputError for an image of another size than annotated, or too small for one of the scales."""
        self.annotated.samples[number].check(image)
        try:
            scale_sizes(self.architecture.geometry, image.shape[1], image.shape[2], self.scales)
        except InputError as error:
            raise InputError(f"{self.annotated.samples[number].path}: {error}") from error
