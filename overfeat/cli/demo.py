"""`overfeat demo`: pictures of what the shipped nets see in the shipped images, each with the truth beside it.

Nothing is downloaded. First comes overview.png, a photograph with its heat maps and boxes, and explained.png, which
shows step by step what dense evaluation does. Then cells in micrographs of blood, beside those that people annotated,
who left out some at the border and in clumps; photographs with their top classes, the best window and the winning
class's score at every position of every scale; images of one digit, with the boxes before and after merging (the best
box may have another class than the image); images of several digits.

Examples:
    overfeat demo
    overfeat demo -o pictures/
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.assets import ASSETS, SHIPPED_CELLS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.classify import top_classes
from overfeat.cli.command import Commands, add_command
from overfeat.cli.results import add_out

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.evaluate import ScoreMap
    from overfeat.densify.net import DensifiedNet
    from overfeat.models.net import Net

STRIDE = 16  # pixels between windows of the ImageNet net where one photograph is explained
PHOTO_STRIDE = 32  # and where all are classified
OVERVIEW, CELLS = "BloodImage_00385.jpg", ("platelet", "red cell", "white cell")  # in the order of the net's classes
EXPLAINED, FACTORS, OTHER_CLASS = "coffee.jpg", (0.85, 1.15, 1.6), "ladle"
PHOTOGRAPHS = {
    "camera.png": "a photographer with a camera on a tripod",
    "chelsea.png": "a cat",
    "coffee.jpg": "a cup of espresso",
    "rocket.jpg": "the launch of a rocket, for which ImageNet has no class",
}
ARROW = " -> "  # before the path of a picture
PICTURES = 2 + 3 + 4 + 8 + 6  # how it works; micrographs, photographs, images of one digit and of several
START = f"""{PICTURES} pictures of what the shipped nets see in the shipped images. Nothing is downloaded. On two cores
this takes a minute, and half a minute more the first time, while numba compiles. The pictures go to"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, __doc__)
    help = "where the pictures go (default: %(default)s)"
    add_out(parser, help, default=Path("out/demo"))


def run(args: argparse.Namespace) -> int:
    """Draw the pictures, with a line for each."""
    from tqdm import tqdm

    from overfeat.files import ensure_dir
    from overfeat.visualize import figure_class

    figure_class()  # a missing matplotlib is reported first
    ensure_dir(args.out)
    print(START, args.out.resolve(), flush=True)
    with tqdm(total=PICTURES, unit="picture", leave=False, disable=not sys.stderr.isatty()) as bar:
        for chapter in (overview, explanation, cells, _photographs, _single_digits, _several_digits):
            for line in chapter(args.out):
                tqdm.write(line)
                sys.stdout.flush()
                bar.update(line.count(ARROW))
    print(f"done; look at {args.out.resolve() / 'overview.png'} first")
    return 0


def overview(out: Path) -> Iterator[str]:
    """A photograph with its heat maps and boxes."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.evaluate import score_maps
    from overfeat.detection.predict import detect
    from overfeat.models.checkpoint import load, load_regressor

    yield "\nWhat it does: a photograph, heat maps of three classes, boxes; then step by step"
    net, regressor = load(SHIPPED_CELLS), load_regressor(SHIPPED_CELLS)
    image, picture = read_image(ASSETS / "cells" / OVERVIEW), out / "overview.png"
    maps, detections = score_maps(net, image), detect(net, regressor, image)
    visualize.overview(image, maps, detections, CELLS, picture)
    yield f"{OVERVIEW}{ARROW}{picture}"


def explanation(out: Path) -> Iterator[str]:
    """Dense evaluation of one photograph, step by step."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.evaluate import score_maps
    from overfeat.dense.heat_maps import class_scores

    net, picture = _imagenet_net(), out / "explained.png"
    image = read_image(ASSETS / "photos" / EXPLAINED)
    maps = score_maps(net, image, scales=FACTORS, stride=STRIDE)
    windows = _count_windows(maps)
    shared = sum(sum(net.region_macs(m.grid.padded, STRIDE)[0].values()) for m in maps)
    cropped = windows * sum(net.region_macs(net.geometry.window, STRIDE)[0].values())
    cost = f"{windows:,} windows. Cropped one by one: {cropped / 1e9:.0f} billion multiplications. "
    cost += f"Here, with what windows share computed once: {shared / 1e9:.0f} billion, and the same scores."
    other = net.class_names.index(OTHER_CLASS)
    visualize.explanation(image, maps, class_scores(maps), other, net.class_names, cost, picture)
    yield f"{EXPLAINED}{ARROW}{picture}"


def cells(out: Path) -> Iterator[str]:
    """Count the cells in micrographs of blood."""
    from overfeat import visualize
    from overfeat.data.annotated import align_boxes
    from overfeat.data.readers.voc import read_voc
    from overfeat.detection.predict import detect
    from overfeat.metrics.average_precision import ground_truth
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_CELLS), load_regressor(SHIPPED_CELLS)
    names = net.class_names[: net.num_foreground_classes]
    data = align_boxes(read_voc(ASSETS / "cells"), names)
    yield f"\nCells in {len(data)} micrographs of blood, evaluated at {_factors(net)} times their size"
    for sample in data.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}.png"
        detections, objects = detect(net, regressor, image), ground_truth(sample)
        visualize.comparison(image, detections, objects, names, sample.path.name, picture)
        annotated, detected = (_counts(boxes.labels, names) for boxes in (objects, detections))
        yield _line(sample.path, annotated, detected, picture)


def _photographs(out: Path) -> Iterator[str]:
    """Classify the shipped photographs."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.evaluate import score_maps
    from overfeat.dense.heat_maps import class_scores

    net = _imagenet_net()
    yield f"\n{len(PHOTOGRAPHS)} photographs, six scales, windows {PHOTO_STRIDE} px apart, {net.num_classes:,} classes"
    for name, truth in PHOTOGRAPHS.items():
        path = ASSETS / "photos" / name
        image, picture = read_image(path), out / f"{path.stem}.png"
        maps = score_maps(net, image, stride=PHOTO_STRIDE)
        scores = class_scores(maps)
        visualize.classification(image, maps, scores, net.class_names, name, picture)
        yield _line(path, truth, f"{_format_top(scores, net)}, of {_count_windows(maps):,} windows", picture)


def _single_digits(out: Path) -> Iterator[str]:
    """Classify and localize in the images of one digit."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.candidates import candidates
    from overfeat.dense.detections import best_per_class, merge
    from overfeat.dense.evaluate import score_maps
    from overfeat.dense.heat_maps import class_scores
    from overfeat.localization.config import LocalizationConfig
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_WEIGHTS), load_regressor(SHIPPED_WEIGHTS)
    digits = json.loads((ASSETS / "scenes" / "labels.json").read_text())
    yield f"\n{len(digits)} images of one digit, six scales: classified, and localized"
    for name, digit in digits.items():
        path = ASSETS / "scenes" / name
        image, picture = read_image(path), out / f"{path.stem}-boxes.png"
        top = _format_top(class_scores(score_maps(net, image)), net)
        raw = candidates(net, regressor, image)
        merged = merge(raw, (image.shape[1], image.shape[2]), match_threshold=LocalizationConfig.match_threshold)
        best = best_per_class(merged)
        visualize.localization(image, raw, best, net.class_names, name, picture)
        box = " ".join(f"{edge:.0f}" for edge in best.boxes[0].tolist())
        localized = f"{net.class_names[best.labels[0]]} at {box}, {int(best.counts[0])} boxes merged"
        yield _line(path, digit, f"{top}; {localized}", picture)


def _several_digits(out: Path) -> Iterator[str]:
    """Detect in the images of several digits."""
    from overfeat import visualize
    from overfeat.data.readers.coco import read_coco
    from overfeat.detection.predict import detect
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = read_coco(ASSETS / "multi-object" / "test.json")
    yield f"\n{len(data)} images of none to eight digits, evaluated at {_factors(net)} times their size"
    for sample in data.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}-objects.png"
        detections = detect(net, regressor, image)
        visualize.detections(image, detections, net.class_names, sample.path.name, picture)
        true = " ".join(sorted(data.class_names[label] for label in sample.labels)) or "none"
        detected = " ".join(sorted(net.class_names[label] for label in detections.labels)) or "none"
        yield _line(sample.path, true, detected, picture)


@cache
def _imagenet_net() -> "DensifiedNet":
    from overfeat.densify.squeezenet import squeezenet

    return squeezenet()


def _line(path: Path, truth: str, predicted: str, picture: Path) -> str:
    return f"{path.name}: true: {truth}; predicted: {predicted}{ARROW}{picture}"


def _counts(labels: "Tensor", names: Sequence[str]) -> str:
    return ", ".join(f"{names[i]} {count}" for i, count in enumerate(labels.bincount(minlength=len(names)).tolist()))


def _factors(net: "Net") -> str:
    return ", ".join(f"{factor:g}" for factor in net.scale_factors or ())


def _format_top(scores: "Tensor", net: "Net") -> str:
    return ", ".join(f"{entry['class']} {entry['score']:.2f}" for entry in top_classes(scores, net.class_names, 3))


def _count_windows(maps: "Sequence[ScoreMap]") -> int:
    return sum(m.grid.num_positions for m in maps)
