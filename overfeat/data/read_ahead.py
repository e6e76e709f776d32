"""Reading images ahead: the next is decoded while one is processed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Tensor]) -> Iterator[tuple[Item, Future[Tensor]]]:
    """Each item with its image, `future.result()`, which raises what `read` raised.

    The next item's image is read in a thread meanwhile, so that two images are held at a time.
    """
    with ThreadPoolExecutor(1, "read_ahead") as pool:
        pending: list[tuple[Item, Future[Tensor]]] = []
        for item in items:
            pending.append((item, pool.submit(read, item)))
            if len(pending) == 2:
                yield pending.pop(0)
        yield from pending
