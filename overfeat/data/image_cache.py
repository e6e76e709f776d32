"""Decoded images in memory, up to a budget of bytes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import get_worker_info

from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.data.resize import resize_short_side
from overfeat.errors import InputError, with_path

CACHE_BYTES = 10**9
MAX_RESIZED = 40_000_000  # pixels; a 1 x 10,000 strip would otherwise become gigabytes


def resize_shorter(image: Tensor, short_side: int) -> Tensor:
    """The image with its shorter side resized to `short_side`: uint8 [3, H, W] -> [3, h, w].

    Raises InputError for images so elongated that the result would not be worth its memory.
    """
    check_elongation(image, short_side)
    return resize_short_side(image[None], short_side)[0]


class ImageCache:
    """Images of files, each decoded once as long as all fit into `cache_bytes`.

    Args:
        short_sides: The smallest and largest shorter side that callers resize to; if they are equal, images are cached
            resized.
        max_pixels: Larger images are refused; None: the default of `read_image`.
        cache_bytes: The budget; data loader workers share it, since each process has a cache of its own.
        check: Called with an image's index and the image; InputError from it makes the image unusable.
        lru: When the budget is spent, evict the images read first; otherwise keep them and cache no others.
    """

    def __init__(
        self, paths: Sequence[Path], short_sides: tuple[int, int], *, max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES, check: Callable[[int, Tensor], None] | None = None, lru: bool = False,
    ):  # fmt: skip
        self.paths, self.short_sides, self.check_image, self.lru = paths, short_sides, check, lru
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self.cache_bytes = cache_bytes
        self.cached: dict[int, Tensor] = {}
        self.used = 0
        self.invalid: set[int] = set()

    def get(self, index: int) -> Tensor | None:
        """uint8 [3, H, W], or None for a file that cannot be used; `error_for` gives the reason."""
        if index in self.cached:
            return self.cached[index]
        if index in self.invalid:
            return None
        try:
            image = self._read(index)
        except InputError:
            self.invalid.add(index)
            return None
        worker = get_worker_info()
        budget = self.cache_bytes // (worker.num_workers if worker else 1)
        while self.lru and self.cached and self.used + image.nbytes > budget:
            self.used -= self.cached.pop(next(iter(self.cached))).nbytes
        if self.used + image.nbytes <= budget:
            self.cached[index] = image
            self.used += image.nbytes
        return image

    def error_for(self, index: int) -> tuple[str, str]:
        """(file, what is wrong with it) of an image for which `get` returned None."""
        path = self.paths[index]
        try:
            self._read(index)
        except InputError as error:
            return str(path), with_path(path, error)
        return str(path), f"{path}: could not be read at first, but can be read now"

    def check(self) -> None:
        """Raises InputError if no image can be used."""
        if all(self.get(index) is None for index in range(len(self.paths))):
            raise InputError(f"none of the {len(self.paths)} images can be used; {self.error_for(0)[1]}")

    def _read(self, index: int) -> Tensor:
        image = read_image(self.paths[index], self.max_pixels)
        if self.check_image:
            self.check_image(index, image)
        low, high = self.short_sides
        check_elongation(image, high)  # at the largest size, so that usable images do not depend on random sizes
        return resize_shorter(image, low) if low == high else image


def check_elongation(image: Tensor, short_side: int) -> None:
    """Raises InputError for an image that would be too large with a shorter side of `short_side`."""
    height, width = image.shape[1:]
    if short_side**2 * max(height, width) / min(height, width) > MAX_RESIZED:
        raise InputError(f"{height}x{width} px is too elongated for a shorter side of {short_side}; crop it")
