"""Localization error of every variant on made-up test scenes: python -m bench.accuracy.localization

What the paper's figure 9 compares, and what decides the merging: scales, strides, one box for all
classes or one a class, the losses, the match scores; merging against suppression and the best single
box. The threshold of each rule is the best of those tried on the validation scenes. The regressors
come from `make regressors`.
"""

import argparse
import multiprocessing
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import RESULTS, ROOT, write_results
from overfeat.data.annotated import Annotated, Sample, align_boxes
from overfeat.data.images import read_image
from overfeat.data.readers.coco import read_coco
from overfeat.data.resize import resize
from overfeat.dense.candidates import SHARE, Candidates, candidates
from overfeat.dense.detections import first_of_each, merge
from overfeat.files import atomic_write
from overfeat.metrics.localization import localization_errors
from overfeat.models.checkpoint import load, load_regressor
from overfeat.ops.boxes import nms

COMMAND = "make scenes regressors && python -m bench.accuracy.localization"
REGRESSORS = ("scr-l2", "pcr-l2", "scr-iou")
BASE = REGRESSORS[0]
SCALES = {"1 scale": (1,), "2 scales": (1, 2), "3 scales": (1, 2, 3), "4 scales": (1, 2, 3, 4),
          "scales 1, 2, 4, 6": (1, 2, 4, 6), "6 scales": (1, 2, 3, 4, 5, 6)}  # fmt: skip
CLOSE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
# Rule -> the thresholds that are tried on the validation scenes.
SHARES = {0.0: (0.4,), 0.3: CLOSE, 0.5: CLOSE, 0.8: CLOSE, 0.9: CLOSE}  # beside the default, SHARE
RULES = {
    **{f"{name}: normalised": CLOSE for name in REGRESSORS},
    **{f"{BASE}: normalised, share {share:g}": thresholds for share, thresholds in SHARES.items()},
    f"{BASE}: normalised, counts": CLOSE,
    f"{BASE}: centres": (0.05, 0.1, 0.2, 0.3, 0.4),
    f"{BASE}: sum": (2.0, 10.0, 50.0, 200.0),
    f"{BASE}: NMS": (0.3, 0.4, 0.5, 0.6),
}
GUESSES = 5
Guess = tuple[np.ndarray, np.ndarray]  # labels, boxes; tensors would each take an open file between processes
Chosen = dict[str, float]  # rule -> threshold

_loaded: dict[str, tuple] = {}  # of a worker process


def _start(weights: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _loaded.update({name: (load(path), load_regressor(path)) for name, path in weights.items()})


def tried(sample: Sample) -> dict[tuple[str, float], Guess]:
    """The guesses for one scene by every rule with every threshold, at six scales."""
    image = read_image(sample.path)
    raw = {name: candidates(*loaded, image, share=0.0) for name, loaded in _loaded.items()}
    return {
        (rule, threshold): guess(raw[rule.split(":")[0]], image, rule, threshold)
        for rule, thresholds in RULES.items()
        for threshold in thresholds
    }


def measured(sample: Sample, chosen: Chosen) -> dict[str, Guess]:
    """The guesses for one scene by every variant."""
    image, found = read_image(sample.path), {}
    for name, (net, regressor) in _loaded.items():
        rule = f"{name}: normalised"
        for stride in ("coarse", "fine"):
            raw = candidates(net, regressor, image, stride=stride, share=0.0)
            for scales, numbers in SCALES.items():
                found[f"{name}, {scales}, {stride}"] = guess(_at(raw, numbers), image, rule, chosen[rule])
        if name == BASE:
            for other in [rule for rule in RULES if rule.startswith(BASE) and ", share 0" not in rule]:
                found[other] = guess(raw, image, other, chosen[other])
            best = raw.scores.argsort(descending=True, stable=True)
            found["best single box"] = _first(raw.labels[best], raw.boxes[best])
            found["centre crop"] = centre_crop(net, regressor, image)
    return found


def guess(raw: Candidates, image: Tensor, rule: str, threshold: float) -> Guess:
    """The guesses by one rule; raw: with no box left out yet."""
    match, _, more = rule.split(": ")[1].partition(", ")
    raw = _strong(raw, float(more.removeprefix("share ")) if more.startswith("share ") else SHARE)
    if match == "NMS":
        kept = nms(raw.boxes, raw.scores, raw.labels, iou_threshold=threshold)
        return _first(raw.labels[kept], raw.boxes[kept])
    found = merge(raw, tuple(image.shape[1:]), threshold, match, "counts" if more == "counts" else "pairwise")
    return _first(found.labels, found.boxes)


def _strong(raw: Candidates, share: float) -> Candidates:
    """What `candidates` keeps with this share."""
    best = torch.zeros(int(raw.labels.max()) + 1).scatter_reduce(0, raw.labels, raw.scores, "amax")
    kept = raw.scores >= share * best[raw.labels]
    return raw[kept]


def centre_crop(net, regressor, image: Tensor) -> Guess:
    """One window in the middle of the image, as in training: each class with its box."""
    window, short = net.architecture.window, net.architecture.short_side
    side = round(min(image.shape[1:]) * window / short)
    y, x = ((length - side) // 2 for length in image.shape[1:])
    crop = resize(image[None, :, y : y + side, x : x + side], (window, window))
    raw = candidates(net, regressor, crop[0], [(window, window)], flip=False, share=0.0)
    best = raw.scores.argsort(descending=True, stable=True)
    boxes = raw.boxes[best] * (side / window) + torch.tensor([x, y, x, y])
    return _first(raw.labels[best], boxes)


def _at(raw: Candidates, scales: Iterable[int]) -> Candidates:
    kept = torch.isin(raw.scales, torch.tensor([number - 1 for number in scales]))
    return raw[kept]


def _first(labels: Tensor, boxes: Tensor) -> Guess:
    kept = first_of_each(labels)[:GUESSES]
    return labels[kept].numpy(), boxes[kept].numpy()


def errors(data: Annotated, pool, work) -> dict:
    """Localization errors of every variant that `work` gives guesses of."""
    found = list(tqdm(pool.imap(work, data.samples, chunksize=4), total=len(data), unit="scene"))
    truths = [(torch.from_numpy(s.labels), torch.from_numpy(s.boxes)) for s in data.samples]
    return {
        way: localization_errors([tuple(map(torch.from_numpy, guesses[way])) for guesses in found], truths)
        for way in found[0]
    }


def plot(results: dict, path: Path) -> None:
    """Error against the number of scales, as the paper's figure 9, a line a variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis, rates = figure.subplots(), results["test"]["errors"]
    for name in REGRESSORS:
        for stride, line in (("fine", "-"), ("coarse", ":")):
            shown = [scales for scales in SCALES if f"{name}, {scales}, {stride}" in rates]
            values = [rates[f"{name}, {scales}, {stride}"]["top5"] for scales in shown]
            colour = f"C{REGRESSORS.index(name)}"
            axis.plot(shown, values, line, marker="o", color=colour, label=f"{name}, {stride}")
    axis.axhline(rates["centre crop"]["top5"], color="grey", linewidth=1, label="centre crop (scr-l2)")
    axis.set_ylabel("localization error with five guesses, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, default=ROOT / "runs/scenes")
    parser.add_argument("--count", type=int, default=1200, help="test scenes")
    parser.add_argument("--tried", type=int, default=300, help="validation scenes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    weights = {name: ROOT / f"runs/regressor-{name}/net.safetensors" for name in REGRESSORS}
    names = load(weights[BASE]).class_names

    def scenes(split: str, count: int) -> Annotated:
        data = align_boxes(read_coco(args.scenes / f"{split}.json"), names)
        return Annotated(data.class_names, data.samples[:count])

    validation, test = scenes("validation", args.tried), scenes("test", args.count)
    with multiprocessing.get_context("spawn").Pool(args.workers, _start, [weights]) as pool:
        by_threshold = errors(validation, pool, tried)
        rules = {rule: {t: by_threshold[rule, t] for t in thresholds} for rule, thresholds in RULES.items()}
        chosen = {rule: min(rates, key=lambda t: (rates[t]["top5"], rates[t]["top1"])) for rule, rates in rules.items()}
        found = errors(test, pool, partial(measured, chosen=chosen))
    results = {
        "validation": {"scenes": len(validation), "errors": rules},
        "chosen": chosen,
        "test": {"scenes": len(test), "errors": found},
    }
    for rule, threshold in chosen.items():
        print(f"{rule:30} threshold {threshold:g}")
    for way, rates in found.items():
        print(f"{way:40} {rates['top1']:6.2f} {rates['top5']:6.2f}")
    write_results("accuracy-localization", COMMAND, results)
    plot(results, RESULTS / "localization.png")


if __name__ == "__main__":
    main()
