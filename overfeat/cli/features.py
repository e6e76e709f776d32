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
import math
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import note_unseen
from overfeat.cli.images import add_image_options, find_images, process_images, read_enlarged
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.options import add_options
from overfeat.cli.results import add_out, result_folder
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError, printable
from overfeat.files import check_writable

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
    help = "write over a FILE that holds something else than features, too"
    parser.add_argument("--overwrite", action="store_true", help=help)
    add_net_options(parser, module=ModuleOptions)
    add_options(parser, DenseConfig, skip=("scales", "flip"))


def add_layer(container: argparse._ActionsContainer, help: str) -> None:
    """-L, --layer."""
    container.add_argument("-L", "--layer", metavar="LAYER", help=help)


def run(args: argparse.Namespace) -> int:
    """Write the features of the images."""
    from overfeat.dense.layer_output import find_layer, layer_output

    net = load_net(args)
    name, layer = find_layer(net, args.layer, args.stride)
    images = find_images(args)
    single = len(images) == 1 and not args.images[0].is_dir() and not (args.out and args.out.is_dir())
    if not single and not args.out and args.format != "text":
        raise InputError("the features of several images need a folder to go to: -o FOLDER")
    if args.out and any(args.out.resolve() == path.resolve() for path in images):
        raise InputError(f"-o {args.out}: is the image itself; name another file")
    target = _targets(args, net, name, images, single)

    def process(path: Path, image: "Tensor") -> None:
        if net.geometry.any_stride:
            size = (image.shape[1], image.shape[2])
            note_unseen(path, net, size, DenseConfig(scales=(1.0,), flip=False, stride=args.stride))
        features = layer_output(net, layer, image, memory_limit=args.memory_limit)
        if target is None:
            _write_text(features, sys.stdout)
            return
        _write(features, name, target(path), args.format)
        print(f"{printable(target(path))}: layer {name}, {' x '.join(map(str, features.shape))}")

    read = partial(read_enlarged, net, max_pixels=args.max_pixels)
    return process_images(args, images, read, process, None if single else target)


def _targets(
    args: argparse.Namespace, net: "Net", layer: int | str, images: dict[Path, str], single: bool
) -> Callable[[Path], Path] | None:
    """The file of each image's features, checked before the work; None for standard output."""
    suffix = SUFFIXES[args.format]
    if not args.out and args.format == "text":
        return None
    if single:
        (name,) = images.values()
        target = args.out or Path(name + suffix)
        check_writable(target)
        overwrite = "overwrite" in args  # not of classify -f
        if target.exists() and not (overwrite and args.overwrite) and not _holds_features(target):
            remedy = "name another file" + ", or --overwrite it" * overwrite
            raise InputError(f"{target}: exists and holds no features; {remedy}")
        return lambda path: target
    settings = {"command": "features", "layer": layer, "format": args.format, **net_settings(args, net)}
    if net.geometry.any_stride:
        settings["stride"] = args.stride or net.default_stride
    return result_folder(args.out, images, settings, suffix)


def _holds_features(path: Path) -> bool:
    """Whether `_write` wrote a file, in any format."""
    import numpy as np
    from safetensors import safe_open

    with open(path, "rb") as file:
        start = file.read(1000)
        head = re.fullmatch(rb"(\d+) (\d+) (\d+)\n([-+.\dainf e]*)\n?", start)
        if head:  # a space follows every value
            values = head[4].count(b" ") + sum(part.count(b" ") for part in iter(lambda: file.read(1 << 20), b""))
            return values == math.prod(map(int, head.groups()[:3])) > 0
    with suppress(Exception):  # each has many errors for what is not its file
        with np.load(path) as arrays:
            return set(arrays) == {"features", "layer"}
    with suppress(Exception):
        with safe_open(path, "np") as tensors:
            return set(tensors.keys()) == {"features"} and set(tensors.metadata()) == {"layer"}
    return False


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
