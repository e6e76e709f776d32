"""A training that is killed at any time leaves nets that load and predict, of the last epoch that was complete."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from overfeat import load, load_regressor
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main

ROOT = Path(__file__).parents[2]
DEADLINE = 180
CODE = (
    "import sys; from overfeat.cli.main import main; import overfeat.detection.train; "
    "overfeat.detection.train.VALIDATION_TILES = 4; sys.exit(main(sys.argv[1:]))"
)


def kill_in_an_epoch(command, out, epoch):
    """Run the command until steps of an epoch, counted from 0, have been trained; gives the checkpoint's state."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", CODE, *map(str, command), "--out", str(out)]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    path, state, deadline = out / "checkpoint.pt", {"epoch": 0, "step": 0}, time.monotonic() + DEADLINE
    try:
        while not (state["epoch"] >= epoch and state["step"]):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
            if path.exists():
                state = torch.load(path, weights_only=True)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    return state


def test_a_killed_detector_detects(multi_object, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "train.json", "validation", "validation.json"):
        (data / name).symlink_to(multi_object / name)
    command = ["train", "detector", "--data", data, "--init", SHIPPED_WEIGHTS, "--scales", "0.5,0.8"]
    command += "--no-flip --no-context --samples-per-image 1 --batch-size 2 --epochs 100".split()
    command += "--num-workers 0 --checkpoint-steps 1".split()
    state = kill_in_an_epoch([*command, "--device", "cpu"], out, epoch=1)
    completed = len((out / "log.jsonl").read_text().splitlines())
    assert 1 <= completed <= state["epoch"] + 1
    image = sorted((multi_object / "test").iterdir())[0]
    for name in ("net", "best"):
        weights, detections = out / f"{name}.safetensors", tmp_path / name
        net = load(weights)
        assert net.background and net.scale_factors == (0.5, 0.8)
        assert load_regressor(weights).architecture == net.architecture
        assert main(["detect", str(image), "--weights", str(weights), "-o", str(detections)]) == 0
        assert "objects" in json.loads((detections / f"{image.name}.json").read_text())
    # The checkpoint is steps ahead of the nets.
    trained = {f"net.{key}": value for key, value in load(out / "net.safetensors").state_dict().items()}
    assert not all(torch.equal(value, state["module"][key]) for key, value in trained.items())
