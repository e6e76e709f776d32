"""Classification error of each protocol on synthetic test images: python -m bench.accuracy.classification

The rows of the paper's table 2: every net alone by each protocol, and the ensemble of all nets. The nets come from
bench/accuracy/classifiers.sh.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import ROOT, write_results
from overfeat.classification.config import PROTOCOLS
from overfeat.classification.evaluate import score_by_protocol
from overfeat.data.image_folder import align
from overfeat.data.images import read_image
from overfeat.data.map_images import subsample
from overfeat.data.readers.image_folder import read_image_folder
from overfeat.metrics.classification import error_rates
from overfeat.models.checkpoint import load
from overfeat.models.overfeat import OverFeat

COMMAND = "bench/accuracy/classifiers.sh && python -m bench.accuracy.classification"
ENSEMBLE_PROTOCOLS = ("4 scales, fine", "6 scales, fine")

_nets: list[OverFeat] = []  # of a worker process


def _start(weights: list[Path]) -> None:
    torch.set_num_threads(1)
    _nets.extend(load(path) for path in weights)


def _scores(path: Path) -> Tensor:
    """Scores of one image: [protocols, nets, classes]."""
    image = read_image(path)
    return torch.stack(
        [torch.stack(list(score_by_protocol(net, image, protocols=PROTOCOLS).values())) for net in _nets], dim=1
    )


def measure(data: Path, weights: list[Path], count: int | None, workers: int) -> dict:
    nets = [load(path) for path in weights]
    samples = subsample(align(read_image_folder(data), nets[0].class_names).samples, count)
    with multiprocessing.get_context("spawn").Pool(workers, _start, [weights]) as pool:
        of_images = pool.imap(_scores, [path for path, _ in samples], chunksize=4)
        scores = torch.stack(list(tqdm(of_images, total=len(samples), unit="image")), dim=2)
    labels = torch.tensor([label for _, label in samples])
    return {
        "images": len(samples),
        "nets": len(nets),
        "flip": nets[0].flip,
        "single": {
            name: [error_rates(scores[p, k], labels) for k in range(len(nets))] for p, name in enumerate(PROTOCOLS)
        },
        "ensemble": {
            name: error_rates(scores[PROTOCOLS.index(name)].mean(dim=0), labels) for name in ENSEMBLE_PROTOCOLS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/single/test")
    parser.add_argument("--weights", type=Path, nargs="+",
                        default=[ROOT / f"runs/small-{seed}/net.safetensors" for seed in range(5)])  # fmt: skip
    parser.add_argument("--num-workers", type=int, default=2, help="processes")
    parser.add_argument("--max-images", type=int, help="only this many images, evenly spaced")
    args = parser.parse_args()
    results = measure(args.data, args.weights, args.max_images, args.num_workers)
    write_results("accuracy-classification", COMMAND, results)
    for name, rates in results["single"].items():
        print(f"{name:18} top-1 error {sum(r['top1'] for r in rates) / len(rates):.2f} %")
    for name, rates in results["ensemble"].items():
        print(f"ensemble, {name:18} top-1 error {rates['top1']:.2f} %")


if __name__ == "__main__":
    main()
