"""A connection to Dask: to a scheduler, or to workers that are started on this machine."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from overfeat.errors import ArgumentError, InputError
from overfeat.packages import package

if TYPE_CHECKING:
    from distributed import Client

LOCAL = re.compile(r"local:(\d+)")
LEAK = "ignore:resource_tracker:UserWarning:multiprocessing.resource_tracker"
STARTS, STOPPING = 3, 5.0  # of the workers' process, and seconds for it to end
TIMEOUT = 20.0  # seconds for a scheduler to answer


def dask() -> Any:
    """The package distributed. Raises InputError where it is not installed."""
    return package("distributed", "work on Dask's workers needs", "cluster")


def check_address(address: str) -> str:
    """The address. Raises InputError unless it is local:N or HOST:PORT."""
    local = LOCAL.fullmatch(address)
    if (local and int(local[1]) > 0) or (not address.startswith("local") and re.fullmatch(r"\S+:\d+", address)):
        return address
    form = "local:N, N workers on this machine, or a scheduler's address, such as tcp://10.0.0.1:8786"
    raise InputError(f"{address!r} is not {form}")


@contextmanager
def connect(address: "str | Client") -> "Iterator[Client]":
    """A client of the scheduler at the address; of local:N, of N workers of one thread that end with the block.

    A client that is given is the caller's, and stays open. Raises InputError.
    """
    distributed = dask()
    if isinstance(address, distributed.Client):
        yield address
        return
    if not isinstance(address, str):
        raise ArgumentError("dask", f"must be an address or a distributed.Client, not {address!r}")
    if match := LOCAL.fullmatch(check_address(address)):
        with _local(distributed, int(match[1])) as client:
            yield client
        return
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        remedy = "start one with `dask scheduler` and workers with `dask worker ADDRESS`"
        raise InputError(f"{address}: no Dask scheduler answers there; {remedy}") from error
    with client:
        yield client


@contextmanager
def _local(distributed: Any, count: int) -> "Iterator[Client]":
    """A client of `count` new workers, each with its share of the processors.

    They are processes of Dask's own command, which does not run the caller's script again as multiprocessing would.
    """
    import dask.config

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    settings = {"distributed.scheduler.allowed-failures": 1}
    scheduler = {"n_workers": 0, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with dask.config.set(settings), distributed.LocalCluster(**scheduler) as cluster:
        with distributed.Client(cluster) as client:
            workers = _Workers(cluster.scheduler_address, count, client.close)
            try:
                while not workers.failed and not client.nthreads():
                    time.sleep(0.05)
                if workers.failed:
                    raise InputError("Dask's workers did not start; what they printed above says why")
                yield client
            finally:
                workers.stop()


class _Workers:
    """A process of Dask's with workers of one thread: it starts again those that die, and is itself started again.

    Args:
        give_up: Called where it has ended again and again.
    """

    def __init__(self, address: str, count: int, give_up: Callable[[], object]):
        self.address, self.count, self.give_up = address, count, give_up
        self.failed, self._ended, self._process = False, Event(), _start_workers(address, count)
        self._thread = Thread(target=self._keep, name="dask-workers", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        for start in range(STARTS):
            if start:
                try:
                    self._process = _start_workers(self.address, self.count)
                except OSError:  # as without memory for a process
                    break
            while self._process.poll() is None:
                if self._ended.wait(0.2):
                    return
        self.failed = True
        self.give_up()

    def stop(self) -> None:
        """End the workers, also while they compute an image: their files are atomic."""
        self._ended.set()
        self._thread.join()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start_workers(address: str, count: int) -> subprocess.Popen:
    """Start workers of one thread; they end with the scheduler."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    environment = {f"DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__{name}": threads for name in environment}
    environment |= {"DASK_LOGGING__DISTRIBUTED": "critical", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", str(count)]
    command += ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
    warnings = filter(None, (os.environ.get("PYTHONWARNINGS"), LEAK))  # of workers that end while they compute an image
    environment["PYTHONWARNINGS"] = ",".join(warnings)
    # Ctrl-C is for the command, which ends them: not for the group of its processes.
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, start_new_session=True
    )
