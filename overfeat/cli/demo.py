"""`overfeat demo`: classify, localize and detect in the shipped images, and draw the results.

Classify the shipped images of one digit at six scales and print the top classes and the best merged box, whose class
may be another; then detect all digits of images with none to eight. Two pictures for each image of one digit: the top
class's score at every position of every scale, and the boxes before and after merging. One for each image of several
digits: the detections.

Examples:
    overfeat demo
    overfeat demo -o pictures/
"""

import argparse
from pathlib import Path

from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.classify import top_classes
from overfeat.cli.command import Commands, add_command
from overfeat.cli.detect import MIN_SCORE
from overfeat.cli.results import add_out


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, __doc__)
    help = "where the pictures go (default: %(default)s)"
    add_out(parser, help, default=Path("out/demo"))


def run(args: argparse.Namespace) -> int:
    """Draw the pictures."""
    from overfeat.files import ensure_dir

    ensure_dir(args.out)
    _single_objects(args.out)
    _multiple_objects(args.out)
    print(f"pictures in {args.out.resolve()}")
    return 0


def _single_objects(out: Path) -> None:
    """Classify and localize in the images of one digit."""
    from overfeat import visualize
    from overfeat.classification.predict import classify
    from overfeat.data.images import list_images, read_image
    from overfeat.dense.candidates import candidates
    from overfeat.dense.detections import best_per_class, merge
    from overfeat.dense.evaluate import score_maps
    from overfeat.localization.config import LocalizationConfig
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_WEIGHTS), load_regressor(SHIPPED_WEIGHTS)
    images = list_images(ASSETS / "scenes")
    print(f"{len(images)} images, six scales, fine stride, {net.architecture.name} net of {net.num_classes} classes")
    for path in images:
        image = read_image(path)
        scores = classify(net, image)[0]
        maps = score_maps(net, image)
        windows = sum(m.grid.shape[0] * m.grid.shape[1] for m in maps)
        top = ", ".join(f"{e['class']} ({e['score']:.2f})" for e in top_classes(scores, net.class_names, 3))
        picture, boxes = (out / f"{path.stem}{kind}.png" for kind in ("", "-boxes"))
        visualize.heat_maps(image, maps, int(scores.argmax()), f"{path.name}: {top}", picture)
        raw = candidates(net, regressor, image)
        merged = merge(raw, (image.shape[1], image.shape[2]), match_threshold=LocalizationConfig.match_threshold)
        predictions = best_per_class(merged)
        visualize.localization(image, raw, predictions, net.class_names, path.name, boxes)
        x1, y1, x2, y2 = (round(edge) for edge in predictions.boxes[0].tolist())
        name, count = net.class_names[predictions.labels[0]], int(predictions.counts[0])
        print(f"{path.name}: {top}; {windows} windows -> {picture}")
        print(f"  {name} at {x1} {y1} {x2} {y2}: {count} boxes, confidence {predictions.scores[0]:.1f} -> {boxes}")


def _multiple_objects(out: Path) -> None:
    """Detect in the images of several digits."""
    from overfeat import visualize
    from overfeat.data.readers.coco import read_coco
    from overfeat.detection.predict import detect
    from overfeat.models.checkpoint import load, load_regressor

    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = read_coco(ASSETS / "multi-object" / "test.json")
    factors = ", ".join(f"{factor:g}" for factor in net.scale_factors or ())
    print(f"{len(data)} images with none to eight digits, evaluated at {factors} times their size, fine stride")
    for sample in data.samples:
        image, picture = sample.read(), out / f"{sample.path.stem}-objects.png"
        detections = detect(net, regressor, image)
        detections = detections[detections.scores >= MIN_SCORE]
        visualize.detections(image, detections, net.class_names, sample.path.name, picture)
        true = " ".join(sorted(data.class_names[label] for label in sample.labels)) or "none"
        detected = " ".join(sorted(net.class_names[label] for label in detections.labels)) or "none"
        print(f"{sample.path.name}: detected {detected}; true {true} -> {picture}")
