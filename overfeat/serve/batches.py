"""A bounded queue, of which one thread evaluates the jobs, those of equal keys together."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Run = Callable[[Any, Sequence[Any]], Sequence[Any]]


class OverloadedError(Exception):
    """The queue is full; `retry_after` are the seconds until it may have room."""

    def __init__(self, retry_after: int):
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass
class _Job:
    key: Hashable
    item: Any
    until: float  # on time.monotonic's clock
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    queued: float = field(default_factory=time.monotonic)


class Batches:
    """Runs jobs in one thread, in order, those of one key together.

    Args:
        run: run(key, items) gives a result for each item.
        size: Jobs that wait, at most.
        batch_size: Jobs that run together, at most.
        observe: Called with the number of jobs of each batch.
    """

    def __init__(self, run: Run, size: int, batch_size: int, observe: Callable[[int], None] = lambda count: None):
        self._run, self._size, self._batch_size, self._observe = run, size, batch_size, observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._job_seconds = deque([0.1], maxlen=15)  # of the last batches; their median passes over warm-up
        self._thread = threading.Thread(target=self._work, name="overfeat-batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self) -> None:
        """Raises OverloadedError where no job would be accepted."""
        if len(self._jobs) >= self._size or self._stopping:
            raise OverloadedError(max(1, math.ceil(median(self._job_seconds) * len(self._jobs) / 2)))

    async def submit(self, key: Hashable, item: Any, until: float) -> tuple[Any, float]:
        """The result of a job, and the seconds that it waited.

        Raises OverloadedError; TimeoutError where it is not done at `until`, on time.monotonic's clock. A job whose
        caller is cancelled is not run.
        """
        loop = asyncio.get_running_loop()
        job = _Job(key, item, until, loop, loop.create_future())
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._changed.notify()
        async with asyncio.timeout(until - time.monotonic()):
            return await job.future

    def stop(self) -> None:
        """Finish the jobs that wait, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return
                batch = self._take()
            if batch:
                self._evaluate(batch)

    def _take(self) -> list[_Job]:
        """The first job that somebody waits for, and those of its key."""
        now = time.monotonic()
        pending = [job for job in self._jobs if not job.future.done() and job.until > now]
        batch = [job for job in pending if job.key == pending[0].key][: self._batch_size]
        chosen = {id(job) for job in batch}
        self._jobs = deque(job for job in pending if id(job) not in chosen)
        return batch

    def _evaluate(self, batch: list[_Job]) -> None:
        start = time.monotonic()
        outcomes: Sequence[Any]
        try:
            outcomes = [
                (result, start - job.queued)
                for result, job in zip(self._run(batch[0].key, [job.item for job in batch]), batch, strict=True)
            ]
        except Exception as error:  # of any kind: it belongs to those who wait
            outcomes = [error] * len(batch)
        self._job_seconds.append((time.monotonic() - start) / len(batch))
        self._observe(len(batch))
        for job, outcome in zip(batch, outcomes, strict=True):
            job.loop.call_soon_threadsafe(_settle, job.future, outcome)


def _settle(future: "asyncio.Future[Any]", outcome: Any) -> None:
    if future.done():  # its caller is gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
