"""`overfeat classify`: what is in an image."""

import argparse
import json
from pathlib import Path

import torch

from overfeat.classification.predict import centre_crop, classify, ten_views
from overfeat.cli import common, features
from overfeat.data.images import read_image
from overfeat.errors import InputError
from overfeat.files import atomic_write


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "classify",
        help="what is in an image",
        description="Print the best classes of each image with their scores, from every place of six "
        "scales. Without --weights or -d the shipped net is used, which knows the ten digits.",
        epilog="example: overfeat classify -n 3 photo.jpg    a folder: overfeat classify photos/ -o results/",
    )
    common.add_image_options(parser)
    parser.add_argument(
        "-n",
        "--top",
        type=common.positive,
        default=5,
        metavar="N",
        help="classes to print (default: %(default)s)",
    )
    parser.add_argument(
        "--voting",
        choices=("dense", "ten", "centre"),
        default="dense",
        help="dense: all places of all scales; ten: corners and centre, mirrored; "
        "centre: one crop (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write IMAGE.json for every image; a second run continues",
    )
    common.add_net_options(parser)
    common.add_dense_options(parser)
    released = parser.add_argument_group("as in the 2013 program")
    released.add_argument("-f", "--features", action="store_true", help="the same as `overfeat features`")
    released.add_argument("-L", "--layer", type=int, metavar="N", help="output of a layer; implies -f")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.features or args.layer is not None:
        return features.run(features.defaults(args))
    net = common.load_net(args)
    images = common.find_images(args.images)
    output = None
    if args.out:
        settings = {
            "command": "classify",
            "voting": args.voting,
            "scales": args.scales,
            "top": args.top,
            "stride": args.stride,
            "flip": args.flip,
            **common.weights_note(args, net),
        }
        output = common.result_folder(args.out, images, settings, ".json")

    def work(path: Path) -> None:
        best = top_classes(vote(net, read_image(path, args.max_pixels), args), net.class_names, args.top)
        if output:
            with atomic_write(output(path)) as part:
                part.write_text(json.dumps({"image": str(path), "classes": best}, indent=1))
        if len(images) > 1:
            print(path)
        for entry in best:
            print(f"{entry['class']} {entry['score']:.6g}")

    return common.over_images(images, work, output)


def vote(net, image: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Scores [classes] of one image by the way of voting that the options choose."""
    if args.voting == "centre":
        scores = centre_crop(net, image)
    elif args.voting == "ten":
        scores = ten_views(net, image, args.flip)
    else:
        scores = classify(net, image, args.scales, args.flip, args.stride, args.memory << 20)
    if not scores.isfinite().all():
        raise InputError("the net gives NaN scores; its weights are broken")
    return scores[0]


def top_classes(scores: torch.Tensor, names: list[str], count: int) -> list[dict]:
    """The best classes with their scores, best first."""
    best = scores.topk(min(count, len(names)))
    return [
        {"class": names[i], "score": score}
        for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
