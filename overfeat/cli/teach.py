"""`overfeat teach`: classes from a picture each, without training.

Add a class to a file, or one more picture of it; `overfeat classify --prototypes FILE` then looks for the classes of
the file at every position and scale. The features are those of SqueezeNet, which ships, or of a net of your own, which
both commands must name. Without a class the file's are listed.

Examples:
    overfeat teach known.safetensors cup desk.jpg --box 310 120 520 330
    overfeat teach known.safetensors cup shelf.jpg kitchen.jpg
    overfeat teach digits.safetensors seven seven.png --no-flip
    overfeat teach known.safetensors --remove cup
    overfeat classify photo.jpg --prototypes known.safetensors
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.command import Commands, add_command
from overfeat.cli.images import add_max_pixels, list_pictures
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net
from overfeat.cli.options import refuse_options
from overfeat.data.formats import IMAGE_FORMATS
from overfeat.errors import ArgumentError, InputError, printable
from overfeat.files import check_writable
from overfeat.options import fraction, positive

if TYPE_CHECKING:
    from overfeat.prototypes.predict import Prototypes


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "teach", run, __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the file of classes, which is made unless it exists")
    parser.add_argument("name", nargs="?", metavar="CLASS", help="the class that the pictures show")
    help = f"pictures of it, {IMAGE_FORMATS} files, and folders of them"
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE|FOLDER", help=help)
    help = "of the object in the one picture, in pixels (default: the middle, as large as a window can be)"
    parser.add_argument("--box", nargs=4, type=float, metavar=("X1", "Y1", "X2", "Y2"), help=help)
    help = "whether its mirror image shows the class too (default: it does)"
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help=help)
    parser.add_argument("--remove", metavar="CLASS", help="forget a class")
    help = "score from which a class is accepted, 0 to 1 (default: 0.4)"
    parser.add_argument("--threshold", type=fraction, metavar="X", help=help)
    help = "of a new file: layer whose outputs are the features (default: what the net's classifier is given)"
    parser.add_argument("--layer", metavar="LAYER", help=help)
    help = "of a new file: parts of a window, along a side, over which a layer's maps are averaged (default: 3)"
    parser.add_argument("--cells", type=positive, metavar="N", help=help)
    add_max_pixels(parser)
    add_net_options(parser, module=ModuleOptions)


def run(args: argparse.Namespace) -> int:
    """Change the file, and list its classes."""
    from overfeat.data.images import read_image

    images = _check(args)
    net = load_net(args)
    prototypes = load_prototypes(args.file, net) if args.file.exists() else None
    if prototypes is None:
        from overfeat.prototypes.predict import CELLS, Prototypes

        prototypes = Prototypes(net, layer=args.layer, cells=args.cells or CELLS)
    else:
        refuse_options(args, ("layer", "cells"), f"{args.file}, which exists")
    before = (prototypes.class_names[:], prototypes.counts[:], prototypes.threshold)
    if args.threshold is not None:
        prototypes.threshold = args.threshold
    if args.remove is not None:
        _remove(prototypes, args)
    for path in images:
        prototypes.add(args.name, read_image(path, args.max_pixels), box=args.box, flip=args.flip)
    if before != (prototypes.class_names, prototypes.counts, prototypes.threshold):
        prototypes.save(args.file)
    _print(args.file, prototypes)
    return 0


def load_prototypes(path: Path, net: object) -> "Prototypes":
    """The classes of a file, on a net of the command line."""
    from overfeat.prototypes.predict import Prototypes

    return Prototypes.load(path, net=net)  # type: ignore[arg-type]


def _check(args: argparse.Namespace) -> list[Path]:
    """The pictures. Raises InputError for arguments that do not go together."""
    refuse_options(args, ("labels",), "teach, whose classes are named one by one")
    images = list_pictures(args.images)
    if args.name is not None and not images:
        raise InputError(f"{args.name}: needs a picture: overfeat teach {args.file} {args.name} IMAGE")
    if args.box is not None and len(images) != 1:
        raise ArgumentError("box", f"must be of one picture, not of {len(images)}; teach one after the other")
    if args.name is None and args.remove is None and not args.file.exists():
        raise InputError(f"{args.file}: no such file; overfeat teach {args.file} CLASS IMAGE makes it")
    if not args.file.exists():
        check_writable(args.file)
    return images


def _remove(prototypes: "Prototypes", args: argparse.Namespace) -> None:
    if args.remove not in prototypes.class_names:
        names = ", ".join(prototypes.class_names) or "none"
        raise ArgumentError("remove", f"must be a class of {args.file} ({names}), not {args.remove!r}")
    prototypes.remove(args.remove)


def _print(path: Path, prototypes: "Prototypes") -> None:
    """The classes of a file, one a line."""
    count = len(prototypes.class_names)
    print(f"{printable(path)}: {count} class{'' if count == 1 else 'es'}, accepted from {prototypes.threshold:g}")
    for name, pictures in zip(prototypes.class_names, prototypes.counts, strict=True):
        print(f"  {printable(name)}: {pictures} picture{'' if pictures == 1 else 's'}")
