"""The stages of an evaluation by name, and their times when somebody watches; otherwise they just run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Of the full layers that classify, and of a box regressor: the first and the others.
FULL, BOXES = ("first full layer", "other full layers"), ("boxes", "boxes")
_watch: "RegionTimer | None" = None  # the one that takes times now


class RegionTimer:
    """Times of stages on a device: on a GPU between events in its stream, elsewhere by the clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.taken: list[tuple[str, object, object]] = []

    def _now(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def run(self, name: str, function: Callable, *arguments: object) -> object:
        """The function's result; its time is noted, and its name in a trace that is being recorded."""
        with torch.profiler.record_function(name):
            start = self._now()
            result = function(*arguments)
            self.taken.append((name, start, self._now()))
        return result

    def seconds(self) -> dict[str, float]:
        """The sum over all runs of each stage, in the order in which they first ran."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, float] = {}
        for name, start, stop in self.taken:
            spent = start.elapsed_time(stop) / 1000 if self.device.type == "cuda" else stop - start
            found[name] = found.get(name, 0.0) + spent
        return found


def run(name: str, function: Callable, *arguments: object) -> object:
    """function(*arguments), as the stage `name`. Stages do not contain others."""
    if _watch is None:
        return function(*arguments)
    return _watch.run(name, function, *arguments)


@contextmanager
def collect_timings(device: torch.device) -> Iterator[RegionTimer]:
    """Stages that run inside the block are timed."""
    global _watch
    before, _watch = _watch, RegionTimer(device)
    try:
        yield _watch
    finally:
        _watch = before
