"""`overfeat features`: the output of a layer.

Write the output of one layer for each image, at the image's own size (enlarged to the net's window if smaller): an
array [channels, height, width]. The layers of SqueezeNet, which ships, and of a module of your own are named as its
submodules are, and the array holds a layer's output for every window; the default is the scores before the softmax.
Those of overfeat's own nets are numbered from 0 as in the 2013 program; the default is the last hidden fully connected
layer (19 in the fast, 22 in the accurate, 17 in the small net).

Examples:
    overfeat features photos/ -o out/
    overfeat features -L fc.0 photo.jpg --module net.py:make_net --weights state.pt --window 96 --stride 8
    overfeat features -L 19 -d data photo.jpg
    overfeat features --format text -d data -l photo.jpg > photo.features
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import note_unseen
from overfeat.cli.images import add_image_options, find_images, process_images, read_enlarged
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.options import add_options, refuse_options
from overfeat.cli.results import add_out, result_folder
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.models.net import Net

SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors", "text": ".features"}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "features", run, __doc__)
    add_image_options(parser)
    add_layer(parser, "the layer: its number, or the name of a submodule")
    parser.add_argument("-f", "--features", action="store_true", help="accepted, as in the 2013 program")
    help = "text is the 2013 program's format (default: %(default)s)"
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="npz", help=help)
    help = "a file for one image, a folder for several; a second run into a folder continues (default: IMAGE.npz or "
    add_out(parser, help + "IMAGE.safetensors here; text goes to standard output)", "FILE|FOLDER")
    add_net_options(parser, module=ModuleOptions)
    add_options(parser, DenseConfig, skip=("scales", "flip", "memory_limit"))


def add_layer(container: argparse._ActionsContainer, help: str) -> None:
    """-L, --layer."""
    container.add_argument("-L", "--layer", metavar="LAYER", help=help)


def run(args: argparse.Namespace) -> int:
    """Write the features of the images."""
    import torch

    from overfeat.models.net import as_batch

    net = load_net(args)
    layer, layer_output = _layer(net, args)
    images = find_images(args)
    single = len(images) == 1 and not args.images[0].is_dir() and not (args.out and args.out.is_dir())
    if not single and not args.out and args.format != "text":
        raise InputError("the features of several images need a folder to go to: -o FOLDER")
    if args.out and any(args.out.resolve() == path.resolve() for path in images):
        raise InputError(f"-o {args.out}: is the image itself; name another file")
    output = None
    if args.out and not single:
        settings = {"command": "features", "layer": layer, "format": args.format, **net_settings(args, net)}
        if net.geometry.any_stride:
            settings["stride"] = args.stride or net.default_stride
        output = result_folder(args.out, images, settings, SUFFIXES[args.format])

    def process(path: Path, image: "Tensor") -> None:
        image = as_batch(image, net.in_channels)
        if net.geometry.any_stride:
            size = (image.shape[2], image.shape[3])
            note_unseen(path, net, size, DenseConfig(scales=(1.0,), flip=False, stride=args.stride))
        with torch.no_grad():
            features = layer_output(image.to(net.device))[0].cpu().contiguous()
        if not args.out and args.format == "text":
            _write_text(features, sys.stdout)
            return
        target = output(path) if output else args.out or Path(images[path] + SUFFIXES[args.format])
        _write(features, layer, target, args.format)
        print(f"{printable(target)}: layer {layer}, {' x '.join(map(str, features.shape))}")

    return process_images(images, partial(read_enlarged, net, max_pixels=args.max_pixels), process, output)


def _layer(net: "Net", args: argparse.Namespace) -> "tuple[int | str, Callable[[Tensor], Tensor]]":
    """The layer's number or name, and a function from images to its output [N, channels, height, width]."""
    from overfeat.densify.net import DensifiedNet
    from overfeat.models.overfeat import OverFeat

    if isinstance(net, DensifiedNet):
        name = args.layer or net.program.outputs[net.outputs.scores].name
        net.node(name)  # an unknown name is an error before the first image
        return name, partial(net.layer_output, name=name, stride=args.stride or net.default_stride)
    assert isinstance(net, OverFeat)
    refuse_options(args, ("stride",), "layers of overfeat's own nets")
    architecture = net.architecture
    last, given = len(architecture.layers) - 1, args.layer or str(architecture.feature_layer)
    if not (given.isdecimal() and int(given) <= last):
        raise InputError(f"-L {given}: the {architecture.name} net has layers 0..{last}")
    return int(given), partial(net.layer_output, number=int(given))


def _write(features: "Tensor", layer: int | str, target: Path, file_format: str) -> None:
    """Write features [channels, height, width] to a file, atomically."""
    import numpy as np
    from safetensors.torch import save_file

    from overfeat.files import atomic_write

    with atomic_write(target) as part:
        if file_format == "npz":
            with open(part, "wb") as file:
                np.savez(file, features=features.numpy(), layer=layer)
        elif file_format == "safetensors":
            save_file({"features": features}, part, {"layer": str(layer)})
        else:
            with open(part, "w") as text:
                _write_text(features, text)


def _write_text(features: "Tensor", file: TextIO) -> None:
    """The 2013 program's text: "channels height width", a line end, then all values, spaced."""
    print(*features.shape, file=file)
    for channel in features:
        print(*(f"{value:.6g}" for value in channel.flatten().tolist()), sep=" ", end=" ", file=file)
    print(file=file)
