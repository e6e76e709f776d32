"""`overfeat demo`: the shipped scenes, classified over scales, with heat maps."""

import argparse
from pathlib import Path

from overfeat.classify import classify
from overfeat.cli import common
from overfeat.cli.classify import top_classes
from overfeat.data.images import list_images, read_image
from overfeat.dense import score_maps
from overfeat.draw import heat_maps
from overfeat.files import make_folder
from overfeat.weights import load

SCENES = common.ASSETS / "scenes"


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="classify the shipped scenes and draw where",
        description="Classify the shipped test scenes over six scales, print the best classes, and write one "
        "picture a scene: the winning class's score at every place of every scale.",
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
    net = load(common.SHIPPED_WEIGHTS)
    make_folder(args.out)
    scenes = list_images(SCENES)
    print(f"{len(scenes)} scenes, six scales, fine stride, {net.architecture.name} net of {net.classes} classes")
    for path in scenes:
        image = read_image(path)
        scores = classify(net, image)[0]
        best = top_classes(scores, net.class_names, 3)
        maps = score_maps(net, image)
        windows = sum(m.grid.shape[0] * m.grid.shape[1] for m in maps)
        found = ", ".join(f"{entry['class']} ({entry['score']:.2f})" for entry in best)
        picture = args.out / f"{path.stem}.png"
        heat_maps(image, maps, int(scores.argmax()), f"{path.name}: {found}", picture)
        print(f"{path.name}: {found}; {windows} windows -> {picture}")
    print(f"pictures in {args.out.resolve()}")
    return 0
