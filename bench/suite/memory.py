"""Peak memory of a process that classifies one image at six scales three times: python -m bench.suite.memory [fast]"""

import json
import subprocess
import sys

import torch

from bench.common import ROOT, process_kilobytes
from overfeat.classification.predict import classify
from overfeat.models.overfeat import build


def process_memory(fast: bool) -> dict[str, int]:
    """Bytes of a process of its own, {"peak", "weights"}: the accurate net, six scales with horizontal flips."""
    command = [sys.executable, "-m", "bench.suite.memory", *(["fast"] if fast else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:]:
        import overfeat.fast  # noqa: F401
    net = build("accurate").eval()
    image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
    for _ in range(3):
        classify(net, image)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    print(json.dumps({"peak": 1024 * process_kilobytes("VmHWM"), "weights": weights}))
