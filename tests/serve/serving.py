"""Servers for tests: in a thread of this process, and as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import torch

import overfeat
from overfeat.serve.config import ServeConfig
from overfeat.serve.models import Model
from overfeat.serve.run import address_of, make_server


def tiny_models():
    """A classifier of three classes, and a localizer and detector of two, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, detector = overfeat.build("small", 3), overfeat.build("small", 3)
        regressor = overfeat.BoxRegressor(detector.architecture)
    net.class_names = ["ash", "birch", "cedar"]
    detector.class_names, detector.background = ["left", "right", "background"], True
    return {"trees": Model("trees", net), "sides": Model("sides", detector, regressor.eval())}


@contextmanager
def served(models=None, port=0, **options):
    """The address of a server with these options, in a thread."""
    config = ServeConfig(port=port, **{"deadline": 300.0, **options})  # tests run on busy machines
    server, listener = make_server(models or tiny_models(), config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield address_of(listener, config).rstrip("/")
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


class ServerProcess:
    """`overfeat serve` with these arguments, ready to answer."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "overfeat", "serve", "--port", "0", "--deadline", "300", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        assert "serving" in line, self.process.stderr.read()
        self.address = re.search(r"http\S*[^/\s]", line)[0]

    def stop(self, number=signal.SIGTERM) -> tuple[int, str]:
        """The exit status after a signal, and what was printed to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors
