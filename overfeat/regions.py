"""Named regions of an evaluation: their times, and their names in a profiler's trace, where `collect_timings` asks."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

# The fully connected layers of a classifier: the first, and those after it.
FIRST_FC, REMAINING_FC = "first full layer", "other full layers"
_Mark = Any  # seconds, or an event of a GPU


class RegionTimer:
    """Times of regions on a device: on a GPU between events in its stream, elsewhere by the clock.

    counts: A list that grows while regions run; `counted` has what each region added.
    """

    def __init__(self, device: torch.device, counts: Sequence[int] = ()):
        self.device, self.counts = device, counts
        self.counted: dict[str, int] = {}
        self._spans: list[tuple[str, _Mark, _Mark]] = []

    def _mark(self) -> _Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time the block as one execution of a region, which a profiler's trace shows under its name."""
        with torch.profiler.record_function(name):
            start, before = self._mark(), len(self.counts)
            yield
            self._spans.append((name, start, self._mark()))
            self.counted[name] = self.counted.get(name, 0) + sum(self.counts[before:])

    def seconds(self) -> dict[str, float]:
        """Total seconds of each region, in the order in which they first ran."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        totals: dict[str, float] = {}
        for name, start, stop in self._spans:
            elapsed = start.elapsed_time(stop) / 1000 if self.device.type == "cuda" else stop - start
            totals[name] = totals.get(name, 0.0) + elapsed
        return totals


_timer: ContextVar[RegionTimer | None] = ContextVar("overfeat_region_timer", default=None)


def region(name: str) -> AbstractContextManager[None]:
    """The block is the region `name`; regions do not contain other regions."""
    # torch.compile does not trace ContextVars.
    timer = None if torch.compiler.is_compiling() else _timer.get()
    return nullcontext() if timer is None else timer.time(name)


def are_timed() -> bool:
    """Whether this thread is inside `collect_timings`; not in compiled code."""
    return not torch.compiler.is_compiling() and _timer.get() is not None


@contextmanager
def collect_timings(device: torch.device, counts: Sequence[int] = ()) -> Iterator[RegionTimer]:
    """Time the regions that run on a device inside the block, in this thread; see `RegionTimer`."""
    timer = RegionTimer(device, counts)
    token = _timer.set(timer)
    try:
        yield timer
    finally:
        _timer.reset(token)
