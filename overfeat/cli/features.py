"""`overfeat features`: the output of any layer, as the 2013 feature extractor gives it."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from overfeat.cli import common
from overfeat.errors import InputError
from overfeat.files import atomic_write

SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors", "text": ".features"}


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "features",
        help="the output of a layer",
        description="Write the output of one layer for each image, at the image's own size (enlarged to "
        "the net's window if smaller): an array [channels, height, width]. Layers are numbered from 0 as "
        "in the 2013 program; the default is the last hidden full layer (19 in the fast, 22 in the "
        "accurate, 17 in the shipped small net).",
        epilog="example: overfeat features -L 19 photo.jpg    a folder: overfeat features photos/ -o out/    "
        "as in 2013: overfeat features --format text -d data -l photo.jpg > photo.features",
    )
    common.add_image_options(parser)
    parser.add_argument("-L", "--layer", type=int, metavar="N", help="number of the layer")
    parser.add_argument("-f", "--features", action="store_true", help="accepted, as in the 2013 program")
    parser.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        default="npz",
        help="text is the 2013 program's format (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE|FOLDER",
        help="a file for one image, a folder for several, where a second run continues "
        "(default: IMAGE.npz or IMAGE.safetensors in this folder; text goes to the "
        "standard output)",
    )
    common.add_net_options(parser)
    parser.set_defaults(run=run)


def defaults(args: argparse.Namespace) -> argparse.Namespace:
    """The options of `overfeat classify -f` as this command's: text, as the 2013 program prints."""
    args.format = "text"
    return args


def run(args: argparse.Namespace) -> int:
    net = common.load_net(args)
    number = net.architecture.feature_layer if args.layer is None else args.layer
    if not 0 <= number < len(net.architecture.layers):
        raise InputError(
            f"-L {number}: the {net.architecture.name} net has layers 0..{len(net.architecture.layers) - 1}"
        )
    images = common.find_images(args.images)
    single = len(images) == 1 and not args.images[0].is_dir() and not (args.out and args.out.is_dir())
    if not single and not args.out and args.format != "text":
        raise InputError("the features of several images need a folder to go to: -o FOLDER")
    if args.out and any(args.out.resolve() == path.resolve() for path in images):
        raise InputError(f"-o {args.out}: is the image itself; name another file")
    output = None
    if args.out and not single:
        settings = {
            "command": "features",
            "layer": number,
            "format": args.format,
            **common.weights_note(args, net),
        }
        output = common.result_folder(args.out, images, settings, SUFFIXES[args.format])

    def work(path: Path) -> None:
        image = common.read_for(net, path, args.max_pixels).to(net.device)
        with torch.no_grad():
            features = net.layer_output(image[None], number)[0].cpu().contiguous()
        if output:
            target = output(path)
        elif args.out:
            target = args.out
        elif args.format == "text":
            write_text(features, sys.stdout)
            return
        else:
            target = Path(path.name + SUFFIXES[args.format])
        write(features, number, target, args.format)
        print(f"{target}: layer {number}, {' x '.join(map(str, features.shape))}")

    return common.over_images(images, work, output)


def write(features: torch.Tensor, number: int, target: Path, file_format: str) -> None:
    """Write [channels, height, width] features to a file, atomically."""
    with atomic_write(target) as part:
        if file_format == "npz":
            with open(part, "wb") as file:
                np.savez(file, features=features.numpy(), layer=number)
        elif file_format == "safetensors":
            save_file({"features": features}, part, {"layer": str(number)})
        else:
            with open(part, "w") as file:
                write_text(features, file)


def write_text(features: torch.Tensor, file) -> None:
    """The 2013 program's text: "channels height width", a line end, then all values, spaced."""
    print(*features.shape, file=file)
    for channel in features:
        print(*(f"{value:.6g}" for value in channel.flatten().tolist()), sep=" ", end=" ", file=file)
    print(file=file)
