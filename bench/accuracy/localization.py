"""Localization error of each variant on made-up test scenes: python -m bench.accuracy.localization

What the paper's figure 9 compares, and what decides the merging: scales, strides, one box for all
classes or one a class, the losses, the match scores; merging against suppression and the best single
box. Thresholds are chosen on the validation scenes. Regressors come from `make regressors`.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import ROOT, write_results
from overfeat.boxes import nms
from overfeat.data.annotations import Annotated, Sample, align_boxes, read_coco
from overfeat.data.images import read_image
from overfeat.evaluation import localization_errors
from overfeat.localize import Candidates, candidates, first_of_each, merge
from overfeat.resize import resize
from overfeat.weights import load, load_regressor

COMMAND = "make scenes regressors && python -m bench.accuracy.localization"
REGRESSORS = ("scr-l2", "pcr-l2", "scr-iou")
SCALES = {"1 scale": [0], "2 scales": [0, 1], "3 scales": [0, 1, 3], "4 scales": [0, 1, 3, 5], "6 scales": range(6)}
THRESHOLDS = {
    "normalised": (0.2, 0.3, 0.5, 0.7, 0.9),
    "centres": (0.05, 0.1, 0.2, 0.4),
    "sum": (2.0, 10.0, 50.0, 500.0),
}
SUPPRESSED = (0.3, 0.5)
GUESSES = 5
Guess = tuple[Tensor, Tensor]  # labels, boxes

_loaded: dict[str, tuple] = {}  # of a worker process


def _start(weights: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _loaded.update({name: (load(path), load_regressor(path)) for name, path in weights.items()})


def _guesses(sample: Sample) -> dict[str, Guess]:
    """The guesses for one scene by every variant."""
    image = read_image(sample.path)
    size, found = tuple(image.shape[1:]), {}
    for name, (net, regressor) in _loaded.items():
        fine = candidates(net, regressor, image)
        for scales, chosen in SCALES.items():
            found[f"{name}, {scales}, fine"] = merged(_at(fine, chosen), size)
        if name != REGRESSORS[0]:
            continue
        coarse = candidates(net, regressor, image, stride="coarse")
        for scales, chosen in SCALES.items():
            found[f"{name}, {scales}, coarse"] = merged(_at(coarse, chosen), size)
        found[f"{name}, centre crop"] = centre_crop(net, regressor, image)
        for match, thresholds in THRESHOLDS.items():
            for threshold in thresholds:
                found[f"match {match}, {threshold}"] = merged(fine, size, match=match, threshold=threshold)
        found["match normalised, weighted by counts"] = merged(fine, size, average="counts")
        for threshold in SUPPRESSED:
            found[f"NMS, {threshold}"] = suppressed(fine, threshold)
        best = fine.scores.argsort(descending=True, stable=True)
        found["best single box"] = _first(fine.labels[best], fine.boxes[best])
    return found


def _at(raw: Candidates, scales: object) -> Candidates:
    kept = torch.isin(raw.scales, torch.tensor(list(scales)))
    return Candidates(*(values[kept] for values in vars(raw).values()))


def merged(raw: Candidates, size: tuple[int, int], **rule: object) -> Guess:
    found = merge(raw, size, **rule)
    return _first(found.labels, found.boxes)


def suppressed(raw: Candidates, threshold: float) -> Guess:
    kept = nms(raw.boxes, raw.scores, raw.labels, threshold)
    return _first(raw.labels[kept], raw.boxes[kept])


def centre_crop(net, regressor, image: Tensor) -> Guess:
    """One window in the middle of the image, as in training: each class with its box."""
    window, short = net.architecture.window, net.architecture.short_side
    side = round(min(image.shape[1:]) * window / short)
    y, x = ((length - side) // 2 for length in image.shape[1:])
    crop = resize(image[None, :, y : y + side, x : x + side], (window, window))
    raw = candidates(net, regressor, crop[0], [(window, window)], flip=False, least=0.0)
    best = raw.scores.argsort(descending=True, stable=True)
    boxes = raw.boxes[best] * (side / window) + torch.tensor([x, y, x, y])
    return _first(raw.labels[best], boxes)


def _first(labels: Tensor, boxes: Tensor) -> Guess:
    kept = first_of_each(labels)[:GUESSES]
    return labels[kept], boxes[kept]


def errors(data: Annotated, weights: dict[str, Path], workers: int) -> dict[str, dict[str, float]]:
    with multiprocessing.get_context("spawn").Pool(workers, _start, [weights]) as pool:
        found = list(tqdm(pool.imap(_guesses, data.samples, chunksize=4), total=len(data), unit="scene"))
    truths = [(torch.from_numpy(s.labels), torch.from_numpy(s.boxes)) for s in data.samples]
    return {way: localization_errors([guesses[way] for guesses in found], truths) for way in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, default=ROOT / "runs/scenes")
    parser.add_argument("--count", type=int, default=1000, help="test scenes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    weights = {name: ROOT / f"runs/regressor-{name}/net.safetensors" for name in REGRESSORS}
    names = load(weights[REGRESSORS[0]]).class_names
    results = {}
    for split, count in (("validation", 200), ("test", args.count)):
        data = align_boxes(read_coco(args.scenes / f"{split}.json"), names)
        data = Annotated(data.class_names, data.samples[:count])
        results[split] = {"scenes": len(data), "errors": errors(data, weights, args.workers)}
        for way, rates in results[split]["errors"].items():
            print(f"{split:10} {way:40} {rates['top1']:6.2f} {rates['top5']:6.2f}")
    write_results("accuracy-localization", COMMAND, results)


if __name__ == "__main__":
    main()
