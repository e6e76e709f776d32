"""`overfeat demo`: the shipped scenes, classified, localized and searched for all their digits, with pictures."""

import argparse
from pathlib import Path

from overfeat import visualize
from overfeat.classification.predict import classify
from overfeat.cli import common
from overfeat.cli.classify import top_classes
from overfeat.cli.detect import SCORE
from overfeat.data.images import list_images, read_image
from overfeat.data.readers.coco import read_coco
from overfeat.dense.candidates import candidates
from overfeat.dense.detections import guesses, merge
from overfeat.dense.evaluate import score_maps
from overfeat.detection.predict import detect
from overfeat.files import ensure_dir
from overfeat.models.checkpoint import load, load_regressor

SCENES = common.ASSETS / "scenes"
MULTI_OBJECT = common.ASSETS / "multi-object" / "test.json"


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="classify, localize and detect in the shipped scenes, and draw where",
        description="Classify the shipped test scenes over six scales and print the best classes, and what "
        "the merged boxes say, which may be another class; then find all digits of scenes with none to eight. Two "
        "pictures a scene: the winning class's score at every place of every scale; the boxes predicted there, and "
        "what they are merged into. One of each scene with several digits: what was found.",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="FOLDER",
        help="where the pictures go (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    ensure_dir(args.out)
    _one_digit(args.out)
    _many_digits(args.out)
    print(f"pictures in {args.out.resolve()}")
    return 0


def _one_digit(out: Path) -> None:
    net, regressor = load(common.SHIPPED_WEIGHTS), load_regressor(common.SHIPPED_WEIGHTS)
    scenes = list_images(SCENES)
    print(f"{len(scenes)} scenes, six scales, fine stride, {net.architecture.name} net of {net.num_classes} classes")
    for path in scenes:
        image = read_image(path)
        scores = classify(net, image)[0]
        best = top_classes(scores, net.class_names, 3)
        maps = score_maps(net, image)
        windows = sum(m.grid.shape[0] * m.grid.shape[1] for m in maps)
        classes = ", ".join(f"{entry['class']} ({entry['score']:.2f})" for entry in best)
        picture, boxes = (out / f"{path.stem}{kind}.png" for kind in ("", "-boxes"))
        visualize.heat_maps(image, maps, int(scores.argmax()), f"{path.name}: {classes}", picture)
        raw = candidates(net, regressor, image)
        found = guesses(merge(raw, tuple(image.shape[1:])))
        visualize.localization(image, raw, found, net.class_names, path.name, boxes)
        x1, y1, x2, y2 = (round(edge) for edge in found.boxes[0].tolist())
        name, count = net.class_names[found.labels[0]], int(found.counts[0])
        print(f"{path.name}: {classes}; {windows} windows -> {picture}")
        print(f"  {name} at {x1} {y1} {x2} {y2}: {count} boxes, confidence {found.scores[0]:.1f} -> {boxes}")


def _many_digits(out: Path) -> None:
    net, regressor = load(common.SHIPPED_DETECTOR), load_regressor(common.SHIPPED_DETECTOR)
    multi_object = read_coco(MULTI_OBJECT)
    scale_factors = ", ".join(f"{zoom:g}" for zoom in net.scale_factors)
    print(f"{len(multi_object)} images of 0 to 8 digits, searched at {scale_factors} times their size, fine stride")
    for sample in multi_object.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}-objects.png"
        found = detect(net, regressor, image)
        found = found[found.scores >= SCORE]
        visualize.detections(image, found, net.class_names, sample.path.name, picture)
        there = " ".join(sorted(multi_object.class_names[label] for label in sample.labels)) or "none"
        seen = " ".join(sorted(net.class_names[label] for label in found.labels)) or "none"
        print(f"{sample.path.name}: found {seen}; there are {there} -> {picture}")
