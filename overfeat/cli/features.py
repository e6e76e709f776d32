"""`overfeat features`: the output of a layer.

Write the output of one layer for each image, at the image's own size (enlarged to the net's window if smaller): an
array [channels, height, width]. Layers are numbered from 0 as in the 2013 program; the default is the last hidden fully
connected layer (19 in the fast, 22 in the accurate, 17 in the shipped small net).

Examples:
    overfeat features -L 19 photo.jpg
    overfeat features photos/ -o out/
    overfeat features --format text -d data -l photo.jpg > photo.features
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from overfeat.cli.command import Commands, add_command
from overfeat.cli.images import add_image_options, find_images, process_images, read_enlarged
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.results import add_out, result_folder
from overfeat.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors", "text": ".features"}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "features", run, __doc__)
    add_image_options(parser)
    parser.add_argument("-L", "--layer", type=int, metavar="N", help="number of the layer")
    parser.add_argument("-f", "--features", action="store_true", help="accepted, as in the 2013 program")
    help = "text is the 2013 program's format (default: %(default)s)"
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="npz", help=help)
    help = "a file for one image, a folder for several; a second run into a folder continues (default: IMAGE.npz or "
    add_out(parser, help + "IMAGE.safetensors here; text goes to standard output)", "FILE|FOLDER")
    add_net_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the features of the images."""
    import torch

    net = load_net(args)
    architecture = net.architecture
    number = architecture.feature_layer if args.layer is None else args.layer
    if not 0 <= number < len(architecture.layers):
        raise InputError(f"-L {number}: the {architecture.name} net has layers 0..{len(architecture.layers) - 1}")
    images = find_images(args.images)
    single = len(images) == 1 and not args.images[0].is_dir() and not (args.out and args.out.is_dir())
    if not single and not args.out and args.format != "text":
        raise InputError("the features of several images need a folder to go to: -o FOLDER")
    if args.out and any(args.out.resolve() == path.resolve() for path in images):
        raise InputError(f"-o {args.out}: is the image itself; name another file")
    output = None
    if args.out and not single:
        settings = {"command": "features", "layer": number, "format": args.format, **net_settings(args, net)}
        output = result_folder(args.out, images, settings, SUFFIXES[args.format])

    def process(path: Path) -> None:
        image = read_enlarged(net, path, args.max_pixels).to(net.device)
        with torch.no_grad():
            features = net.layer_output(image[None], number)[0].cpu().contiguous()
        if not args.out and args.format == "text":
            _write_text(features, sys.stdout)
            return
        target = output(path) if output else args.out or Path(path.name + SUFFIXES[args.format])
        _write(features, number, target, args.format)
        print(f"{target}: layer {number}, {' x '.join(map(str, features.shape))}")

    return process_images(images, process, output)


def _write(features: "Tensor", number: int, target: Path, file_format: str) -> None:
    """Write features [channels, height, width] to a file, atomically."""
    import numpy as np
    from safetensors.torch import save_file

    from overfeat.files import atomic_write

    with atomic_write(target) as part:
        if file_format == "npz":
            with open(part, "wb") as file:
                np.savez(file, features=features.numpy(), layer=number)
        elif file_format == "safetensors":
            save_file({"features": features}, part, {"layer": str(number)})
        else:
            with open(part, "w") as text:
                _write_text(features, text)


def _write_text(features: "Tensor", file: TextIO) -> None:
    """The 2013 program's text: "channels height width", a line end, then all values, spaced."""
    print(*features.shape, file=file)
    for channel in features:
        print(*(f"{value:.6g}" for value in channel.flatten().tolist()), sep=" ", end=" ", file=file)
    print(file=file)
