"""DeepMultiBox on synthetic images, beside OverFeat's detection and localization: python -m bench.accuracy.multibox

Its paper's figure 1 (recall by number of boxes), table 1 (average precision), table 2 (detection@5 and
classification@5) and figure 5 (across data sets); matching and priors; unseen digits; time. NMS threshold and square
are the best of those tried on validation images. The nets come from bench/accuracy/regressors.sh and multibox.sh.
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
from overfeat.detection.predict import detect
from overfeat.files import atomic_write
from overfeat.localization.predict import localize
from overfeat.metrics.average_precision import Boxes
from overfeat.metrics.report import average_precisions
from overfeat.models.checkpoint import load, load_multibox, load_regressor
from overfeat.models.flops import stage_macs
from overfeat.multibox.config import ProposalConfig
from overfeat.multibox.evaluate import CLASSIFIED_BOXES, MAX_RANK, accuracy_at_5, class_agnostic, detection_rate
from overfeat.multibox.predict import SCORE_THRESHOLD, classify_boxes, propose, square_crops, with_classes
from overfeat.ops.boxes import SQUARES, nms
from overfeat.profiling.profile import evaluation_macs

COMMAND = "bench/accuracy/regressors.sh && bench/accuracy/multibox.sh && python -m bench.accuracy.multibox"
LONG = "long"
SHORT = {
    "prior": "prior matching",
    "prediction": "prediction matching",
    "prediction-30": "prediction matching, alpha 30",
    "no-priors": "no priors",
}
MODELS = (LONG, *SHORT, "single", "digits-0-4")  # all but the first: short trainings of equal length
MAX_DETECTIONS, NMS_IOU = ProposalConfig.max_detections, ProposalConfig.nms_iou_threshold
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
SETS = {"multi": 600, "single": 400, "digits-0-4": 200, "digits-5-9": 200}  # test images of each
JACKKNIFE_GROUPS = 10  # of images, left out in turn, for the standard errors
TIMED = 24  # images, each in turn by every method


@dataclass(frozen=True)
class Result:
    """Boxes of one image by descending score, as arrays: a tensor would need an open file between processes.

    probabilities: float32 [n, classes] of the first n boxes, of those that were classified.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 10), dtype=np.float32))

    @staticmethod
    def of(detections: Detections, probabilities: Tensor | None = None) -> "Result":
        kept = detections[:MAX_RANK]
        arrays = [values.numpy() for values in (kept.boxes, kept.labels, kept.scores)]
        return Result(*arrays) if probabilities is None else Result(*arrays, probabilities.numpy())

    def detections(self) -> Detections:
        boxes, labels, scores = map(torch.from_numpy, (self.boxes, self.labels, self.scores))
        return Detections.from_boxes(boxes, labels, scores)

    def classified(self, count: int, score_threshold: float = SCORE_THRESHOLD) -> Detections:
        probabilities = torch.from_numpy(self.probabilities[:count])
        return with_classes(self.detections()[:count], probabilities, score_threshold=score_threshold)


_loaded: dict = {}  # of a worker process


def weights_of(name: str) -> Path:
    return ROOT / f"runs/multibox{'' if name == LONG else f'-{name}'}/net.safetensors"


def _start(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    _loaded.update({name: load_multibox(weights_of(name)) for name in MODELS})
    _loaded["classifier"] = load(ROOT / "runs/box-classifier/net.safetensors")
    for name, run in (("detector", "detector"), ("localizer", "regressor-scr-iou")):
        path = ROOT / f"runs/{run}/net.safetensors"
        _loaded[name] = load(path), load_regressor(path)


def proposed(name: str, image: Tensor, crops: str) -> Detections:
    """All boxes of a model, before NMS."""
    return propose(_loaded[name], image, crops=crops, nms_iou_threshold=1.0)


def after_nms(detections: Detections, threshold: float) -> Detections:
    return detections[nms(detections.boxes, detections.scores, detections.labels, iou_threshold=threshold)]


def classified(detections: Detections, image: Tensor, square: str, count: int) -> Result:
    """Boxes, of which the first `count` are classified."""
    probabilities = classify_boxes(_loaded["classifier"], image, detections.boxes[:count], square=square)
    return Result.of(detections, probabilities)


def propose_validation(sample: Sample) -> dict[tuple, Result]:
    """Boxes of a validation image with every NMS threshold and square."""
    image = sample.read()
    proposals = proposed(LONG, image, "both")
    of_thresholds = {t: after_nms(proposals, t) for t in THRESHOLDS}
    return {(t, s): classified(kept, image, s, MAX_DETECTIONS) for t, kept in of_thresholds.items() for s in SQUARES}


def propose_test(sample: Sample, data: str, threshold: float, square: str) -> dict[str, Result]:
    """Boxes of a test image by every method that is compared on its data set."""
    image, results = sample.read(), {}
    names = {"multi": MODELS, "single": (LONG, "prior", "single")}.get(data, ("prior", "digits-0-4"))
    second = {"multi": (LONG,), "single": (LONG, "single")}.get(data, ())
    for name in names:
        for crops in ("centre", "both"):
            proposals = proposed(name, image, crops)
            results[f"{name}, {crops}"] = Result.of(after_nms(proposals, NMS_IOU))
            if name in second:
                tuned, as_in_paper = after_nms(proposals, threshold), after_nms(proposals, NMS_IOU)
                key = f"{name}, {crops}, classified"
                results[key] = classified(tuned, image, square, max(CLASSIFIED_BOXES))
                results[f"{key} as in the paper"] = classified(as_in_paper, image, SQUARES[0], max(CLASSIFIED_BOXES))
    if second:
        detector = partial(detect, min_score=0.0), "detector"
        predict, pair = detector if data == "multi" else (localize, "localizer")
        results["OverFeat"] = Result.of(predict(*_loaded[pair], image))
        boxes = torch.from_numpy(sample.boxes).float()
        probabilities = classify_boxes(_loaded["classifier"], image, boxes, square=square)
        scores = torch.ones(len(boxes))
        results["true boxes"] = Result(boxes.numpy(), sample.labels, scores.numpy(), probabilities.numpy())
    return results


def propose_all(data: Annotated, pool, propose_sample: Callable) -> tuple[dict[str, list[Result]], list[Boxes]]:
    """Boxes of all images by every method, and the ground truth."""
    of_images = list(tqdm(pool.imap(propose_sample, data.samples, chunksize=4), total=len(data), unit="image"))
    truths = [Boxes(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in data.samples]
    return {name: [image[name] for image in of_images] for name in of_images[0]}, truths


def recall_error(one: Sequence[Result], other: Sequence[Result] | None, truths: Sequence[Boxes]) -> float:
    """The standard error of the recall with ten boxes, or of the difference of two methods, by the jackknife."""
    values = []
    for group in range(JACKKNIFE_GROUPS):
        kept = [i for i in range(len(truths)) if i % JACKKNIFE_GROUPS != group]
        rates = [
            detection_rate([results[i].detections() for i in kept], [truths[i] for i in kept])[MAX_DETECTIONS - 1]
            for results in (one, other)
            if results
        ]
        values.append(rates[0] - sum(rates[1:]))
    return float(np.sqrt((JACKKNIFE_GROUPS - 1) * np.var(values)))


def mean_precisions(images: Sequence[Detections], truths: Sequence[Boxes], names: list[str]) -> dict:
    precisions = average_precisions([Boxes(d.boxes, d.labels, d.scores) for d in images], truths, names)
    return {"map": precisions["map"], "classes": {name: values["voc"] for name, values in precisions["ap"].items()}}


def top_5(results: Sequence[Result], truths: Sequence[Boxes]) -> dict[str, dict[str, float]]:
    """Table 2, by the number of boxes that are classified."""
    return {
        str(count): accuracy_at_5([result.classified(count, 0.0) for result in results], truths)
        for count in CLASSIFIED_BOXES
    }


def times(data: Annotated, threshold: float, square: str) -> dict:
    """Seconds per image of each method, in turns on the same images, and its multiplications."""
    _start(torch.get_num_threads())
    detector, regressor = _loaded["detector"]
    boxes, classifier = _loaded[LONG], _loaded["classifier"]

    def multibox(image: Tensor, crops: str) -> None:
        proposals = propose(boxes, image, crops=crops, nms_iou_threshold=threshold)[:MAX_DETECTIONS]
        with_classes(proposals, classify_boxes(classifier, image, proposals.boxes, square=square))

    methods = {
        "OverFeat": lambda image: detect(detector, regressor, image, min_score=0.0),
        "DeepMultiBox, both": partial(multibox, crops="both"),
        "DeepMultiBox, centre": partial(multibox, crops="centre"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    images = [sample.read() for sample in data.samples[:TIMED]]
    for image in (images[0], *images):  # the first run warms up
        for name, run in methods.items():
            start = time.perf_counter()
            run(image)
            seconds[name].append(time.perf_counter() - start)
    evaluations: dict[str, list[int]] = {name: [] for name in methods}
    macs: dict[str, list[float]] = {name: [] for name in methods}
    side = boxes.image_size
    one_crop = stage_macs(boxes.net.architecture, side, side, boxes.net.num_classes, "coarse")
    window = classifier.architecture.window
    one_box = stage_macs(classifier.architecture, window, window, classifier.num_classes, "coarse")
    for image in images:
        size = tuple(image.shape[1:])
        by_region, positions = evaluation_macs(detector, grids(detector, size))
        evaluations["OverFeat"].append(positions)
        macs["OverFeat"].append(sum(by_region.values()))
        for crops in ("both", "centre"):
            name, count = f"DeepMultiBox, {crops}", len(square_crops(*size, crops))
            evaluations[name].append(count + MAX_DETECTIONS)
            of_crops = count * (one_crop["features"] + one_crop["first"] + one_crop["rest"])
            macs[name].append(of_crops + MAX_DETECTIONS * (one_box["features"] + one_box["first"] + one_box["rest"]))
    return {
        name: {
            "seconds": statistics.median(elapsed[1:]),
            "p20": float(np.quantile(elapsed[1:], 0.2)),
            "p80": float(np.quantile(elapsed[1:], 0.8)),
            "ratio": statistics.median(a / b for a, b in zip(seconds["OverFeat"][1:], elapsed[1:], strict=True)),
            "evaluations": statistics.mean(evaluations[name]),
            "gmac": statistics.mean(macs[name]) / 1e9,
        }
        for name, elapsed in seconds.items()
    }


def plot(results: dict, path: Path) -> None:
    """Recall by number of boxes (figure 1); precision across data sets and for unseen digits (figure 5)."""
    from matplotlib.figure import Figure

    shown = {
        "multi": (("prior, both", "trained on these"), ("single, both", "trained on one digit")),
        "single": (("single, both", "trained on these"), ("prior, both", "trained on multi-object images")),
        "digits-5-9": (("prior, both", "trained on all digits"), ("digits-0-4, both", "trained on 0 to 4")),
    }
    titles = {"multi": "multi-object images", "single": "images of one digit", "digits-5-9": "digits 5 to 9"}
    figure = Figure(figsize=(11, 8), layout="constrained")
    first, *others = figure.subplots(2, 2).ravel()
    lines = [(f"{LONG}, both", "long training, 10 crops"), (f"{LONG}, centre", "long training, 1 crop")]
    lines += [(f"{name}, both", f"{text}, 10 crops") for name, text in SHORT.items()] + [("OverFeat", "OverFeat")]
    for name, text in lines:
        values = results["recall"]["multi"][name]
        first.plot(range(1, len(values) + 1), values, label=text, linewidth=1.2)
    first.set(title="multi-object images", xlabel="boxes per image", ylabel="recall", xscale="log", xlim=(1, 100))
    for axis, (data, names) in zip(others, shown.items(), strict=True):
        more = (("OverFeat", "OverFeat"),) if data != "digits-5-9" else ()
        for name, label in (*names, *more):
            curve = results["class-agnostic"][data][name]
            axis.plot(curve["recall"], curve["precision"], label=f"{label}: {100 * curve['ap']:.1f} %", linewidth=1.2)
        axis.set(title=titles[data], xlabel="recall", xlim=(0, 1), ylabel="class-agnostic precision")
    for axis in (first, *others):
        axis.set_ylim(0, 1.01)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right" if axis is first else "lower left")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the data sets")
    parser.add_argument("--validation-images", type=int, default=200)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the test images, for a quick run")
    parser.add_argument("--num-workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    names = load(ROOT / "runs/box-classifier/net.safetensors").class_names[:-1]

    def images(data: str, split: str, count: int) -> Annotated:
        samples = align_boxes(read_coco(args.runs / data / f"{split}.json"), names)
        return Annotated(samples.class_names, samples.samples[:count])

    test = {
        data: images(data, "test", max(JACKKNIFE_GROUPS, round(args.fraction * count))) for data, count in SETS.items()
    }
    validation = images("multi", "validation", args.validation_images)
    with multiprocessing.get_context("spawn").Pool(args.num_workers, _start) as pool:
        methods, truths = propose_all(validation, pool, propose_validation)
        maps = {}
        for key, results in methods.items():
            maps[key] = mean_precisions([result.classified(MAX_DETECTIONS) for result in results], truths, names)[
                "map"
            ]["voc"]
            print(f"threshold {key[0]}, {key[1]} square: {100 * maps[key]:.2f}", flush=True)
        threshold, square = max(maps, key=maps.get)
        of_sets = {
            name: propose_all(data, pool, partial(propose_test, data=name, threshold=threshold, square=square))
            for name, data in test.items()
        }
    results = {
        "images": {name: len(data) for name, data in test.items()},
        "objects": {name: sum(len(sample.labels) for sample in data.samples) for name, data in test.items()},
        "validation": {"images": len(validation), "map": [[*key, value] for key, value in maps.items()]},
        "chosen": {"threshold": threshold, "square": square},
        **summarize(of_sets, names),
        "time": times(test["multi"], threshold, square),
    }
    for name, values in results["recall"]["multi"].items():
        print(f"{name:30} recall {100 * values[MAX_DETECTIONS - 1]:6.2f} % with {MAX_DETECTIONS} boxes", flush=True)
    write_results("accuracy-multibox", COMMAND, results)
    plot(results, RESULTS / "multibox.png")


def summarize(of_sets: dict[str, tuple[dict[str, list[Result]], list[Boxes]]], names: list[str]) -> dict:
    """Recall with its standard errors, class-agnostic and average precision, and table 2, of the test images."""
    (multi, truths), (single, single_truths) = of_sets["multi"], of_sets["single"]
    unseen, unseen_truths = of_sets["digits-5-9"]
    unclassified = {
        data: {
            name: [result.detections() for result in results]
            for name, results in methods.items()
            if "classified" not in name and name != "true boxes"
        }
        for data, (methods, _) in of_sets.items()
    }

    def of_all(measure: Callable) -> dict:
        return {
            data: {name: measure(detections, of_sets[data][1]) for name, detections in methods.items()}
            for data, methods in unclassified.items()
        }

    precisions = {
        f"{name}, {count}": mean_precisions([result.classified(count) for result in results], truths, names)
        for name, results in multi.items()
        if "classified" in name
        for count in CLASSIFIED_BOXES
    }
    precisions["OverFeat"] = mean_precisions(unclassified["multi"]["OverFeat"], truths, names)
    of_truth = [result.classified(len(result.boxes)) for result in multi["true boxes"]]
    precisions["true boxes"] = mean_precisions(of_truth, truths, names)
    windows = {
        name: top_5(results, single_truths)
        for name, results in single.items()
        if "classified" in name or name == "true boxes"
    }
    return {
        "recall": of_all(detection_rate),
        "standard errors": {
            "long, both": recall_error(multi[f"{LONG}, both"], None, truths),
            **{
                f"prior - {name}, {crops}": recall_error(multi[f"prior, {crops}"], multi[f"{name}, {crops}"], truths)
                for name in ("prediction", "no-priors")
                for crops in ("centre", "both")
            },
            "digits-5-9: prior - digits-0-4": recall_error(
                unseen["prior, both"], unseen["digits-0-4, both"], unseen_truths
            ),
        },
        "class-agnostic": of_all(class_agnostic),
        "precision": precisions,
        "windows": {**windows, "OverFeat": accuracy_at_5(unclassified["single"]["OverFeat"], single_truths)},
    }


if __name__ == "__main__":
    main()
