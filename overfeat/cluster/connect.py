"""A connection to Dask: to a scheduler, or to workers that are started on this machine."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from overfeat.errors import ArgumentError, InputError

if TYPE_CHECKING:
    from distributed import Client

LOCAL = re.compile(r"local:(\d+)")
TIMEOUT = 20.0  # seconds for a scheduler to answer


def dask() -> Any:
    """The package distributed. Raises InputError where it is not installed."""
    try:
        import distributed
    except ImportError as error:
        raise InputError("Dask is not installed: pip install 'overfeat[cluster]'") from error
    return distributed


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
            process = _start_workers(cluster.scheduler_address, count)
            try:
                while not client.nthreads():
                    if process.poll() is not None:
                        raise InputError(f"Dask's workers did not start (exit status {process.returncode})")
                    time.sleep(0.05)
                yield client
            finally:
                process.terminate()
                process.wait()


def _start_workers(address: str, count: int) -> subprocess.Popen:
    """Start workers of one thread; one that dies is started again, and all end with the scheduler."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    environment = {f"DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__{name}": threads for name in environment}
    environment |= {"DASK_LOGGING__DISTRIBUTED": "critical", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", str(count)]
    command += ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
