"""`overfeat detect`: any number of objects in images of any size."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from overfeat.cli import common
from overfeat.cli.localize import fraction, number
from overfeat.data.images import read_image
from overfeat.data.readers.coco import coco_ids
from overfeat.dense.detections import Detections
from overfeat.detection.predict import AVERAGE, LEAST, OVERLAP, THRESHOLDS, detect
from overfeat.errors import InputError
from overfeat.files import atomic_write
from overfeat.multibox.predict import CROPS, TOP, detect_multibox, names_of
from overfeat.multibox.predict import OVERLAP as OVERLAP_OF_BOXES
from overfeat.ops import AVERAGES
from overfeat.ops.boxes import MATCHES, SQUARES
from overfeat.visualize import detections, figure_class

METHODS = ("overfeat", "multibox")
DETECTION_OPTIONS = ("scales", "flip", "stride", "merging", "threshold", "match", "average", "overlap", "least")
MULTIBOX_OPTIONS = ("crops", "top", "threshold", "square")
COCO = "coco.json"
SCORE = 0.3


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "detect",
        help="all objects in images, and where",
        description="Print every object found: its class, its score, its box, its accumulated confidence and how many "
        "boxes were merged into it. The weights must be a detector's (`overfeat train detector`); those that ship find "
        "handwritten digits. With --method multibox a net gives a few boxes of anything (`overfeat train multibox`), "
        "and another one tells what is in them (`overfeat train box-classifier`).",
        epilog="example: overfeat detect photos/ --weights run/net.safetensors -o results/",
    )
    common.add_image_options(parser)
    parser.add_argument(
        "--score", type=fraction, default=SCORE, metavar="S",
        help="leave out objects that score less, everywhere (default: %(default)s; 0 for average precisions, where "
        "DeepMultiBox gives every class of its --top boxes)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0],
        help="windows everywhere, merged; or DeepMultiBox (default: %(default)s)",
    )  # fmt: skip
    add_detection_options(parser)
    add_multibox_options(parser)
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
    names = (*DETECTION_OPTIONS, *MULTIBOX_OPTIONS, "memory", "classifier")
    parser.set_defaults(run=run, defaults={name: parser.get_default(name) for name in names})


def add_multibox_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("DeepMultiBox")
    group.add_argument(
        "--classifier", type=Path, metavar="FILE",
        help="the net that tells what is in a box (safetensors); without it boxes of anything are given",
    )  # fmt: skip
    group.add_argument(
        "--crops", choices=CROPS, default=CROPS[0],
        help="look at the square in the middle of the image, or there and at 3 x 3 smaller ones (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--top",
        type=common.positive,
        default=TOP,
        metavar="N",
        help="the surest boxes alone (default: %(default)s)",
    )
    group.add_argument(
        "--square", choices=SQUARES, default=SQUARES[0],
        help="around a box, for the classifier: with its longer side (maximum) or its shorter (default: %(default)s)",
    )  # fmt: skip


def add_detection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("merging")
    group.add_argument(
        "--merge", dest="merging", choices=tuple(THRESHOLDS), default="greedy",
        help="boxes that match add up, or the best of those that overlap stays (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--threshold", type=number, metavar="T",
        help=f"greedy: boxes merge while the best match scores this or less (default: {THRESHOLDS['greedy']}); nms: "
        f"boxes with a larger IoU go (default: {THRESHOLDS['nms']}; DeepMultiBox: {OVERLAP_OF_BOXES})",
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
    images = common.find_images(args.images)
    of_others = set(MULTIBOX_OPTIONS) - {"threshold"} | {"classifier"}
    if args.method == "multibox":
        of_others = set(DETECTION_OPTIONS) - {"threshold"} | {"memory"}
    wrong = [name for name in sorted(of_others) if getattr(args, name) != args.defaults[name]]
    if wrong:
        flag = {"merging": "merge"}.get(wrong[0], wrong[0])
        raise InputError(f"--{flag} has no part in --method {args.method}; leave it out")
    find, names, settings = (_multibox if args.method == "multibox" else _overfeat)(args)
    output = None
    if args.coco_ids and not args.out:
        raise InputError(f"--coco-ids {args.coco_ids} is for the {COCO} that -o FOLDER writes; give that, too")
    if args.out:
        figure_class()
        coco_ids(args.coco_ids, [path.name for path in images], names)  # before the work
        settings = {"command": "detect", "score": args.score, **settings}
        output = common.result_folder(args.out, images, settings, ".json", [".png"], [COCO])

    def work(path: Path) -> None:
        image = read_image(path, args.max_pixels)
        found = find(image)
        found = found[found.scores >= args.score]
        objects = [
            {
                "class": names[found.labels[i]],
                "score": round(float(found.scores[i]), 4),
                "box": [round(edge, 2) for edge in found.boxes[i].tolist()],
                "confidence": round(float(found.sums[i]), 3),
                "count": int(found.counts[i]),
            }
            for i in range(len(found))
        ]
        if output:
            detections(image, found, names, path.name, args.out / f"{path.name}.png")
            with atomic_write(output(path)) as part:
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
        _write_coco(args.out, args.coco_ids, names)
    return status


def _overfeat(args: argparse.Namespace) -> tuple[Callable[[Tensor], Detections], Sequence[str], dict]:
    """What finds the objects of an image, the names of its labels, and what the results depend on."""
    net, regressor = common.load_detector(args)
    options = {name: getattr(args, name) for name in DETECTION_OPTIONS}
    find = partial(detect, net, regressor, memory=args.memory << 20, **options)
    return find, net.class_names[:-1], {**options, **common.weights_note(args, net)}


def _multibox(args: argparse.Namespace) -> tuple[Callable[[Tensor], Detections], Sequence[str], dict]:
    """The same of DeepMultiBox."""
    model, net = common.load_boxes(args)
    options = multibox_options(args)
    names = names_of(model, net)
    settings = {"method": args.method, **options, **common.multibox_note(args), "classes": names}
    return partial(detect_multibox, model, net, least=args.score, **options), names, settings


def multibox_options(args: argparse.Namespace) -> dict:
    """The arguments of `detect_multibox`."""
    options = {name: getattr(args, name) for name in MULTIBOX_OPTIONS}
    if args.threshold is not None and args.threshold > 1:
        raise InputError(f"--threshold {args.threshold:g}: for DeepMultiBox it is an IoU, 0 to 1")
    return options | {"threshold": OVERLAP_OF_BOXES if args.threshold is None else args.threshold}


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
    with atomic_write(folder / COCO) as part:
        part.write_text(json.dumps(results))
