"""Error of each way of voting on made-up test scenes: python -m bench.accuracy.classification

The rows of the paper's table 2: every net alone, by each way of voting, and all nets as a committee.
The nets come from `make committee`, the scenes from `make scenes`.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import ROOT, write_results
from overfeat.classification.evaluate import score_by_protocol
from overfeat.classification.protocols import PROTOCOLS
from overfeat.data.image_folder import align, read_image_folder
from overfeat.data.images import read_image
from overfeat.data.walk import subsample
from overfeat.metrics.classification import error_rates
from overfeat.models.checkpoint import load
from overfeat.models.overfeat import OverFeat

COMMAND = "make scenes committee accuracy"
COMMITTEE_WAYS = ("4 scales, fine", "6 scales, fine")


_nets: list[OverFeat] = []  # of a worker process


def _start(weights: list[Path]) -> None:
    torch.set_num_threads(1)
    _nets.extend(load(path) for path in weights)


def _scores(path: Path) -> Tensor:
    """The scores of every net by every way of voting, for one scene: [ways, nets, classes]."""
    image = read_image(path)
    return torch.stack([torch.stack(list(score_by_protocol(net, image, PROTOCOLS).values())) for net in _nets], dim=1)


def measure(data: Path, weights: list[Path], count: int | None, workers: int) -> dict:
    nets = [load(path) for path in weights]
    samples = subsample(align(read_image_folder(data), nets[0].class_names).samples, count)
    with multiprocessing.get_context("spawn").Pool(workers, _start, [weights]) as pool:
        found = pool.imap(_scores, [path for path, _ in samples], chunksize=4)
        scores = torch.stack(list(tqdm(found, total=len(samples), unit="scene")), dim=2)
    labels = torch.tensor([label for _, label in samples])
    single = {way: [error_rates(scores[w, k], labels) for k in range(len(nets))] for w, way in enumerate(PROTOCOLS)}
    committee = {way: error_rates(scores[PROTOCOLS.index(way)].mean(dim=0), labels) for way in COMMITTEE_WAYS}
    return {
        "images": len(samples),
        "nets": len(nets),
        "flip": nets[0].flip,
        "single": single,
        "committee": committee,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/scenes/test")
    parser.add_argument("--weights", type=Path, nargs="+",
                        default=[ROOT / f"runs/small-{seed}/net.safetensors" for seed in range(5)])  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--count", type=int, help="only so many scenes, evenly spaced")
    args = parser.parse_args()
    results = measure(args.data, args.weights, args.count, args.workers)
    write_results("accuracy-classification", COMMAND, results)
    for way, rates in results["single"].items():
        print(f"{way:18} top-1 error {sum(r['top1'] for r in rates) / len(rates):.2f} %")
    for way, rates in results["committee"].items():
        print(f"committee, {way:18} top-1 error {rates['top1']:.2f} %")


if __name__ == "__main__":
    main()
