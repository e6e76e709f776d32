"""A function of many items, on Dask's workers."""

import math
import pickle
import queue
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import overfeat
from overfeat.cluster.connect import connect
from overfeat.cluster.connect import dask as import_dask
from overfeat.cluster.worker import Group, run_group
from overfeat.errors import ArgumentError, InputError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

GROUP_SECONDS = 1.0  # of work in a group: against it a scheduler's millisecond is nothing
MAX_GROUP = 1000
QUEUED = 2  # groups for each worker, so that it has the next one at hand
MAX_PICKLED = 1 << 20  # bytes; they go with every group
COLLECTING = 0.01  # seconds for more groups to end: many at once cost the scheduler less than one by one
COUNTING = 2.0  # seconds after which the workers are counted again
LOST = "the Dask scheduler has ended or dropped the work; results that are written are kept, so run it again"
WAIT = 15.0  # seconds without a result before a look at whether there are workers


def run(
    prepare: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, dask: "str | Client" = "local:2"
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Apply a function to items on Dask's workers; yields each item with its result as it is done.

    `prepare` runs once on each worker and returns the function: it loads what all items need, such as a net. Items go
    to workers in groups that take about a second. A group whose worker dies goes to another one, so that the function
    may meet an item twice: let it write its results through `overfeat.files.atomic_write` and skip those that exist.
    An item at which workers die again and again is an error, as is an exception of the function; `result()` raises it.

    Args:
        prepare: Can be pickled, as functions of a module and `functools.partial` of them can.
        items: Small and picklable, such as paths.
        dask: The address of a scheduler, a `distributed.Client`, or local:N for N workers on this machine.

    Raises:
        InputError: No scheduler answers, it ends, or a worker cannot run `prepare`.
    """
    if not callable(prepare):
        raise ArgumentError("prepare", f"must be a function without arguments, not {prepare!r}")
    distributed = import_dask()
    from distributed.protocol.pickle import dumps

    try:
        pickled = dumps(prepare)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ArgumentError("prepare", f"must be a function that can be pickled ({error})") from error
    if len(pickled) > MAX_PICKLED:
        size = f"takes {len(pickled) >> 20} MiB when pickled"
        raise ArgumentError("prepare", f"must load what it needs on the worker; it {size}")
    pending = list(items)
    if not pending:
        return
    with connect(dask) as client:
        dispatcher = Dispatcher(client, pickled, pending)
        try:
            yield from dispatcher.results(distributed)
        finally:
            dispatcher.cancel()


class Dispatcher:
    """Sends items to workers in groups, few at a time."""

    def __init__(self, client: "Client", prepare: bytes, items: Sequence[Any]):
        self.client, self.prepare, self.pending = client, prepare, deque(items)
        self.running: dict[str, tuple[Any, list[Any], bool]] = {}  # by key: future, items, whether they run alone
        self.suspects: deque[Any] = deque()  # items of groups whose workers died again and again
        self.done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.name, self.number, self.rate = uuid.uuid4().hex[:12], 0, 0.0
        self.workers, self.counted = 1, -math.inf

    def results(self, distributed: Any) -> Iterator[tuple[Any, "Future[Any]"]]:
        """Each item with its result as it is done."""
        while self.pending or self.running or self.suspects:
            self._fill()
            ended = self._ended()
            finished = [entry for entry in ended if entry[0].status == "finished"]
            broken = [entry for entry in ended if entry not in finished]
            try:
                try:
                    groups = self.client.gather([future for future, _, _ in finished])
                except distributed.KilledWorker:  # of a result whose worker has died since
                    groups, finished, broken = [], [], ended
                for group, (_, items, _) in zip(groups, finished, strict=True):
                    yield from self._finished(group, items)
                for future, items, alone in broken:
                    try:
                        group = future.result()  # computed again if the worker that held it has died
                    except distributed.KilledWorker:
                        yield from self._killed(items, alone=alone)
                    else:
                        yield from self._finished(group, items)
            except (CancelledError, OSError) as error:
                raise InputError(LOST) from error
            except ImportError as error:
                remedy = "install overfeat and what it needs there, too"
                raise InputError(f"a worker cannot run the work ({error}); {remedy}") from error

    def _ended(self) -> list[tuple[Any, list[Any], bool]]:
        """All groups that have ended; waits for one, but not for ever."""
        keys = []
        try:
            keys.append(self.done.get(timeout=WAIT))
            time.sleep(COLLECTING)
            while True:
                keys.append(self.done.get_nowait())
        except queue.Empty:
            if not keys:
                self._check()
        return [self.running.pop(key) for key in keys]

    def cancel(self) -> None:
        """Take back what has not been started."""
        futures = [future for future, _, _ in self.running.values()]
        if futures and self.client.status == "running":
            self.client.cancel(futures, force=True)
        self.running.clear()

    def _fill(self) -> None:
        """Send groups until every worker has enough; suspects one at a time, with no other beside them."""
        if time.monotonic() > self.counted + COUNTING:  # they come and go
            self.workers, self.counted = max(1, len(self.client.nthreads())), time.monotonic()
        groups: list[list[Any]] = []
        while self.pending and len(self.running) + len(groups) < QUEUED * self.workers:
            even = len(self.pending) // (QUEUED * self.workers)
            count = min(MAX_GROUP, max(1, min(even, int(GROUP_SECONDS * self.rate))))
            groups.append([self.pending.popleft() for _ in range(min(count, len(self.pending)))])
        alone = not groups and not self.running
        if alone and self.suspects:
            groups.append([self.suspects.popleft()])
        if groups:
            self._submit(groups, alone=alone)

    def _submit(self, groups: list[list[Any]], *, alone: bool) -> None:
        keys = [f"overfeat-{self.name}-{self.number + i}" for i in range(len(groups))]
        self.number += len(groups)
        function = partial(run_group, self.prepare, overfeat.__version__)
        futures = self.client.map(function, groups, key=keys, pure=False, batch_size=None)
        for key, future, items in zip(keys, futures, groups, strict=True):
            self.running[key] = (future, items, alone)
            future.add_done_callback(lambda done: self.done.put(done.key))

    def _killed(self, items: list[Any], *, alone: bool) -> Iterator[tuple[Any, "Future[Any]"]]:
        """Items whose workers died: perhaps another one's fault, unless they ran alone.

        All groups that a worker has at hand count as killed.
        """
        if not alone:
            self.suspects.extend(items)
            return
        remedy = "its memory may not suffice, see the worker's log"
        yield items[0], _completed(None, InputError(f"the workers that process it die; {remedy}"))

    def _finished(self, group: Group, items: list[Any]) -> Iterator[tuple[Any, "Future[Any]"]]:
        if group.failure is not None:
            if isinstance(group.failure, InputError):
                raise InputError(f"worker {group.worker}: {group.failure}") from group.failure
            raise group.failure
        self.rate = len(items) / max(group.seconds, 1e-6)
        for item, (result, error) in zip(items, group.results, strict=True):
            yield item, _completed(result, error)

    def _check(self) -> None:
        """While nothing comes: say so if there are no workers. Raises InputError without a scheduler."""
        if self.client.status not in ("running", "connecting"):
            raise InputError(LOST)
        if self.client.status == "running" and not self.client.nthreads():
            address = self.client.scheduler.address
            print(f"waiting for workers: start some with `dask worker {address}`", file=sys.stderr)


def _completed(result: Any, error: Exception | None) -> "Future[Any]":
    future: Future[Any] = Future()
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
    return future
