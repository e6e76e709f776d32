"""Detectors of blood cells on BCCD's test images: BCCD=FOLDER python -m bench.accuracy.cells [NAME...]

Starts, negatives, windows beyond the border, few images, seeds, DeepMultiBox: the complete trainings of
bench/accuracy/cells.sh. Each as `overfeat detect` uses it, with the thresholds that its weights have; and of the
default greedy merging and box voting beside NMS, within classes and across them, with the best thresholds of those
tried on the validation images. A measured net is skipped until its weights change.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench.accuracy.detection import Result, jackknife_error, voc
from bench.common import ROOT, write_results
from overfeat.cli.results import digest
from overfeat.data.annotated import Annotated, Sample, align_boxes
from overfeat.data.readers.annotations import read_annotations
from overfeat.dense.candidates import Candidates, collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.detections import Detections
from overfeat.dense.grid import grids
from overfeat.detection.predict import combine, detect
from overfeat.files import write_json
from overfeat.metrics.average_precision import Boxes, ground_truth
from overfeat.metrics.report import average_precisions
from overfeat.models.checkpoint import load, load_multibox, load_regressor
from overfeat.multibox.predict import classify_boxes, propose, with_classes
from overfeat.profiling.measure import machine

NAME = "accuracy-cells"
COMMAND = "BCCD=FOLDER bench/accuracy/cells.sh && BCCD=FOLDER python -m bench.accuracy.cells"
# The trainings of bench/accuracy/cells.sh.
DEFAULTS = ("default", "default-seed-1", "default-seed-2")
NETS = (
    *DEFAULTS, "20-images", "short", "short-seed-1", "short-seed-2", "frozen", "digits", "scratch", "random", "hard",
    "half-hard", "no-reach", "multibox",
)  # fmt: skip
COARSE, RULED = ("default",), DEFAULTS  # measured at coarse stride, too; measured with every rule of post-processing
ACROSS, COARSE_RULES = ", across classes", ", coarse"  # endings of the names of rules
SCORE_THRESHOLDS = (0.1, 0.3)
CLASS_IOUS = (1.0, 0.8, 0.65, 0.5, 0.3)  # 1: no NMS across classes
# Post-processing -> its name in `combine`, that of its threshold, and the thresholds tried on the validation images.
RULES = {
    "greedy": ("merge", "match_threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "voting": ("vote", "nms_iou_threshold", (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)),
    "NMS": ("nms", "nms_iou_threshold", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
}
MAX_CANDIDATES = 20_000  # of an image; only a detector that has not learned has more
TIMED = 8  # images, with all threads
MULTIBOX_THRESHOLDS, MULTIBOX_BOXES = (0.3, 0.4, 0.5, 0.6), 50  # of NMS; boxes of an image that are classified


@dataclass(frozen=True)
class Rule:
    """Post-processing with its thresholds: from the candidates of an image to its objects."""

    name: str
    threshold: float
    score_threshold: float
    class_iou: float = 1.0
    stride: str = "fine"

    def apply(self, raw: Candidates, of_scales: list) -> Detections:
        kept = raw[raw.scores >= self.score_threshold]
        postprocess, threshold, _ = RULES[self.name]
        options = {threshold: self.threshold, "class_iou_threshold": self.class_iou}
        return combine(kept, of_scales, postprocess=postprocess, **options)


@dataclass(frozen=True)
class Collected:
    """Candidates of one image of (height, width) as arrays, by stride; and the detections of `detect`, by stride."""

    size: tuple[int, int]
    candidates: dict[str, tuple[np.ndarray, ...]]
    detected: dict[str, Result]


_loaded: dict = {}  # of a worker process


def _start(weights: Path, classifier: Path | None = None) -> None:
    torch.set_num_threads(1)
    if classifier:
        _loaded["multibox"] = load_multibox(weights), load(classifier)
    else:
        _loaded["detector"] = load(weights), load_regressor(weights)


def collect(sample: Sample, strides: Sequence[str], with_candidates: bool, with_detections: bool) -> Collected:
    net, regressor = _loaded["detector"]
    image, raw, detected = sample.read(), {}, {}
    size = (image.shape[1], image.shape[2])
    for stride in strides:
        if with_detections:
            detected[stride] = Result.of(detect(net, regressor, image, stride=stride, min_score=0.0))
        if not with_candidates:
            continue
        own = grids(net, size, DenseConfig(stride=stride))
        values = collect_candidates(
            net, regressor, image, own, MEMORY_LIMIT,
            score_threshold=min(SCORE_THRESHOLDS), max_candidates=MAX_CANDIDATES,
        )  # fmt: skip
        raw[stride] = tuple(array.numpy() for array in vars(values).values())
    return Collected(size, raw, detected)


def post_process(image: Collected, rules: Sequence[Rule]) -> dict[Rule, Result]:
    results = {}
    for rule in rules:
        raw = Candidates(*map(torch.from_numpy, image.candidates[rule.stride]))
        of_scales = grids(_loaded["detector"][0], image.size, DenseConfig(stride=rule.stride))
        results[rule] = Result.of(rule.apply(raw, of_scales))
    return results


def propose_and_classify(sample: Sample, thresholds: Sequence[float]) -> dict[float, Result]:
    """DeepMultiBox's detections of one image by each NMS threshold."""
    model, net = _loaded["multibox"]
    image, results = sample.read(), {}
    for threshold in thresholds:
        boxes = propose(model, image, nms_iou_threshold=threshold)[:MULTIBOX_BOXES]
        probabilities = classify_boxes(net, image, boxes.boxes)
        results[threshold] = Result.of(with_classes(boxes, probabilities, score_threshold=0.0))
    return results


def by_key(of_images: Iterable[dict]) -> dict:
    """{key: results of all images} from a dict of each image."""
    images = list(of_images)
    return {key: [image[key] for image in images] for key in images[0]}


def figures(results: Sequence[Result], truths: Sequence[Boxes], names: list[str]) -> dict:
    """Average precision: VOC at an IoU of 0.5, its mean and that of each class; COCO's mean."""
    precisions = average_precisions([result.ranked() for result in results], truths, names)
    return {
        "map": precisions["map"]["voc"],
        "coco": precisions["map"]["coco"],
        "classes": {name: values["voc"] for name, values in precisions["ap"].items()},
        "boxes": sum(len(result.labels) for result in results) / len(results),
    }


def choose(
    run: Callable[[list[Rule]], dict[Rule, list[Result]]], truths: Sequence[Boxes], names: list[str]
) -> tuple[dict[str, Rule], list[dict]]:
    """The best of the rules by mean average precision, within classes and across; and all that were tried."""
    tried: dict[Rule, float] = {}

    def best(rules: list[Rule]) -> Rule:
        fresh = [rule for rule in rules if rule not in tried]
        tried.update({rule: voc(results, truths, len(names)) for rule, results in run(fresh).items()})
        return max(rules, key=lambda rule: tried[rule])

    chosen = {}
    for name, (*_, thresholds) in RULES.items():
        within = best([Rule(name, t, s) for t in thresholds for s in SCORE_THRESHOLDS])
        across = best([Rule(name, within.threshold, within.score_threshold, iou) for iou in CLASS_IOUS])
        chosen |= {name: within, name + ACROSS: across}
    return chosen, [{**asdict(rule), "map": value} for rule, value in tried.items()]


def measure_detector(name: str, weights: Path, data: dict[str, Annotated], workers: int) -> dict:
    """The figures of one detector; those of RULED with every rule of post-processing."""
    net = load(weights)
    names = net.class_names[:-1]
    data = {split: align_boxes(images, names) for split, images in data.items()}
    truths = {split: [ground_truth(sample) for sample in images.samples] for split, images in data.items()}
    strides, ruled = ("fine", "coarse") if name in COARSE else ("fine",), name in RULED
    with multiprocessing.get_context("spawn").Pool(workers, _start, [weights]) as pool:

        def collect_all(split: str, of_strides: Sequence[str], detections: bool) -> list[Collected]:
            options = {"strides": of_strides, "with_candidates": ruled, "with_detections": detections}
            work = pool.imap(partial(collect, **options), data[split].samples)
            return list(tqdm(work, f"{name}, {split}", len(data[split]), unit="image"))

        def run(images: list[Collected], rules: list[Rule]) -> dict[Rule, list[Result]]:
            work = pool.imap(partial(post_process, rules=rules), images)
            return by_key(tqdm(work, f"{name}, {len(rules)} rules", len(images), unit="image"))

        test, of_rules = collect_all("test", strides, True), {}
        if ruled:
            validation = collect_all("val", ("fine",), False)
            chosen, tried = choose(partial(run, validation), truths["val"], names)
            rules = {**chosen, **{key + COARSE_RULES: coarse(rule) for key, rule in chosen.items() if name in COARSE}}
            results = run(test, list(set(rules.values())))
            of_rules = {
                "validation": tried,
                "chosen": {key: asdict(rule) for key, rule in rules.items()},
                "rules": {key: figures(results[rule], truths["test"], names) for key, rule in rules.items()},
                "standard error of the difference to NMS": jackknife_error(
                    [image.detected["fine"] for image in test], results[rules["NMS"]], truths["test"], len(names)
                ),
            }
    detected = by_key(image.detected for image in test)
    return {
        "scale_factors": list(net.scale_factors or ()),
        "reach": net.reach,
        "thresholds": asdict(net.thresholds) if net.thresholds else None,
        "detect": {stride: figures(of_stride, truths["test"], names) for stride, of_stride in detected.items()},
        "standard error": jackknife_error(detected["fine"], None, truths["test"], len(names)),
        "seconds an image": seconds_an_image(weights, data["test"]),
        **of_rules,
    }


def coarse(rule: Rule) -> Rule:
    return Rule(**{**asdict(rule), "stride": "coarse"})


def seconds_an_image(weights: Path, data: Annotated) -> float:
    """The median time of `detect` with all of torch's threads."""
    net, regressor = load(weights), load_regressor(weights)
    images, seconds = [sample.read() for sample in data.samples[:TIMED]], []
    for image in (images[0], *images):  # the first run warms up
        start = time.perf_counter()
        detect(net, regressor, image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure_multibox(weights: Path, classifier: Path, data: dict[str, Annotated], workers: int) -> dict:
    """The figures of DeepMultiBox with the NMS threshold that is best on the validation images."""
    names = load(classifier).class_names[:-1]
    data = {split: align_boxes(images, names) for split, images in data.items()}
    truths = {split: [ground_truth(sample) for sample in images.samples] for split, images in data.items()}
    with multiprocessing.get_context("spawn").Pool(workers, _start, [weights, classifier]) as pool:

        def run(split: str, thresholds: Sequence[float]) -> dict[float, list[Result]]:
            work = pool.imap(partial(propose_and_classify, thresholds=thresholds), data[split].samples)
            return by_key(tqdm(work, f"multibox, {split}", len(data[split]), unit="image"))

        tried = {t: voc(r, truths["val"], len(names)) for t, r in run("val", MULTIBOX_THRESHOLDS).items()}
        threshold = max(tried, key=lambda t: tried[t])
        results = run("test", [threshold])[threshold]
    return {
        "validation": [{"threshold": t, "map": value} for t, value in tried.items()],
        "chosen": {"threshold": threshold, "boxes": MULTIBOX_BOXES},
        "detect": {"fine": figures(results, truths["test"], names)},
        "standard error": jackknife_error(results, None, truths["test"], len(names)),
    }


def training(folder: Path) -> dict:
    """The length of a training, as its log has it."""
    epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "epochs": len(epochs),
        "samples": sum(epoch["samples"] for epoch in epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs),
    }


def measure(name: str, runs: Path, data: dict[str, Annotated], workers: int) -> dict:
    """The figures of a training, from the file of an earlier run if the weights are those."""
    folder, file = runs / f"cells-{name}", measured_file(runs, name, data)
    weights = folder / "net.safetensors"
    state = {"weights": digest(weights), "images": {split: images.fingerprint for split, images in data.items()}}
    if file.exists():
        earlier = json.loads(file.read_text())
        if {key: earlier[key] for key in state} == state:
            print(f"{name}: measured already, see {file}", flush=True)
            return earlier
    trained = {"training": training(folder)}
    if name == "multibox":
        second = runs / "cells-box-classifier"
        trained["training of the classifier"] = training(second)
        values = measure_multibox(weights, second / "net.safetensors", data, workers)
    else:
        values = measure_detector(name, weights, data, workers)
    results = {**state, "machine": machine(), **trained, **values}
    write_json(file, results)
    print(f"{name}: mean average precision {100 * values['detect']['fine']['map']:.1f} %", flush=True)
    return results


def measured_file(runs: Path, name: str, data: dict[str, Annotated]) -> Path:
    """Where the figures of a training are kept, by the numbers of images."""
    return runs / f"cells-{name}" / f"measured-{'-'.join(str(len(images)) for images in data.values())}.json"


def is_complete(name: str, runs: Path) -> bool:
    folders = [f"cells-{name}", *(["cells-box-classifier"] if name == "multibox" else [])]
    return all((runs / folder / "complete").exists() for folder in folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NETS)} (default: all complete)")
    parser.add_argument("--data", type=Path, default=os.environ.get("BCCD"), help="the folder BCCD (default: $BCCD)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the trained nets")
    parser.add_argument("--max-images", type=int, help="of each split, for a quick run that writes no results")
    parser.add_argument("--num-workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give the folder BCCD of https://github.com/Shenggan/BCCD_Dataset: --data FOLDER, or BCCD=FOLDER")
    if unknown := set(args.names) - set(NETS):
        parser.error(f"no training is called {', '.join(sorted(unknown))}; there are {', '.join(NETS)}")
    data = {split: read_annotations(args.data, split=split) for split in ("val", "test")}
    data = {split: Annotated(d.class_names, d.samples[: args.max_images]) for split, d in data.items()}
    for name in args.names or NETS:
        if is_complete(name, args.runs):
            measure(name, args.runs, data, args.num_workers)
        else:
            print(f"{name}: not trained; BCCD=FOLDER bench/accuracy/cells.sh {name}", flush=True)
    measured = {name: measured_file(args.runs, name, data) for name in NETS}
    nets = {name: json.loads(file.read_text()) for name, file in measured.items() if file.exists()}
    counts = {split: {"images": len(d), "objects": sum(len(s.labels) for s in d.samples)} for split, d in data.items()}
    if nets and args.max_images is None:
        write_results(NAME, COMMAND, {"data": counts, "nets": nets})


if __name__ == "__main__":
    main()
