"""What REST and the stream share: from the bytes of an image to an answer, within the limits of the server."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from overfeat.data.images import decode_image
from overfeat.prototypes.predict import Prototypes
from overfeat.serve.batches import Batches, OverloadedError
from overfeat.serve.config import ServeConfig
from overfeat.serve.evaluate import Answer, check_work, evaluate
from overfeat.serve.metrics import COUNTS, Metrics, resident_bytes
from overfeat.serve.models import Model
from overfeat.serve.query import Query

WARM_UP_SIZE, WARM_UP_SCALES, WARM_UP_SECONDS = (240, 320), (1.0,), 600
MAX_HELD = 512 << 20  # bytes of requests and decoded images in memory
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Lesson:
    """A class of which the prototypes get a picture."""

    prototypes: Prototypes
    name: str


class Service:
    """The nets, the queue before them, and what is counted.

    Attributes:
        streams: Those that are open.
    """

    def __init__(self, models: Mapping[str, Model], config: ServeConfig):
        self.models, self.config, self.metrics = models, config, Metrics()
        self.streams: set[Any] = set()
        self._held = 0
        self._helpers = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "overfeat-decode")
        observe = partial(self.metrics.observe, "overfeat_batch_images", buckets=COUNTS)
        self._batches = Batches(self._evaluate, config.queue_size, config.batch_size, observe)

    def _evaluate(self, key: Any, images: Any) -> list[Any]:
        if isinstance(key, Lesson):
            for image in images:
                key.prototypes.add(key.name, image)
            return [None] * len(images)
        model, query, _ = key
        answers = evaluate(model, query, images)
        for stage, elapsed in answers[0].seconds.items():
            self.metrics.count("overfeat_stage_seconds_total", elapsed, stage=stage)
        return answers

    def check_room(self) -> None:
        """Raises OverloadedError where the queue is full."""
        self._batches.check_room()

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that accounts for bytes until the block ends; it raises OverloadedError past the limit."""
        own = 0

        def more(count: int) -> None:
            nonlocal own
            if self._held + count > MAX_HELD:
                raise OverloadedError(1)
            own += count
            self._held += count

        try:
            yield more
        finally:
            self._held -= own

    async def answer(
        self, query: Query, content: bytes, hold: Callable[[int], None], until: float, model: Model | None = None
    ) -> tuple[Answer, Tensor]:
        """The answer for an image's bytes, and the image; `model` takes the place of the query's.

        Raises InputError, OverloadedError, and TimeoutError where it is late for `until`, on time.monotonic's clock.
        """
        start = time.monotonic()
        self.check_room()
        async with asyncio.timeout(until - start):
            image = await self.in_thread(self._decode, query, content)
            hold(image.nbytes)
            size, decoded = (image.shape[1], image.shape[2]), time.monotonic()
            answer, waited = await self._batches.submit((model or self.models[query.model], query, size), image, until)
        answer.seconds.update({"decode": decoded - start, "wait": waited})
        return answer, image

    async def teach(self, lesson: "Lesson", content: bytes, hold: Callable[[int], None], until: float) -> None:
        """Add an image's bytes to the prototypes. Raises as `answer`."""
        self.check_room()
        async with asyncio.timeout(until - time.monotonic()):
            image = await self.in_thread(decode_image, content, "the image", self.config.max_pixels)
            hold(image.nbytes)
            await self._batches.submit(lesson, image, until)

    async def warm_up(self) -> None:
        """Evaluate a frame with each net, which packs weights and compiles; requests are answered in between."""
        for model in self.models.values():
            query, image = Query(model.tasks[0], model.name, scales=WARM_UP_SCALES), torch.zeros(3, *WARM_UP_SIZE)
            with suppress(Exception):  # to be met again by a request, which reports it
                await self._batches.submit((model, query, WARM_UP_SIZE), image, time.monotonic() + WARM_UP_SECONDS)

    def _decode(self, query: Query, content: bytes) -> Tensor:
        image = decode_image(content, "the image", self.config.max_pixels)
        size = (image.shape[1], image.shape[2])
        check_work(self.models[query.model], query, size, self.config.max_work * 1e9)
        return image

    async def in_thread(self, function: Callable[..., Value], *args: Any) -> Value:
        """A function's result, from a helper thread."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, function, *args)

    def metrics_text(self) -> str:
        """For Prometheus."""
        return self.metrics.text({
            "overfeat_queue_length": len(self._batches), "overfeat_live_connections": len(self.streams),
            "overfeat_held_bytes": self._held, "process_resident_memory_bytes": resident_bytes(),
        })  # fmt: skip

    def stop(self) -> None:
        """Finish what waits."""
        self._batches.stop()
        self._helpers.shutdown(wait=False, cancel_futures=True)
