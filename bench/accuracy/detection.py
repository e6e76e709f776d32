"""Average precision of every variant of detection on synthetic test images: python -m bench.accuracy.detection

Greedy merging beside NMS, negatives, context features, strides, numbers of scales; and how far accumulation separates
the confidences of right and wrong boxes. Thresholds are the best of those tried on the validation images. The
detectors come from bench/accuracy/detectors.sh.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.config import DenseConfig
from overfeat.dense.detections import Detections
from overfeat.dense.grid import grids
from overfeat.dense.scales import SCALE_STEP, clamp_scales
from overfeat.detection.config import SCORE_THRESHOLD
from overfeat.detection.predict import combine
from overfeat.files import atomic_write
from overfeat.metrics.average_precision import Boxes, curves, ground_truth, mean_average_precision
from overfeat.metrics.report import average_precisions
from overfeat.models.checkpoint import load, load_regressor

COMMAND = "bench/accuracy/detectors.sh && python -m bench.accuracy.detection"
LONG = "detector"  # trained longest; the one that ships
# The others: short trainings of equal length, the first with the defaults of `overfeat train detector`.
NETS = (LONG, "defaults", "half-hard", "hard", "random", "none", "no-context")
SCORE_THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
# Post-processing -> the arguments of `combine`, and the thresholds tried on the validation images.
RULES = {
    "greedy": ({}, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "greedy, leftovers kept": ({"nms_iou_threshold": 1.0}, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    "greedy, pairwise average": ({"box_average": "pairwise"}, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "greedy, gated centres": ({"match_metric": "centres"}, (0.05, 0.1, 0.2, 0.4)),
    "NMS": ({"postprocess": "nms"}, (0.1, 0.2, 0.3, 0.4, 0.5)),
}
GREEDY, NMS = "greedy", "NMS"
SCALE_COUNTS = (1, 3, 6)
JACKKNIFE_GROUPS = 10  # of images, left out in turn, for the standard errors
Chosen = dict[str, tuple[float, float]]  # rule -> match threshold, score threshold


@dataclass(frozen=True)
class Result:
    """Detections of one image, as arrays: a tensor would need an open file between processes."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    confidence_sum: np.ndarray

    @staticmethod
    def of(d: Detections) -> "Result":
        return Result(*(values.numpy() for values in (d.boxes, d.labels, d.scores, d.confidence_sum)))

    def ranked(self, by: str = "scores") -> Boxes:
        return Boxes(*(torch.from_numpy(values) for values in (self.boxes, self.labels, getattr(self, by))))


_loaded: dict[str, tuple] = {}  # of a worker process


def _start(weights: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _loaded.update({name: (load(path), load_regressor(path)) for name, path in weights.items()})


def spread(scale_factors: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` factors over the same range, each in the middle of an equal part of it."""
    low, high = scale_factors[0] * SCALE_STEP**-0.5, scale_factors[-1] * SCALE_STEP**0.5
    return tuple(low * (high / low) ** ((i + 0.5) / count) for i in range(count))


def collect(name: str, image: Tensor, scale_factors: Sequence[float], stride: str) -> tuple[Candidates, list]:
    """The candidates with a score of at least SCORE_THRESHOLDS[0], and the grids."""
    net, regressor = _loaded[name]
    size = tuple(image.shape[1:])
    scale_factors = clamp_scales(net.geometry, *size, scale_factors, net.margin)
    raw = candidates(
        net, regressor, image, scales=scale_factors, stride=stride, top_k=None, relative_threshold=0.0,
        score_threshold=SCORE_THRESHOLDS[0],
    )  # fmt: skip
    return raw, grids(net, size, DenseConfig(scale_factors, stride=stride))


def post_process(raw: Candidates, of_scales: list, rule: str, threshold: float, score_threshold: float) -> Result:
    kept = raw[raw.scores >= score_threshold]
    options = RULES[rule][0]
    name = "nms_iou_threshold" if options.get("postprocess") == "nms" else "match_threshold"
    return Result.of(combine(kept, of_scales, **{"postprocess": "merge", name: threshold, **options}))


def detect_validation(sample: Sample) -> dict[tuple[str, float, float], Result]:
    """Detections of one image by every rule with every threshold."""
    raw, of_scales = collect(LONG, read_image(sample.path), _loaded[LONG][0].scale_factors, "fine")
    return {
        (rule, threshold, score_threshold): post_process(raw, of_scales, rule, threshold, score_threshold)
        for rule, (_, thresholds) in RULES.items()
        for threshold in thresholds
        for score_threshold in SCORE_THRESHOLDS
    }


def detect_test(sample: Sample, chosen: Chosen) -> dict[str, Result]:
    """Detections of one image by every variant."""
    image, results = read_image(sample.path), {}
    for name in NETS:
        scale_factors = _loaded[name][0].scale_factors
        raw, of_scales = collect(name, image, scale_factors, "fine")
        for rule in RULES if name == LONG else (GREEDY, NMS):
            results[f"{name}: {rule}"] = post_process(raw, of_scales, rule, *chosen[rule])
    for stride in ("coarse", "fine"):
        for count in SCALE_COUNTS:
            raw, of_scales = collect(LONG, image, spread(_loaded[LONG][0].scale_factors, count), stride)
            for rule in (GREEDY, NMS):
                results[f"{count} scales, {stride}: {rule}"] = post_process(raw, of_scales, rule, *chosen[rule])
    raw, of_scales = collect(LONG, image, _loaded[LONG][0].scale_factors, "coarse")
    for rule in (GREEDY, NMS):
        results[f"{LONG}, coarse: {rule}"] = post_process(raw, of_scales, rule, *chosen[rule])
    return results


def detect_all(data: Annotated, pool, detect_sample: Callable) -> tuple[dict, list[Boxes]]:
    """Detections of all images by every variant, and the ground truth."""
    of_images = list(tqdm(pool.imap(detect_sample, data.samples, chunksize=4), total=len(data), unit="image"))
    truths = [ground_truth(sample) for sample in data.samples]
    return {name: [image[name] for image in of_images] for name in of_images[0]}, truths


def voc(results: Iterable[Result], truths: Sequence[Boxes], classes: int, by: str = "scores") -> float:
    return mean_average_precision(curves([result.ranked(by) for result in results], truths, classes, "voc"))


def gap(results: Sequence[Result], truths: Sequence[Boxes], classes: int) -> dict[str, float]:
    """Confidences of right and wrong boxes: medians, and how often a right one is above a wrong one."""
    judged = curves([result.ranked("confidence_sum") for result in results], truths, classes, "voc")
    scores, right = (torch.cat([getattr(curve, key) for curve in judged]) for key in ("scores", "right"))
    true, false = scores[right], scores[~right].sort().values
    below, upto = torch.searchsorted(false, true), torch.searchsorted(false, true, right=True)
    return {
        "true": float(true.median()),
        "false": float(false.median()),
        "false 90 %": float(false.quantile(0.9)),
        "above": float((below + upto).double().mean() / 2 / len(false)),
        "average precision": voc(results, truths, classes, "confidence_sum"),
    }


def jackknife_error(
    one: Sequence[Result], other: Sequence[Result] | None, truths: Sequence[Boxes], classes: int
) -> float:
    """The standard error of a mean average precision, or of the difference of two, by the jackknife."""
    values = []
    for group in range(JACKKNIFE_GROUPS):
        kept = [i for i in range(len(truths)) if i % JACKKNIFE_GROUPS != group]
        value, *others = (
            voc([results[i] for i in kept], [truths[i] for i in kept], classes) for results in (one, other) if results
        )
        values.append(value - sum(others))
    return float(np.sqrt((JACKKNIFE_GROUPS - 1) * np.var(values)))


def overall_curve(results: Sequence[Result], truths: Sequence[Boxes], classes: int) -> dict[str, list[float]]:
    """Precision and recall of all classes in one ranking, subsampled."""
    judged = curves([result.ranked() for result in results], truths, classes, "voc")
    scores, right = (torch.cat([getattr(curve, key) for curve in judged]) for key in ("scores", "right"))
    hits = right[scores.argsort(descending=True)].cumsum(0).double()
    kept = torch.linspace(0, len(hits) - 1, min(len(hits), 300)).long()
    objects = sum(curve.objects for curve in judged)
    return {
        "recall": [round(v, 4) for v in (hits[kept] / objects).tolist()],
        "precision": [round(v, 4) for v in (hits[kept] / (kept + 1)).tolist()],
    }


def plot(results: dict, path: Path) -> None:
    """Precision against recall: post-processing, negatives, strides and scales."""
    from matplotlib.figure import Figure

    shown = {
        "post-processing": [f"{LONG}: {rule}" for rule in RULES],
        "short training, greedy": [f"{name}: {GREEDY}" for name in NETS if name != LONG],
        "scales and strides, greedy": [
            f"{n} scales, {stride}: {GREEDY}" for n in SCALE_COUNTS for stride in ("fine", "coarse")
        ],
    }
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        for name in names:
            label = name.split(": ")[1] if name.startswith(f"{LONG}:") else name.split(":")[0]
            axis.plot(
                results["curves"][name]["recall"], results["curves"][name]["precision"], label=label, linewidth=1.2
            )
        axis.set(title=title, xlabel="recall", xlim=(0, 1), ylim=(0, 1.01))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower left")
    figure.axes[0].set_ylabel("precision, all classes together")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/multi")
    parser.add_argument("--max-images", type=int, default=600, help="test images")
    parser.add_argument("--validation-images", type=int, default=300)
    parser.add_argument("--num-workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    weights = {name: ROOT / f"runs/{LONG if name == LONG else f'{LONG}-{name}'}/net.safetensors" for name in NETS}
    net = load(weights[LONG])
    names = net.class_names[:-1]

    def images(split: str, count: int) -> Annotated:
        data = align_boxes(read_coco(args.data / f"{split}.json"), names)
        return Annotated(data.class_names, data.samples[:count])

    validation, test = images("validation", args.validation_images), images("test", args.max_images)
    with multiprocessing.get_context("spawn").Pool(args.num_workers, _start, [weights]) as pool:
        variants, truths = detect_all(validation, pool, detect_validation)
        maps = {key: voc(results, truths, len(names)) for key, results in variants.items()}
        chosen = {rule: max((key for key in maps if key[0] == rule), key=maps.get)[1:] for rule in RULES}
        variants, truths = detect_all(test, pool, partial(detect_test, chosen=chosen))
    results = {
        "scale_factors": list(net.scale_factors),
        "scale_factors_by_count": {str(n): [round(f, 4) for f in spread(net.scale_factors, n)] for n in SCALE_COUNTS},
        "default score_threshold": SCORE_THRESHOLD,
        "validation": {
            "images": len(validation),
            "map": {rule: [[*key[1:], maps[key]] for key in maps if key[0] == rule] for rule in RULES},
        },
        "chosen": chosen,
        **summarize(variants, truths, names),
    }
    write_results("accuracy-detection", COMMAND, results)
    plot(results, RESULTS / "detection.png")


def summarize(variants: dict[str, list[Result]], truths: list[Boxes], names: list[str]) -> dict:
    """Average precisions with their standard errors, confidences and curves of the test images."""
    maps = {}
    for name, results in variants.items():
        precisions = average_precisions([result.ranked() for result in results], truths, names)
        maps[name] = {**precisions["map"], "boxes": sum(len(result.labels) for result in results) / len(results)}
        print(f"{name:40} {100 * maps[name]['voc']:6.2f} {100 * maps[name]['coco']:6.2f}", flush=True)
    greedy, nms = variants[f"{LONG}: {GREEDY}"], variants[f"{LONG}: {NMS}"]
    gaps = {
        "best window, coarse": variants[f"{LONG}, coarse: {NMS}"],
        "best window, fine": nms,
        "accumulated, 1 scale, coarse": variants[f"1 scales, coarse: {GREEDY}"],
        "accumulated, coarse": variants[f"{LONG}, coarse: {GREEDY}"],
        "accumulated, fine": greedy,
    }
    return {
        "test": {
            "images": len(truths),
            "objects": sum(len(truth.labels) for truth in truths),
            "map": maps,
            "standard error": jackknife_error(greedy, None, truths, len(names)),
            "standard error of the difference to NMS": jackknife_error(greedy, nms, truths, len(names)),
        },
        "gap": {name: gap(results, truths, len(names)) for name, results in gaps.items()},
        "curves": {name: overall_curve(results, truths, len(names)) for name, results in variants.items()},
    }


if __name__ == "__main__":
    main()
