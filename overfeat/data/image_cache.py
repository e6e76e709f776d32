"""Decoded images, kept in memory as long as they fit."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.data import get_worker_info

from overfeat.data.image_folder import ImageFolder
from overfeat.data.images import read_image
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
    """The images of a folder, each decoded once as long as they fit into `cache_bytes`.

    resize: the smallest and largest shorter side that will be asked for; where they are the same,
    images are kept resized. Workers share the budget, since each process holds its own part. check: called
    with an image's number and the image; InputError from it makes the image one that cannot be used. lru: when
    the budget is spent the images read first make room.
    """

    def __init__(
        self,
        folder: ImageFolder,
        resize: tuple[int, int],
        max_pixels: int | None,
        cache_bytes: int,
        check: Callable[[int, Tensor], None] | None = None,
        lru: bool = False,
    ):
        self.folder, self.check_image, self.lru = folder, check, lru
        self.resize = resize
        self.limits = {} if max_pixels is None else {"max_pixels": max_pixels}
        self.cache_bytes = cache_bytes
        self.cached: dict[int, Tensor] = {}
        self.used = 0
        self.bad: set[int] = set()

    def get(self, index: int) -> Tensor | None:
        """uint8 [3, H, W], or None where the file cannot be used; `error_for` says why."""
        if index in self.cached:
            return self.cached[index]
        if index in self.bad:
            return None
        try:
            image = self._read(index)
        except InputError:
            self.bad.add(index)
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
        """(file, what is wrong with it) of an image that `get` gave None for."""
        path = self.folder.samples[index][0]
        try:
            self._read(index)
        except InputError as error:
            return str(path), with_path(path, error)
        return str(path), f"{path}: could not be read a moment ago, and can be now"

    def check(self) -> None:
        """Raises InputError where not one image can be used."""
        if all(self.get(index) is None for index in range(len(self.folder))):
            raise InputError(f"none of the {len(self.folder)} images can be used; {self.error_for(0)[1]}")

    def _read(self, index: int) -> Tensor:
        image = read_image(self.folder.samples[index][0], **self.limits)
        if self.check_image:
            self.check_image(index, image)
        low, high = self.resize
        # Judged at the largest size, so that it does not hang on chance which images are used.
        check_elongation(image, high)
        return resize_shorter(image, low) if low == high else image


def check_elongation(image: Tensor, short_side: int) -> None:
    height, width = image.shape[1:]
    if short_side**2 * max(height, width) / min(height, width) > MAX_RESIZED:
        raise InputError(f"{width}x{height} px is too elongated for a shorter side of {short_side}; crop it")
