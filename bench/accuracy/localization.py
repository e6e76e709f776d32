"""Localization error of every variant on synthetic test images: python -m bench.accuracy.localization

The variants of the paper's figure 9 and of merging: scales, strides, one box for all classes or one per class, losses
and match metrics; merging beside NMS and the highest-confidence box. The threshold of each rule is the best of those
tried on the validation images. The regressors come from bench/accuracy/regressors.sh.
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
from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.detections import first_of_each, merge
from overfeat.files import atomic_write
from overfeat.localization.config import LocalizationConfig
from overfeat.metrics.localization import localization_errors
from overfeat.models.checkpoint import load, load_regressor
from overfeat.ops.boxes import nms

COMMAND = "bench/accuracy/regressors.sh && python -m bench.accuracy.localization"
REGRESSORS = ("scr-l2", "pcr-l2", "scr-iou")
BASE = REGRESSORS[0]
SCALES = {"1 scale": (1,), "2 scales": (1, 2), "3 scales": (1, 2, 3), "4 scales": (1, 2, 3, 4),
          "scales 1, 2, 4, 6": (1, 2, 4, 6), "6 scales": (1, 2, 3, 4, 5, 6)}  # fmt: skip
MATCH_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
# Relative score threshold -> match thresholds tried with it on the validation images; beside the default.
RELATIVE = {0.0: (0.4,), **dict.fromkeys((0.3, 0.5, 0.8, 0.9), MATCH_THRESHOLDS)}
# Rule -> thresholds tried on the validation images.
RULES = {
    **{f"{name}: normalised": MATCH_THRESHOLDS for name in REGRESSORS},
    **{f"{BASE}: normalised, relative threshold {relative:g}": thresholds for relative, thresholds in RELATIVE.items()},
    f"{BASE}: normalised, counts": MATCH_THRESHOLDS,
    f"{BASE}: centres": (0.05, 0.1, 0.2, 0.3, 0.4),
    f"{BASE}: sum": (2.0, 10.0, 50.0, 200.0),
    f"{BASE}: NMS": (0.3, 0.4, 0.5, 0.6),
}
TOP_K = 5
Prediction = tuple[np.ndarray, np.ndarray]  # labels, boxes; a tensor would need an open file between processes
Chosen = dict[str, float]  # rule -> threshold

_loaded: dict[str, tuple] = {}  # of a worker process


def _start(weights: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _loaded.update({name: (load(path), load_regressor(path)) for name, path in weights.items()})


def predict_validation(sample: Sample) -> dict[tuple[str, float], Prediction]:
    """Predictions for one image by every rule with every threshold, at six scales."""
    image = read_image(sample.path)
    raw = {name: candidates(*loaded, image, relative_threshold=0.0) for name, loaded in _loaded.items()}
    return {
        (rule, threshold): predict(raw[rule.split(":")[0]], image, rule, threshold)
        for rule, thresholds in RULES.items()
        for threshold in thresholds
    }


def predict_test(sample: Sample, chosen: Chosen) -> dict[str, Prediction]:
    """Predictions for one image by every variant."""
    image, predictions = read_image(sample.path), {}
    for name, (net, regressor) in _loaded.items():
        rule = f"{name}: normalised"
        for stride in ("coarse", "fine"):
            raw = candidates(net, regressor, image, stride=stride, relative_threshold=0.0)
            for scales, numbers in SCALES.items():
                predictions[f"{name}, {scales}, {stride}"] = predict(_at(raw, numbers), image, rule, chosen[rule])
        if name == BASE:
            for other in [rule for rule in RULES if rule.startswith(BASE) and "relative threshold" not in rule]:
                predictions[other] = predict(raw, image, other, chosen[other])
            best = raw.scores.argsort(descending=True, stable=True)
            predictions["best single box"] = _first(raw.labels[best], raw.boxes[best])
            predictions["centre crop"] = centre_crop(net, regressor, image)
    return predictions


def predict(raw: Candidates, image: Tensor, rule: str, threshold: float) -> Prediction:
    """Predictions by one rule; raw: all candidates, before the relative score threshold."""
    match, _, more = rule.split(": ")[1].partition(", ")
    prefix = "relative threshold "
    raw = _above(
        raw, float(more.removeprefix(prefix)) if more.startswith(prefix) else LocalizationConfig.relative_threshold
    )
    if match == "NMS":
        kept = nms(raw.boxes, raw.scores, raw.labels, iou_threshold=threshold)
        return _first(raw.labels[kept], raw.boxes[kept])
    average = "counts" if more == "counts" else "pairwise"
    merged = merge(raw, image.shape[1:], match_threshold=threshold, match_metric=match, box_average=average)
    return _first(merged.labels, merged.boxes)


def _above(raw: Candidates, relative: float) -> Candidates:
    """The candidates that a relative score threshold keeps."""
    best = torch.zeros(int(raw.labels.max()) + 1).scatter_reduce(0, raw.labels, raw.scores, "amax")
    kept = raw.scores >= relative * best[raw.labels]
    return raw[kept]


def centre_crop(net, regressor, image: Tensor) -> Prediction:
    """One centred window of the image, as in training: each class with its box."""
    window, short = net.architecture.window, net.architecture.short_side
    side = round(min(image.shape[1:]) * window / short)
    y, x = ((length - side) // 2 for length in image.shape[1:])
    crop = resize(image[None, :, y : y + side, x : x + side], (window, window))
    raw = candidates(net, regressor, crop[0], scales=[(window, window)], flip=False, relative_threshold=0.0)
    best = raw.scores.argsort(descending=True, stable=True)
    boxes = raw.boxes[best] * (side / window) + torch.tensor([x, y, x, y])
    return _first(raw.labels[best], boxes)


def _at(raw: Candidates, scales: Iterable[int]) -> Candidates:
    kept = torch.isin(raw.scales, torch.tensor([number - 1 for number in scales]))
    return raw[kept]


def _first(labels: Tensor, boxes: Tensor) -> Prediction:
    kept = first_of_each(labels)[:TOP_K]
    return labels[kept].numpy(), boxes[kept].numpy()


def errors(data: Annotated, pool, predict_sample) -> dict:
    """Localization errors of every variant."""
    of_images = list(tqdm(pool.imap(predict_sample, data.samples, chunksize=4), total=len(data), unit="image"))
    truths = [(torch.from_numpy(s.labels), torch.from_numpy(s.boxes)) for s in data.samples]
    return {
        name: localization_errors([tuple(map(torch.from_numpy, image[name])) for image in of_images], truths)
        for name in of_images[0]
    }


def plot(results: dict, path: Path) -> None:
    """Error against the number of scales, as the paper's figure 9, one line per variant."""
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
    axis.set_ylabel("top-5 localization error, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/single")
    parser.add_argument("--max-images", type=int, default=1200, help="test images")
    parser.add_argument("--validation-images", type=int, default=300)
    parser.add_argument("--num-workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    weights = {name: ROOT / f"runs/regressor-{name}/net.safetensors" for name in REGRESSORS}
    names = load(weights[BASE]).class_names

    def images(split: str, count: int) -> Annotated:
        data = align_boxes(read_coco(args.data / f"{split}.json"), names)
        return Annotated(data.class_names, data.samples[:count])

    validation, test = images("validation", args.validation_images), images("test", args.max_images)
    with multiprocessing.get_context("spawn").Pool(args.num_workers, _start, [weights]) as pool:
        by_threshold = errors(validation, pool, predict_validation)
        rules = {rule: {t: by_threshold[rule, t] for t in thresholds} for rule, thresholds in RULES.items()}
        chosen = {rule: min(rates, key=lambda t: (rates[t]["top5"], rates[t]["top1"])) for rule, rates in rules.items()}
        of_variants = errors(test, pool, partial(predict_test, chosen=chosen))
    results = {
        "validation": {"images": len(validation), "errors": rules},
        "chosen": chosen,
        "test": {"images": len(test), "errors": of_variants},
    }
    for rule, threshold in chosen.items():
        print(f"{rule:30} threshold {threshold:g}")
    for name, rates in of_variants.items():
        print(f"{name:40} {rates['top1']:6.2f} {rates['top5']:6.2f}")
    write_results("accuracy-localization", COMMAND, results)
    plot(results, RESULTS / "localization.png")


if __name__ == "__main__":
    main()
