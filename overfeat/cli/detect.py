"""`overfeat detect`: any number of objects in images of any size."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from overfeat.boxes import MATCHES
from overfeat.cli import common
from overfeat.cli.localize import fraction, number
from overfeat.data.annotations import coco_ids
from overfeat.data.images import read_image
from overfeat.detect import AVERAGE, LEAST, OVERLAP, THRESHOLDS, detect
from overfeat.draw import detections, figure_class
from overfeat.files import InputError, replacing
from overfeat.ops import AVERAGES

DETECTION_OPTIONS = ("scales", "flip", "stride", "merging", "threshold", "match", "average", "overlap", "least")
COCO = "coco.json"
SCORE = 0.3


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "detect",
        help="all objects in images, and where",
        description="Print every object found: its class, its score, its box, its accumulated confidence and how many "
        "boxes were merged into it. The weights must be a detector's (`overfeat train detector`); those that ship find "
        "handwritten digits.",
        epilog="example: overfeat detect photos/ --weights run/net.safetensors -o results/",
    )
    common.add_image_options(parser)
    parser.add_argument(
        "--score", type=fraction, default=SCORE, metavar="S",
        help="leave out objects that score less, everywhere (default: %(default)s; 0 for average precisions)",
    )  # fmt: skip
    add_detection_options(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER",
        help=f"write IMAGE.json and IMAGE.png (needs the extra demo), and {COCO}, the results as COCO has them; a "
        "second run continues",
    )  # fmt: skip
    parser.add_argument(
        "--coco-ids", type=Path, metavar="FILE",
        help=f"the COCO annotations whose ids of images, found by file name, and of categories {COCO} is to have "
        "(default: both are numbered from 1, images by name)",
    )  # fmt: skip
    common.add_net_options(parser, released=False)
    common.add_dense_options(parser)
    parser.set_defaults(run=run)


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("merging")
    group.add_argument(
        "--merge", dest="merging", choices=tuple(THRESHOLDS), default="greedy",
        help="boxes that match add up, or the best of those that overlap stays (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--threshold", type=number, metavar="T",
        help=f"greedy: boxes merge while the best match scores this or less (default: {THRESHOLDS['greedy']}); nms: "
        f"boxes with a larger IoU go (default: {THRESHOLDS['nms']})",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=fraction, default=OVERLAP, metavar="T",
        help="greedy: of merged boxes of a class with a larger IoU the best stays (default: %(default)s; 1 keeps all)",
    )  # fmt: skip
    group.add_argument("--match", choices=MATCHES, default=MATCHES[0], help="see `overfeat localize`")
    group.add_argument("--average", choices=AVERAGES, default=AVERAGE, help="of two boxes (default: %(default)s)")
    group.add_argument(
        "--least", type=fraction, default=LEAST, metavar="S",
        help="leave out the boxes of places that score less (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    net, regressor = common.load_detector(args)
    images = common.find_images(args.images)
    options = {name: getattr(args, name) for name in DETECTION_OPTIONS}
    output = None
    if args.coco_ids and not args.out:
        raise InputError(f"--coco-ids {args.coco_ids} is for the {COCO} that -o FOLDER writes; give that, too")
    if args.out:
        figure_class()
        coco_ids(args.coco_ids, [path.name for path in images], net.class_names[:-1])  # before the work
        settings = {"command": "detect", "score": args.score, **options, **common.weights_note(args, net)}
        output = common.result_folder(args.out, images, settings, ".json", [".png"], [COCO])

    def work(path: Path) -> None:
        image = read_image(path, args.max_pixels)
        found = detect(net, regressor, image, memory=args.memory << 20, **options)
        found = found[found.scores >= args.score]
        objects = [
            {
                "class": net.class_names[found.labels[i]],
                "score": round(float(found.scores[i]), 4),
                "box": [round(edge, 2) for edge in found.boxes[i].tolist()],
                "confidence": round(float(found.sums[i]), 3),
                "count": int(found.counts[i]),
            }
            for i in range(len(found))
        ]
        if output:
            detections(image, found, net.class_names, path.name, args.out / f"{path.name}.png")
            with replacing(output(path)) as part:
                part.write_text(json.dumps({"image": str(path), "objects": objects}, indent=1))
        if len(images) > 1:
            print(path)
        if not objects:
            tqdm.write(f"{path}: nothing with a score of {args.score:g} or more", file=sys.stderr)
        for thing in objects:
            x1, y1, x2, y2 = thing["box"]
            print(f"{thing['class']} {thing['score']:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f} "
                  f"{thing['confidence']:.2f} {thing['count']}")  # fmt: skip

    status = common.over_images(images, work, output)
    if output:
        _write_coco(args.out, args.coco_ids, net.class_names[:-1])
    return status


def _write_coco(folder: Path, annotations: Path | None, class_names: Sequence[str]) -> None:
    """The results of all images in a folder as one list, as COCO's tools read it, with the names beside the ids."""
    files = {path.stem: path for path in folder.glob("*.json") if path.name not in (common.NOTE, COCO)}
    images, classes = coco_ids(annotations, sorted(files), class_names)
    results = []
    for name, path in sorted(files.items()):
        for thing in json.loads(path.read_text())["objects"]:
            x1, y1, x2, y2 = thing["box"]
            ids = {"image_id": images[name], "category_id": classes[thing["class"]]}
            box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            results.append({**ids, "bbox": box, "score": thing["score"], "file_name": name, "category": thing["class"]})
    with replacing(folder / COCO) as part:
        part.write_text(json.dumps(results))
