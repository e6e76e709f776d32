"""Writes maps of a large image, and detects in another one meanwhile, until it kills itself: see test_killed_runs.py.

python tests/large/killed_runs.py IMAGE MAPS.zarr SCENE OUT
"""

import os
import signal
import sys

import torch
from torch import nn

import overfeat
from overfeat.cli.main import main
from overfeat.large import blocks, detect, score_maps

NAMES = ["sound", "cracked", "dusty"]
MAPS, CANDIDATES = 7, 3  # blocks that are done


def patch_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    return overfeat.densify(nn.Sequential(*layers), 15, std=255, class_names=NAMES, check=False)


def run(image, maps, scene, out):
    evaluate, save, done = score_maps.score_block, detect.save_candidates, []

    def score_block(*arguments, **options):
        evaluate(*arguments, **options)
        done.append(arguments[2])
        if len(done) == 1:
            print("writing", flush=True)
            sys.stdin.readline()
        if len(done) == MAPS:
            blocks.BLOCK = 150
            main(["detect", scene, "-o", out, "--scales", "0.8"])

    def save_candidates(path, *arguments):
        save(path, *arguments)
        if len(list(path.parent.glob("*.safetensors"))) == CANDIDATES:
            os.kill(os.getpid(), signal.SIGKILL)

    blocks.BLOCK, score_maps.score_block, detect.save_candidates = 128, score_block, save_candidates
    score_maps.write_score_maps(patch_net(), image, maps, stride=4, flip=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
