"""DeepMultiBox on made-up test scenes, beside OverFeat's detection and localization: python -m bench.accuracy.multibox

Its paper's figure 1 (objects found by so many boxes), table 1 (average precision), table 2 (detection@5 and
classification@5) and figure 5 (across data sets); what matching and priors are worth; digits never seen; time.
Suppression and square are the best of those tried on validation scenes. The nets come from `make multiboxes`.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import RESULTS, ROOT, write_results
from overfeat.data.annotated import Annotated, Sample, align_boxes
from overfeat.data.readers.coco import read_coco
from overfeat.dense.detections import Detections
from overfeat.dense.grid import grids
from overfeat.detection.predict import clamp_scales, detect
from overfeat.files import atomic_write
from overfeat.localization.predict import localize
from overfeat.metrics.average_precision import Boxes
from overfeat.metrics.report import average_precisions
from overfeat.models.checkpoint import load, load_multibox, load_regressor
from overfeat.models.flops import work
from overfeat.multibox.evaluate import KEPT, WINDOWS, at_5, class_agnostic, detection_rate
from overfeat.multibox.predict import LEAST, OVERLAP, TOP, classify_boxes, crops_of, propose, with_classes
from overfeat.ops.boxes import SQUARES, nms
from overfeat.profiling.profile import evaluation_work

COMMAND = "make scenes crowds regressors detectors multiboxes && python -m bench.accuracy.multibox"
LONG = "long"
SHORT = {
    "prior": "prior matching",
    "prediction": "prediction matching",
    "prediction-30": "prediction matching, alpha 30",
    "no-priors": "no priors",
}
MODELS = (LONG, *SHORT, "scenes", "low")  # the short ones had equal training
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
SETS = {"crowds": 600, "scenes": 400, "low": 200, "high": 200}  # test scenes of each
GROUPS = 10  # of scenes that are left out in turn, for the errors
TIMED = 24  # scenes, each in turn by every method


@dataclass(frozen=True)
class Found:
    """Boxes of one image, best first; arrays, since tensors would each take an open file between processes.

    shares: [n, classes], what is in the first of them.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    shares: np.ndarray = field(default_factory=lambda: np.empty((0, 10), dtype=np.float32))

    @staticmethod
    def of(found: Detections, shares: Tensor | None = None) -> "Found":
        found = found[:KEPT]
        arrays = [values.numpy() for values in (found.boxes, found.labels, found.scores)]
        return Found(*arrays) if shares is None else Found(*arrays, shares.numpy())

    def detections(self) -> Detections:
        boxes, labels, scores = map(torch.from_numpy, (self.boxes, self.labels, self.scores))
        return Detections(boxes, labels, scores, torch.ones_like(labels), scores, scores)

    def classified(self, top: int, least: float = LEAST) -> Detections:
        return with_classes(self.detections()[:top], torch.from_numpy(self.shares[:top]), least)


_loaded: dict = {}  # of a worker process


def file_of(name: str) -> Path:
    return ROOT / f"runs/multibox{'' if name == LONG else f'-{name}'}/net.safetensors"


def _start(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    _loaded.update({name: load_multibox(file_of(name)) for name in MODELS})
    _loaded["classifier"] = load(ROOT / "runs/box-classifier/net.safetensors")
    for name, run in (("detector", "detector"), ("localizer", "regressor-scr-iou")):
        path = ROOT / f"runs/{run}/net.safetensors"
        _loaded[name] = load(path), load_regressor(path)


def proposed(name: str, image: Tensor, crops: str) -> Detections:
    """All boxes of a model, before suppression."""
    return propose(_loaded[name], image, crops, 1.0)


def suppressed(every: Detections, threshold: float) -> Detections:
    return every[nms(every.boxes, every.scores, every.labels, iou_threshold=threshold)]


def classified(found: Detections, image: Tensor, square: str, top: int) -> Found:
    """Boxes with what is in the best of them."""
    return Found.of(found, classify_boxes(_loaded["classifier"], image, found.boxes[:top], square))


def tried(sample: Sample) -> dict[tuple, Found]:
    """What a validation scene gives with every threshold and square."""
    image = sample.read()
    every = proposed(LONG, image, "both")
    of_thresholds = {t: suppressed(every, t) for t in THRESHOLDS}
    return {(t, s): classified(found, image, s, TOP) for t, found in of_thresholds.items() for s in SQUARES}


def measured(sample: Sample, of: str, threshold: float, square: str) -> dict[str, Found]:
    """What a test scene of a set gives by every way that is compared there."""
    image, found = sample.read(), {}
    names = {"crowds": MODELS, "scenes": (LONG, "prior", "scenes")}.get(of, ("prior", "low"))
    second = {"crowds": (LONG,), "scenes": (LONG, "scenes")}.get(of, ())
    for name in names:
        for crops in ("centre", "both"):
            every = proposed(name, image, crops)
            found[f"{name}, {crops}"] = Found.of(suppressed(every, OVERLAP))
            if name in second:
                best = suppressed(every, threshold)
                found[f"{name}, {crops}, classified"] = classified(best, image, square, max(WINDOWS))
                way = f"{name}, {crops}, classified as in the paper"
                found[way] = classified(suppressed(every, OVERLAP), image, SQUARES[0], max(WINDOWS))
    if second:
        way, pair = (detect, "detector") if of == "crowds" else (localize, "localizer")
        found["OverFeat"] = Found.of(way(*_loaded[pair], image))
        true = torch.from_numpy(sample.boxes).float()
        shares, sure = classify_boxes(_loaded["classifier"], image, true, square), torch.ones(len(true))
        found["true boxes"] = Found(true.numpy(), sample.labels, sure.numpy(), shares.numpy())
    return found


def everywhere(data: Annotated, pool, each: Callable) -> tuple[dict[str, list[Found]], list[Boxes]]:
    """What `each` finds in all scenes by every way, and what is there."""
    of_scenes = list(tqdm(pool.imap(each, data.samples, chunksize=4), total=len(data), unit="scene"))
    truths = [Boxes(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in data.samples]
    return {way: [found[way] for found in of_scenes] for way in of_scenes[0]}, truths


def rate_error(one: Sequence[Found], other: Sequence[Found] | None, truths: Sequence[Boxes]) -> float:
    """The standard error of the objects found by ten boxes, or of the difference of two ways, from groups left out."""
    values = []
    for group in range(GROUPS):
        kept = [i for i in range(len(truths)) if i % GROUPS != group]
        rates = [
            detection_rate([found[i].detections() for i in kept], [truths[i] for i in kept])[TOP - 1]
            for found in (one, other)
            if found
        ]
        values.append(rates[0] - sum(rates[1:]))
    return float(np.sqrt((GROUPS - 1) * np.var(values)))


def mean_precisions(found: Sequence[Detections], truths: Sequence[Boxes], names: list[str]) -> dict:
    whole = average_precisions([Boxes(f.boxes, f.labels, f.scores) for f in found], truths, names)
    return {"map": whole["map"], "classes": {name: figures["voc"] for name, figures in whole["ap"].items()}}


def five_guesses(found: Sequence[Found], truths: Sequence[Boxes]) -> dict[str, dict[str, float]]:
    """Table 2: by how many boxes were classified."""
    return {str(count): at_5([f.classified(count, 0.0) for f in found], truths) for count in WINDOWS}


def times(data: Annotated, threshold: float, square: str) -> dict:
    """Seconds an image of each method, in turn on the same scenes, and its work."""
    _start(torch.get_num_threads())
    detector, regressor = _loaded["detector"]
    boxes, classifier = _loaded[LONG], _loaded["classifier"]

    def multibox(image: Tensor, crops: str) -> None:
        found = propose(boxes, image, crops, threshold)[:TOP]
        with_classes(found, classify_boxes(classifier, image, found.boxes, square))

    ways = {
        "OverFeat": lambda image: detect(detector, regressor, image),
        "DeepMultiBox, both": partial(multibox, crops="both"),
        "DeepMultiBox, centre": partial(multibox, crops="centre"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    images = [sample.read() for sample in data.samples[:TIMED]]
    for image in (images[0], *images):  # the first time warms up
        for way, run in ways.items():
            start = time.perf_counter()
            run(image)
            seconds[way].append(time.perf_counter() - start)
    evaluations: dict[str, list[int]] = {way: [] for way in ways}
    multiplied: dict[str, list[float]] = {way: [] for way in ways}
    one_crop = work(boxes.net.architecture, boxes.side, boxes.side, 5 * boxes.boxes, "coarse")
    window = classifier.architecture.window
    one_box = work(classifier.architecture, window, window, classifier.num_classes, "coarse")
    for image in images:
        size = tuple(image.shape[1:])
        of_scales = grids(
            detector, size, clamp_scales(detector.architecture, *size, detector.scale_factors), None, "fine"
        )
        by_stage, places = evaluation_work(detector, of_scales, "fine")
        evaluations["OverFeat"].append(places)
        multiplied["OverFeat"].append(sum(by_stage.values()))
        for crops in ("both", "centre"):
            way, count = f"DeepMultiBox, {crops}", len(crops_of(*size, crops))
            evaluations[way].append(count + TOP)
            of_crops = count * (one_crop["features"] + one_crop["first"] + one_crop["rest"])
            multiplied[way].append(of_crops + TOP * (one_box["features"] + one_box["first"] + one_box["rest"]))
    return {
        way: {
            "seconds": statistics.median(taken[1:]),
            "p20": float(np.quantile(taken[1:], 0.2)),
            "p80": float(np.quantile(taken[1:], 0.8)),
            "ratio": statistics.median(a / b for a, b in zip(seconds["OverFeat"][1:], taken[1:], strict=True)),
            "evaluations": statistics.mean(evaluations[way]),
            "gmac": statistics.mean(multiplied[way]) / 1e9,
        }
        for way, taken in seconds.items()
    }


def plot(results: dict, path: Path) -> None:
    """Objects found by so many boxes (figure 1); precision across data sets and for digits never seen (figure 5)."""
    from matplotlib.figure import Figure

    shown = {
        "crowds": (("prior, both", "trained there"), ("scenes, both", "trained on one digit")),
        "scenes": (("scenes, both", "trained there"), ("prior, both", "trained on crowds")),
        "high": (("prior, both", "trained on all digits"), ("low, both", "trained on 0 to 4")),
    }
    titles = {"crowds": "crowds", "scenes": "scenes of one digit", "high": "crowds of digits 5 to 9"}
    figure = Figure(figsize=(11, 8), layout="constrained")
    first, *others = figure.subplots(2, 2).ravel()
    lines = [(f"{LONG}, both", "long training, 10 crops"), (f"{LONG}, centre", "long training, 1 crop")]
    lines += [(f"{name}, both", f"{text}, 10 crops") for name, text in SHORT.items()] + [("OverFeat", "OverFeat")]
    for way, text in lines:
        values = results["rate"]["crowds"][way]
        first.plot(range(1, len(values) + 1), values, label=text, linewidth=1.2)
    first.set(title="crowds", xlabel="boxes of a scene", ylabel="objects found", xscale="log", xlim=(1, 100))
    for axis, (of, ways) in zip(others, shown.items(), strict=True):
        more = (("OverFeat", "OverFeat"),) if of != "high" else ()
        for way, label in (*ways, *more):
            curve = results["agnostic"][of][way]
            axis.plot(curve["recall"], curve["precision"], label=f"{label}: {100 * curve['ap']:.1f} %", linewidth=1.2)
        axis.set(title=titles[of], xlabel="recall", xlim=(0, 1), ylabel="precision, whatever the digit")
    for axis in (first, *others):
        axis.set_ylim(0, 1.01)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right" if axis is first else "lower left")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the scenes are")
    parser.add_argument("--tried", type=int, default=200, help="validation scenes")
    parser.add_argument("--share", type=float, default=1.0, help="of the test scenes, for a quick look")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    names = load(ROOT / "runs/box-classifier/net.safetensors").class_names[:-1]

    def scenes(of: str, split: str, count: int) -> Annotated:
        data = align_boxes(read_coco(args.runs / of / f"{split}.json"), names)
        return Annotated(data.class_names, data.samples[:count])

    test = {of: scenes(of, "test", max(GROUPS, round(args.share * count))) for of, count in SETS.items()}
    validation = scenes("crowds", "validation", args.tried)
    with multiprocessing.get_context("spawn").Pool(args.workers, _start) as pool:
        found, truths = everywhere(validation, pool, tried)
        maps = {}
        for way, of_way in found.items():
            maps[way] = mean_precisions([f.classified(TOP) for f in of_way], truths, names)["map"]["voc"]
            print(f"threshold {way[0]}, {way[1]} square: {100 * maps[way]:.2f}", flush=True)
        threshold, square = max(maps, key=maps.get)
        of_sets = {
            of: everywhere(data, pool, partial(measured, of=of, threshold=threshold, square=square))
            for of, data in test.items()
        }
    plain = {
        of: {way: values for way, values in found.items() if "classified" not in way and way != "true boxes"}
        for of, (found, _) in of_sets.items()
    }
    rates = {
        of: {way: detection_rate([f.detections() for f in values], of_sets[of][1]) for way, values in ways.items()}
        for of, ways in plain.items()
    }
    (crowds, truths), high = of_sets["crowds"], of_sets["high"][0]
    precisions = {
        f"{way}, {top}": mean_precisions([f.classified(top) for f in values], truths, names)
        for way, values in crowds.items()
        if "classified" in way
        for top in WINDOWS
    }
    precisions["OverFeat"] = mean_precisions([f.detections() for f in crowds["OverFeat"]], truths, names)
    of_truth = [f.classified(len(f.boxes)) for f in crowds["true boxes"]]
    precisions["true boxes"] = mean_precisions(of_truth, truths, names)
    alone, there = of_sets["scenes"]
    windows = {way: five_guesses(v, there) for way, v in alone.items() if "classified" in way or way == "true boxes"}
    of_overfeat = at_5([f.detections() for f in alone["OverFeat"]], there)
    results = {
        "scenes": {of: len(data) for of, data in test.items()},
        "objects": {of: sum(len(sample.labels) for sample in data.samples) for of, data in test.items()},
        "validation": {"scenes": len(validation), "map": [[*way, value] for way, value in maps.items()]},
        "chosen": {"threshold": threshold, "square": square},
        "rate": rates,
        "errors": {
            "long, both": rate_error(crowds[f"{LONG}, both"], None, truths),
            **{
                f"prior - {name}, {w}": rate_error(crowds[f"prior, {w}"], crowds[f"{name}, {w}"], truths)
                for name in ("prediction", "no-priors")
                for w in ("centre", "both")
            },
            "high: prior - low": rate_error(high["prior, both"], high["low, both"], of_sets["high"][1]),
        },
        "agnostic": {
            of: {way: class_agnostic([f.detections() for f in v], of_sets[of][1]) for way, v in ways.items()}
            for of, ways in plain.items()
        },
        "precision": precisions,
        "windows": {**windows, "OverFeat": of_overfeat},
        "time": times(test["crowds"], threshold, square),
    }
    for way, values in rates["crowds"].items():
        print(f"{way:30} {100 * values[TOP - 1]:6.2f} % of the objects by {TOP} boxes", flush=True)
    write_results("accuracy-multibox", COMMAND, results)
    plot(results, RESULTS / "multibox.png")


if __name__ == "__main__":
    main()
