"""Writes maps of a large image, and detects in another one meanwhile, until it kills itself: see test_killed_runs.py.

python tests/large/killed_runs.py IMAGE MAPS.zarr SCENE OUT
"""

import os
import signal
import sys

import overfeat
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.large import blocks, detect, score_maps

OPTIONS = {"scales": [1.0], "flip": True}
BLOCK = 48
MAPS, CANDIDATES = 7, 3  # blocks that are done


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

    blocks.BLOCK, score_maps.score_block, detect.save_candidates = BLOCK, score_block, save_candidates
    score_maps.write_score_maps(overfeat.load(SHIPPED_WEIGHTS), image, maps, **OPTIONS)


if __name__ == "__main__":
    run(*sys.argv[1:])
