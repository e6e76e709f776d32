"""`overfeat convert`: released raw weights to safetensors and back.

Convert net_weight_0 or net_weight_1 of the 2013 release to a safetensors file with class names, or (a FROM that ends in
.safetensors) back to the raw layout, or to another safetensors file with other class names or half the size.

Examples:
    overfeat convert net_weight_1 accurate.safetensors --labels imagenet.txt
    overfeat convert net.safetensors small.safetensors --half
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.command import Commands, add_command
from overfeat.cli.state_dict import TORCH_SUFFIXES
from overfeat.errors import InputError, printable
from overfeat.models.architecture import RELEASED_FILES

if TYPE_CHECKING:
    from overfeat.models.overfeat import OverFeat

SAFETENSORS = ".safetensors"


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "convert", run, __doc__)
    help = "weights: .safetensors written by overfeat, or net_weight_0 or net_weight_1 of the release"
    parser.add_argument("source", type=Path, metavar="FROM", help=help)
    help = "the file to write: .safetensors, or any other name for the layout of the release"
    parser.add_argument("target", type=Path, metavar="TO", help=help)
    help = "the net of a raw file, if the file's name does not determine it"
    parser.add_argument("--net", choices=tuple(RELEASED_FILES), help=help)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="text file of class names, one a line")
    parser.add_argument("--half", action="store_true", help="store the weights as float16, which halves the file")


def run(args: argparse.Namespace) -> int:
    """Convert the file."""
    _check(args)
    import torch

    from overfeat.models.checkpoint import find_regressor, load_any, save, save_multibox
    from overfeat.models.multibox import MultiBox
    from overfeat.models.released import read_labels, save_released

    dtype = torch.float16 if args.half else None
    readable = args.source.suffix == SAFETENSORS
    net = load_any(args.source) if readable else _load_released(args.source, args.net)
    if isinstance(net, MultiBox):
        if args.labels or args.target.suffix != SAFETENSORS:
            raise InputError(f"{args.source}: a DeepMultiBox can only become .safetensors, and takes no --labels")
        save_multibox(net, args.target, dtype=dtype)
        print(f"{printable(args.target)}: DeepMultiBox, {net.num_boxes} boxes")
        return 0
    if args.labels:
        net.class_names = read_labels(args.labels, net.num_classes)
    regressor = find_regressor(args.source) if readable else None
    if args.target.suffix == SAFETENSORS:
        save(net, args.target, dtype=dtype, regressor=regressor)
    elif net.architecture.name in RELEASED_FILES:
        save_released(net, args.target)
    else:
        raise InputError(
            f"{args.target}: would be of the released layout, which is for {' and '.join(RELEASED_FILES)} nets alone; "
            "let the name end in .safetensors"
        )
    boxes = regressor and (", with boxes" if args.target.suffix == SAFETENSORS else ", without its boxes")
    print(f"{printable(args.target)}: {printable(net.architecture.name)} net, {net.num_classes} classes{boxes or ''}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises InputError for a source that is missing and a target that must not be written over."""
    same = args.target.resolve() == args.source.resolve()
    if same and args.target.suffix != SAFETENSORS:
        raise InputError(f"{args.target}: is the file to convert; name another")
    if args.target.exists() and args.target.suffix != SAFETENSORS:
        raise InputError(f"{args.target}: exists, and may be hard to come by; name another file")
    if not args.source.is_file():
        raise InputError(f"{args.source}: no such file")
    if args.half and same:
        raise InputError(f"{args.target}: is the file to convert, which --half would lose digits of; name another")
    if args.half and args.target.suffix != SAFETENSORS:
        raise InputError(f"--half: {args.target} would be of the released layout, which is float32")


def _load_released(path: Path, name: str | None) -> "OverFeat":
    """The net in a raw file: the one named, or the one that the file's name means."""
    from overfeat.models.released import load_released

    if path.suffix in TORCH_SUFFIXES:
        remedy = "run it with its module: overfeat classify --module FILE.py:NAME --weights"
        raise InputError(f"{path}: holds no net of overfeat's; {remedy} {path}")
    name = name or {file: name for name, file in RELEASED_FILES.items()}.get(path.name)
    if name is None:
        raise InputError(f"{path}: of which net? give --net {' or --net '.join(RELEASED_FILES)}")
    return load_released(path, name)
