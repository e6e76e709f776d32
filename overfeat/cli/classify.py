"""`overfeat classify`: the top classes of images.

Print the top classes of each image with their scores, from every position of six scales. The default net is the shipped
one, which knows the ten digits.

Examples:
    overfeat classify -n 3 photo.jpg
    overfeat classify photos/ --weights run/net.safetensors -o results/
    overfeat classify photo.jpg --scales 0.5,1.0
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli import features
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings
from overfeat.cli.images import add_image_options, find_images, process_images
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.options import refuse_options
from overfeat.cli.results import add_out, result_folder
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError
from overfeat.files import write_json
from overfeat.options import positive

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.models.overfeat import OverFeat

DENSE = tuple(field.name for field in fields(DenseConfig))
# The options of dense evaluation that have no effect with --voting.
UNUSED = {"dense": (), "ten": tuple(name for name in DENSE if name != "flip"), "centre": DENSE}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "classify", run, __doc__)
    add_image_options(parser)
    help = "classes to print (default: %(default)s)"
    parser.add_argument("-n", "--top-k", type=positive, default=5, metavar="N", help=help)
    help = "all positions of all scales (dense), corners and centre, mirrored (ten), or one crop (default: %(default)s)"
    parser.add_argument("--voting", choices=("dense", "ten", "centre"), default="dense", help=help)
    add_out(parser, "write IMAGE.json for every image; a second run continues")
    add_net_options(parser)
    add_dense_options(parser)
    released = parser.add_argument_group("as in the 2013 program")
    released.add_argument("-f", "--features", action="store_true", help="the same as `overfeat features --format text`")
    released.add_argument("-L", "--layer", type=int, metavar="N", help="output of a layer; implies -f")


def run(args: argparse.Namespace) -> int:
    """Classify the images."""
    if args.features or args.layer is not None:
        refuse_options(args, ("voting", *DENSE), "-f and -L")
        args.format = "text"  # as the 2013 program prints
        return features.run(args)
    refuse_options(args, UNUSED[args.voting], f"--voting {args.voting}")
    from overfeat.data.images import read_image

    net = load_net(args)
    images = find_images(args.images)
    output = None
    if args.out:
        settings = {name: getattr(args, name) for name in ("command", "voting", "top_k")}
        output = result_folder(args.out, images, settings | dense_settings(args) | net_settings(args, net), ".json")

    def process(path: Path) -> None:
        top = top_classes(_scores(net, read_image(path, args.max_pixels), args), net.class_names, args.top_k)
        if output:
            write_json(output(path), {"image": str(path), "classes": top})
        if len(images) > 1:
            print(path)
        for entry in top:
            print(f"{entry['class']} {entry['score']:.6g}")

    return process_images(images, process, output)


def _scores(net: "OverFeat", image: "Tensor", args: argparse.Namespace) -> "Tensor":
    """Scores [classes] of one image, voted by --voting."""
    from overfeat.classification.predict import centre_crop, classify, ten_views

    if args.voting == "centre":
        scores = centre_crop(net, image)
    elif args.voting == "ten":
        scores = ten_views(net, image, flip=args.flip)
    else:
        scores = classify(net, image, **dense_arguments(args))
    if not scores.isfinite().all():
        raise InputError("the net gives NaN scores; its weights are broken")
    return scores[0]


def top_classes(scores: "Tensor", names: list[str], count: int) -> list[dict]:
    """The classes with the largest of scores [classes], largest first: [{"class", "score"}]."""
    top = scores.topk(min(count, len(names)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [{"class": names[i], "score": score} for i, score in pairs]
