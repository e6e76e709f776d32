"""Public functions that take images in memory and large ones."""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from overfeat.large.readers.image import LargeImage
from overfeat.large.readers.open import is_large

Function = TypeVar("Function", bound=Callable[..., Any])


def or_large(large: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorates a function of (net, ..., image): `large` is called instead for images that are read in windows."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            image = options.get("image", options.get("images", args[-1] if args else None))
            return (large if _is_read_in_windows(image) else function)(*args, **options)

        return cast(Function, call)

    return decorate


def _is_read_in_windows(image: object) -> bool:
    if isinstance(image, str | os.PathLike):
        return is_large(image)
    return hasattr(image, "levels") and isinstance(image, LargeImage)
