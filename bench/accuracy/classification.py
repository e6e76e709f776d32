"""Error of each way of voting on made-up test scenes: python -m bench.accuracy.classification

The rows of the paper's table 2: every net alone, by each way of voting, and all nets as a committee.
The nets come from `make committee`, the scenes from `make scenes`.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from bench.common import ROOT, write_results
from overfeat.data.folder import align, read_image_folder
from overfeat.data.images import read_image
from overfeat.evaluation import WAYS, error_rates, votes
from overfeat.weights import load

COMMAND = "make scenes committee && python -m bench.accuracy.classification"
COMMITTEE_WAYS = ("4 scales, fine", "6 scales, fine")


def measure(data: Path, weights: list[Path], count: int | None) -> dict:
    nets = [load(path) for path in weights]
    samples = align(read_image_folder(data), nets[0].class_names).samples
    if count:
        samples = [samples[i * len(samples) // count] for i in range(min(count, len(samples)))]
    scores = torch.empty(len(WAYS), len(nets), len(samples), nets[0].classes)
    for i, (path, _) in enumerate(tqdm(samples, unit="scene")):
        image = read_image(path)
        for k, net in enumerate(nets):
            for w, way in enumerate(votes(net, image).values()):
                scores[w, k, i] = way
    labels = torch.tensor([label for _, label in samples])
    single = {way: [error_rates(scores[w, k], labels) for k in range(len(nets))] for w, way in enumerate(WAYS)}
    committee = {way: error_rates(scores[WAYS.index(way)].mean(dim=0), labels) for way in COMMITTEE_WAYS}
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
    parser.add_argument("--count", type=int, help="only so many scenes, evenly spaced")
    args = parser.parse_args()
    results = measure(args.data, args.weights, args.count)
    write_results("accuracy-classification", COMMAND, results)
    for way, rates in results["single"].items():
        print(f"{way:18} top-1 error {sum(r['top1'] for r in rates) / len(rates):.2f} %")
    for way, rates in results["committee"].items():
        print(f"committee, {way:18} top-1 error {rates['top1']:.2f} %")


if __name__ == "__main__":
    main()
