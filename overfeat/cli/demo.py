"""`overfeat demo`: name what photographs show, localize and detect digits, count blood cells, and draw the results.

First the shipped ImageNet net on real photographs: explained.png shows step by step what dense evaluation does, and a
picture for each photograph has its top classes, its best window and the winning class's score at every position of
every scale. (ImageNet has no class for a rocket.) Then the digit nets: two pictures for each image of one digit, the
second with the boxes before and after merging (the best box may have another class than the image), and one for each
image of several digits. Last the cells in micrographs of blood, beside those that people annotated, who left out some
at the border and in clumps.

Examples:
    overfeat demo
    overfeat demo -o pictures/
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.assets import ASSETS, SHIPPED_CELLS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.classify import top_classes
from overfeat.cli.command import Commands, add_command
from overfeat.cli.results import add_out

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.evaluate import ScoreMap
    from overfeat.models.net import Net

STRIDE = 16  # pixels between windows of the ImageNet net, so that the heat maps are smooth
EXPLAINED, FACTORS, OTHER_CLASS = "coffee.jpg", (0.85, 1.15, 1.6), "ladle"


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, __doc__)
    help = "where the pictures go (default: %(default)s)"
    add_out(parser, help, default=Path("out/demo"))


def run(args: argparse.Namespace) -> int:
    """Draw the pictures."""
    from overfeat.densify.squeezenet import squeezenet
    from overfeat.files import ensure_dir

    ensure_dir(args.out)
    net = squeezenet()
    _explain(net, args.out / "explained.png")
    _photographs(net, args.out)
    _single_objects(args.out)
    _multiple_objects(args.out)
    _cells(args.out)
    print(f"pictures in {args.out.resolve()}")
    return 0


def _explain(net: "Net", picture: Path) -> None:
    """Dense evaluation of one photograph, step by step."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.evaluate import score_maps
    from overfeat.dense.heat_maps import class_scores

    image = read_image(ASSETS / "photos" / EXPLAINED)
    maps = score_maps(net, image, scales=FACTORS, stride=STRIDE)
    windows = _count_windows(maps)
    shared = sum(sum(net.region_macs(m.grid.padded, STRIDE)[0].values()) for m in maps)
    cropped = windows * sum(net.region_macs(net.geometry.window, STRIDE)[0].values())
    cost = f"{windows:,} windows. Cropped one by one: {cropped / 1e9:.0f} billion multiplications. "
    cost += f"Here, with what windows share computed once: {shared / 1e9:.0f} billion, and the same scores."
    other = net.class_names.index(OTHER_CLASS)
    visualize.explanation(image, maps, class_scores(maps), other, net.class_names, cost, picture)
    print(f"how it works -> {picture}")


def _photographs(net: "Net", out: Path) -> None:
    """Classify the shipped photographs."""
    from overfeat import visualize
    from overfeat.data.images import read_image
    from overfeat.dense.evaluate import score_maps
    from overfeat.dense.heat_maps import class_scores

    paths = sorted((ASSETS / "photos").glob("*.[jp][pn]g"))
    print(f"{len(paths)} photographs, six scales, stride {STRIDE}, {net.geometry.name} of {net.num_classes} classes")
    for path in paths:
        image, picture = read_image(path), out / f"{path.stem}.png"
        maps = score_maps(net, image, stride=STRIDE)
        scores = class_scores(maps)
        visualize.classification(image, maps, scores, net.class_names, path.name, picture)
        print(f"{path.name}: {_format_top(scores, net)}; {_count_windows(maps)} windows -> {picture}")


def _single_objects(out: Path) -> None:
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
    images = sorted((ASSETS / "scenes").glob("*.png"))
    print(f"{len(images)} images of digits, six scales, {net.geometry.name} net of {net.num_classes} classes")
    for path in images:
        image = read_image(path)
        maps = score_maps(net, image)
        scores = class_scores(maps)
        picture, boxes = (out / f"{path.stem}{kind}.png" for kind in ("", "-boxes"))
        visualize.classification(image, maps, scores, net.class_names, path.name, picture)
        raw = candidates(net, regressor, image)
        merged = merge(raw, (image.shape[1], image.shape[2]), match_threshold=LocalizationConfig.match_threshold)
        predictions = best_per_class(merged)
        visualize.localization(image, raw, predictions, net.class_names, path.name, boxes)
        x1, y1, x2, y2 = (round(edge) for edge in predictions.boxes[0].tolist())
        name, count = net.class_names[predictions.labels[0]], int(predictions.counts[0])
        print(f"{path.name}: {_format_top(scores, net)}; {_count_windows(maps)} windows -> {picture}")
        print(f"  {name} at {x1} {y1} {x2} {y2}: {count} boxes, confidence {predictions.scores[0]:.1f} -> {boxes}")


def _multiple_objects(out: Path) -> None:
    """Detect in the images of several digits."""
    from overfeat import visualize
    from overfeat.data.readers.coco import read_coco
    from overfeat.detection.predict import detect
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = read_coco(ASSETS / "multi-object" / "test.json")
    print(f"{len(data)} images with none to eight digits, evaluated at {_factors(net)} times their size, fine stride")
    for sample in data.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}-objects.png"
        detections = detect(net, regressor, image)
        visualize.detections(image, detections, net.class_names, sample.path.name, picture)
        true = " ".join(sorted(data.class_names[label] for label in sample.labels)) or "none"
        detected = " ".join(sorted(net.class_names[label] for label in detections.labels)) or "none"
        print(f"{sample.path.name}: detected {detected}; true {true} -> {picture}")


def _cells(out: Path) -> None:
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
    print(f"{len(data)} micrographs of blood, evaluated at {_factors(net)} times their size")
    for sample in data.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}.png"
        detections, objects = detect(net, regressor, image), ground_truth(sample)
        visualize.comparison(image, detections, objects, names, sample.path.name, picture)
        detected, annotated = (_counts(boxes.labels, names) for boxes in (detections, objects))
        print(f"{sample.path.name}: detected {detected}; annotated {annotated} -> {picture}")


def _counts(labels: "Tensor", names: list[str]) -> str:
    return ", ".join(f"{names[i]} {count}" for i, count in enumerate(labels.bincount(minlength=len(names)).tolist()))


def _factors(net: "Net") -> str:
    return ", ".join(f"{factor:g}" for factor in net.scale_factors or ())


def _format_top(scores: "Tensor", net: "Net") -> str:
    return ", ".join(f"{entry['class']} ({entry['score']:.2f})" for entry in top_classes(scores, net.class_names, 3))


def _count_windows(maps: "list[ScoreMap]") -> int:
    return sum(m.grid.num_positions for m in maps)
