"""Average precision of every variant of detection on made-up test scenes: python -m bench.accuracy.detection

Merging against suppression, the negatives, context, strides, numbers of sizes; and how
far accumulation sets true boxes apart from false ones. Thresholds are the best of those tried on the validation
scenes. The detectors come from `make detectors`.
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
from overfeat.dense.detections import Detections
from overfeat.dense.grid import grids
from overfeat.dense.scales import STEP
from overfeat.detection.predict import LEAST, clamp_scales, combine
from overfeat.files import atomic_write
from overfeat.metrics.average_precision import Boxes, curves, mean_average_precision
from overfeat.metrics.report import average_precisions
from overfeat.models.checkpoint import load, load_regressor

COMMAND = "make crowds detectors && python -m bench.accuracy.detection"
LONG = "detector"  # trained longest; the one that ships
NETS = (LONG, "mixed", "hard", "random", "none", "no-context")  # the others: short, equal training
LEASTS = (0.1, 0.2, 0.3, 0.5)
# What becomes of the boxes -> the arguments of `combine`, and the thresholds tried on the validation scenes.
RULES = {
    "greedy": ({}, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "greedy, leftovers kept": ({"overlap": 1.0}, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    "greedy, pairwise average": ({"average": "pairwise"}, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "greedy, gated centres": ({"match": "centres"}, (0.05, 0.1, 0.2, 0.4)),
    "NMS": ({"merging": "nms"}, (0.1, 0.2, 0.3, 0.4, 0.5)),
}
BEST, MOST = "greedy", "NMS"  # accumulated confidences, and the largest alone
SIZES = (1, 3, 6)
DIFFER = 10  # groups of scenes that are left out in turn, for the errors
Chosen = dict[str, tuple[float, float]]  # rule -> threshold, least


@dataclass(frozen=True)
class Found:
    """Detections of one image; arrays, since tensors would each take an open file between processes."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    sums: np.ndarray

    @staticmethod
    def of(found: Detections) -> "Found":
        return Found(*(values.numpy() for values in (found.boxes, found.labels, found.scores, found.sums)))

    def ranked(self, by: str = "scores") -> Boxes:
        return Boxes(*(torch.from_numpy(values) for values in (self.boxes, self.labels, getattr(self, by))))


_loaded: dict[str, tuple] = {}  # of a worker process


def _start(weights: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _loaded.update({name: (load(path), load_regressor(path)) for name, path in weights.items()})


def sizes(scale_factors: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` factors over the same range, each in the middle of its part of it."""
    low, high = scale_factors[0] * STEP**-0.5, scale_factors[-1] * STEP**0.5
    return tuple(low * (high / low) ** ((i + 0.5) / count) for i in range(count))


def collected(name: str, image: Tensor, scale_factors: Sequence[float], stride: str) -> tuple[Candidates, list]:
    """The boxes of all places that score LEASTS[0] or more, and the grids."""
    net, regressor = _loaded[name]
    size = tuple(image.shape[1:])
    scale_factors = clamp_scales(net.architecture, *size, scale_factors)
    raw = candidates(net, regressor, image, scale_factors, None, stride, None, 0.0, least=LEASTS[0])
    return raw, grids(net, size, scale_factors, None, stride)


def combined(raw: Candidates, found: list, rule: str, threshold: float, least: float) -> Found:
    strong = raw[raw.scores >= least]
    return Found.of(combine(strong, found, threshold=threshold, **RULES[rule][0]))


def tried(sample: Sample) -> dict[tuple[str, float, float], Found]:
    """What one scene gives by every rule with every threshold."""
    raw, found = collected(LONG, read_image(sample.path), _loaded[LONG][0].scale_factors, "fine")
    return {
        (rule, threshold, least): combined(raw, found, rule, threshold, least)
        for rule, (_, thresholds) in RULES.items()
        for threshold in thresholds
        for least in LEASTS
    }


def measured(sample: Sample, chosen: Chosen) -> dict[str, Found]:
    """What one scene gives by every variant."""
    image, ways = read_image(sample.path), {}
    for name in NETS:
        scale_factors = _loaded[name][0].scale_factors
        raw, found = collected(name, image, scale_factors, "fine")
        for rule in RULES if name == LONG else (BEST, MOST):
            ways[f"{name}: {rule}"] = combined(raw, found, rule, *chosen[rule])
    for stride in ("coarse", "fine"):
        for count in SIZES:
            raw, found = collected(LONG, image, sizes(_loaded[LONG][0].scale_factors, count), stride)
            for rule in (BEST, MOST):
                ways[f"{count} sizes, {stride}: {rule}"] = combined(raw, found, rule, *chosen[rule])
    raw, found = collected(LONG, image, _loaded[LONG][0].scale_factors, "coarse")
    for rule in (BEST, MOST):
        ways[f"{LONG}, coarse: {rule}"] = combined(raw, found, rule, *chosen[rule])
    return ways


def everywhere(data: Annotated, pool, work: Callable) -> tuple[dict, list[Boxes]]:
    """What `work` finds in all scenes by every way, and what is there."""
    of_scenes = list(tqdm(pool.imap(work, data.samples, chunksize=4), total=len(data), unit="scene"))
    truths = [Boxes(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in data.samples]
    return {way: [found[way] for found in of_scenes] for way in of_scenes[0]}, truths


def voc(found: Iterable[Found], truths: Sequence[Boxes], classes: int, by: str = "scores") -> float:
    return mean_average_precision(curves([f.ranked(by) for f in found], truths, classes, "voc"))


def gap(found: Sequence[Found], truths: Sequence[Boxes], classes: int) -> dict[str, float]:
    """Confidences of right and wrong boxes: medians, and how often a right one is above a wrong one."""
    judged = curves([f.ranked("sums") for f in found], truths, classes, "voc")
    scores, right = (torch.cat([getattr(curve, key) for curve in judged]) for key in ("scores", "right"))
    true, false = scores[right], scores[~right].sort().values
    below, upto = torch.searchsorted(false, true), torch.searchsorted(false, true, right=True)
    return {
        "true": float(true.median()),
        "false": float(false.median()),
        "false 90 %": float(false.quantile(0.9)),
        "above": float((below + upto).double().mean() / 2 / len(false)),
        "average precision": voc(found, truths, classes, "sums"),
    }


def error(one: Sequence[Found], other: Sequence[Found] | None, truths: Sequence[Boxes], classes: int) -> float:
    """The standard error of a mean average precision, or of the difference of two, from scenes left out in groups."""
    values = []
    for group in range(DIFFER):
        kept = [i for i in range(len(truths)) if i % DIFFER != group]
        value, *less = (
            voc([found[i] for i in kept], [truths[i] for i in kept], classes) for found in (one, other) if found
        )
        values.append(value - sum(less))
    return float(np.sqrt((DIFFER - 1) * np.var(values)))


def whole_curve(found: Sequence[Found], truths: Sequence[Boxes], classes: int) -> dict[str, list[float]]:
    """Precision and recall of all classes in one ranking, thinned."""
    judged = curves([f.ranked() for f in found], truths, classes, "voc")
    scores, right = (torch.cat([getattr(curve, key) for curve in judged]) for key in ("scores", "right"))
    hits = right[scores.argsort(descending=True)].cumsum(0).double()
    kept = torch.linspace(0, len(hits) - 1, min(len(hits), 300)).long()
    objects = sum(curve.objects for curve in judged)
    return {
        "recall": [round(v, 4) for v in (hits[kept] / objects).tolist()],
        "precision": [round(v, 4) for v in (hits[kept] / (kept + 1)).tolist()],
    }


def plot(results: dict, path: Path) -> None:
    """Precision against recall: the rules, the negatives, the strides and sizes."""
    from matplotlib.figure import Figure

    shown = {
        "what becomes of the boxes": [f"{LONG}: {rule}" for rule in RULES],
        "short training, greedy": [f"{name}: {BEST}" for name in NETS if name != LONG],
        "sizes and strides, greedy": [f"{n} sizes, {stride}: {BEST}" for n in SIZES for stride in ("fine", "coarse")],
    }
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axis, (title, ways) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        for way in ways:
            label = way.split(": ")[1] if way.startswith(f"{LONG}:") else way.split(":")[0]
            axis.plot(results["curves"][way]["recall"], results["curves"][way]["precision"], label=label, linewidth=1.2)
        axis.set(title=title, xlabel="recall", xlim=(0, 1), ylim=(0, 1.01))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower left")
    figure.axes[0].set_ylabel("precision, all classes together")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, default=ROOT / "runs/crowds")
    parser.add_argument("--count", type=int, default=600, help="test scenes")
    parser.add_argument("--tried", type=int, default=300, help="validation scenes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    weights = {name: ROOT / f"runs/{LONG if name == LONG else f'{LONG}-{name}'}/net.safetensors" for name in NETS}
    net = load(weights[LONG])
    names = net.class_names[:-1]

    def scenes(split: str, count: int) -> Annotated:
        data = align_boxes(read_coco(args.scenes / f"{split}.json"), names)
        return Annotated(data.class_names, data.samples[:count])

    validation, test = scenes("validation", args.tried), scenes("test", args.count)
    with multiprocessing.get_context("spawn").Pool(args.workers, _start, [weights]) as pool:
        found, truths = everywhere(validation, pool, tried)
        maps = {way: voc(boxes, truths, len(names)) for way, boxes in found.items()}
        chosen = {rule: max((way for way in maps if way[0] == rule), key=maps.get)[1:] for rule in RULES}
        found, truths = everywhere(test, pool, partial(measured, chosen=chosen))
    best, most = found[f"{LONG}: {BEST}"], found[f"{LONG}: {MOST}"]
    figures = {}
    for way, boxes in found.items():
        whole = average_precisions([f.ranked() for f in boxes], truths, names)
        figures[way] = {**whole["map"], "boxes": sum(len(f.labels) for f in boxes) / len(boxes)}
        print(f"{way:40} {100 * figures[way]['voc']:6.2f} {100 * figures[way]['coco']:6.2f}", flush=True)
    results = {
        "scale_factors": list(net.scale_factors),
        "sizes": {str(count): [round(z, 4) for z in sizes(net.scale_factors, count)] for count in SIZES},
        "default least": LEAST,
        "validation": {
            "scenes": len(validation),
            "map": {rule: [[*way[1:], maps[way]] for way in maps if way[0] == rule] for rule in RULES},
        },
        "chosen": chosen,
        "test": {
            "scenes": len(test),
            "objects": sum(len(truth.labels) for truth in truths),
            "map": figures,
            "error": error(best, None, truths, len(names)),
            "error of the difference to NMS": error(best, most, truths, len(names)),
        },
        "gap": {
            "best window, coarse": gap(found[f"{LONG}, coarse: {MOST}"], truths, len(names)),
            "best window, fine": gap(most, truths, len(names)),
            "accumulated, 1 size, coarse": gap(found[f"1 sizes, coarse: {BEST}"], truths, len(names)),
            "accumulated, coarse": gap(found[f"{LONG}, coarse: {BEST}"], truths, len(names)),
            "accumulated, fine": gap(best, truths, len(names)),
        },
        "curves": {way: whole_curve(boxes, truths, len(names)) for way, boxes in found.items()},
    }
    write_results("accuracy-detection", COMMAND, results)
    plot(results, RESULTS / "detection.png")


if __name__ == "__main__":
    main()
