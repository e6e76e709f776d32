"""`overfeat localize`: a class and a box for what is in an image."""

import argparse
import json
import math
from pathlib import Path

from overfeat.cli import common
from overfeat.data.images import read_image
from overfeat.dense.candidates import SHARE, THRESHOLD, TOP, candidates
from overfeat.dense.detections import guesses, merge
from overfeat.files import atomic_write
from overfeat.models.checkpoint import load_regressor
from overfeat.ops import AVERAGES
from overfeat.ops.boxes import MATCHES
from overfeat.visualize import figure_class, localization


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "localize",
        help="what is in an image, and where",
        description="Print up to five guesses for each image, a class and its box with the accumulated confidence: "
        "the boxes predicted at every place of six scales, merged. The weights must hold a box regressor "
        "(`overfeat train regressor`).",
        epilog="example: overfeat localize photo.jpg --weights run/net.safetensors -o results/",
    )
    common.add_image_options(parser)
    parser.add_argument(
        "-n", "--top", type=common.positive, default=TOP, metavar="N",
        help="classes taken from every scale, and guesses (default: %(default)s)",
    )  # fmt: skip
    add_merge_options(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER",
        help="write IMAGE.json, and IMAGE.png with the boxes of each scale and the merged ones (needs the extra "
        "demo); a second run continues",
    )  # fmt: skip
    common.add_net_options(parser, released=False)
    common.add_dense_options(parser)
    parser.set_defaults(run=run)


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("merging")
    group.add_argument(
        "--threshold", type=number, default=THRESHOLD, metavar="T",
        help="boxes merge while the best match scores this or less (default: %(default)s, for the default match)",
    )  # fmt: skip
    group.add_argument(
        "--match", choices=MATCHES, default=MATCHES[0],
        help="score of two boxes: normalised, the distance of the centres over the mean diagonal, plus 1 - IoU; "
        "centres, that distance alone, where the IoU is 0.5 or more; sum, the paper's words read literally, pixels "
        "plus square pixels (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--share", type=fraction, default=SHARE, metavar="S",
        help="leave out the boxes of places that score less than this part of their class's best place in the "
        "image (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--average", choices=AVERAGES, default=AVERAGES[0], help="of two boxes (default: %(default)s)")


def _from_0(text: str, most: float, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not a number {words}")
    return value


def number(text: str) -> float:
    """An argparse type: a number from 0 up."""
    return _from_0(text, math.inf, "from 0 up")


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    return _from_0(text, 1.0, "from 0 to 1")


def run(args: argparse.Namespace) -> int:
    net = common.load_net(args)
    regressor = load_regressor(args.weights or common.SHIPPED_WEIGHTS).to(net.device)
    images = common.find_images(args.images)
    output = None
    if args.out:
        figure_class()
        names = ("scales", "top", "stride", "flip", "threshold", "match", "average", "share")
        settings = {name: getattr(args, name) for name in names}
        settings |= {"command": "localize", **common.weights_note(args, net)}
        output = common.result_folder(args.out, images, settings, ".json", [".png"])

    def work(path: Path) -> None:
        image = read_image(path, args.max_pixels)
        raw = candidates(
            net, regressor, image, args.scales, args.flip, args.stride, args.top, args.share, args.memory << 20
        )
        found = guesses(merge(raw, tuple(image.shape[1:]), args.threshold, args.match, args.average), args.top)
        entries = [
            {"class": net.class_names[label], "score": score, "count": count, "box": [round(x, 2) for x in box]}
            for label, score, count, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.counts.tolist(), found.boxes.tolist(), strict=True
            )
        ]
        if output:
            localization(image, raw, found, net.class_names, path.name, args.out / f"{path.name}.png")
            with atomic_write(output(path)) as part:
                part.write_text(json.dumps({"image": str(path), "guesses": entries}, indent=1))
        if len(images) > 1:
            print(path)
        for guess in entries:
            x1, y1, x2, y2 = guess["box"]
            print(f"{guess['class']} {guess['score']:.6g} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")

    return common.over_images(images, work, output)
