"""`overfeat convert`: between the released raw weight files and safetensors."""

import argparse
from pathlib import Path

import torch

from overfeat.errors import InputError
from overfeat.models.checkpoint import find_regressor, load, load_any, save, save_multibox
from overfeat.models.multibox import MultiBox
from overfeat.models.released import RELEASED_FILES, load_released, read_labels, save_released


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="released raw weights to safetensors and back",
        description="Convert net_weight_0 or net_weight_1 of the 2013 release to a safetensors file with "
        "class names, or (a FROM that ends in .safetensors) back to the raw layout, or to another safetensors file "
        "with other class names or half the size.",
        epilog="example: overfeat convert net_weight_1 accurate.safetensors --labels imagenet.txt",
    )
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    parser.add_argument("--net", choices=tuple(RELEASED_FILES), help="which net a raw file is of, if not by its name")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    parser.add_argument("--half", action="store_true", help="store the weights as float16, which halves the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.target.name in RELEASED_FILES.values() and args.target.exists():
        raise InputError(
            f"{args.target}: is there already, and released weights are hard to come by; name another file"
        )
    if args.target.resolve() == args.source.resolve() and args.target.suffix != ".safetensors":
        raise InputError(f"{args.target}: is the file to convert; name another")
    if not args.source.is_file():
        raise InputError(f"{args.source}: no such file")
    if args.half and args.target.resolve() == args.source.resolve():
        raise InputError(f"{args.target}: is the file to convert, which --half would lose digits of; name another")
    if args.half and args.target.suffix != ".safetensors":
        raise InputError(f"--half: {args.target} would be of the released layout, which is float32")
    regressor = None
    if args.source.suffix == ".safetensors" and isinstance(model := load_any(args.source), MultiBox):
        if args.labels or args.target.suffix != ".safetensors":
            raise InputError(f"{args.source}: boxes of DeepMultiBox go to .safetensors alone, and take no --labels")
        save_multibox(model, args.target, torch.float16 if args.half else None)
        print(f"{args.target}: DeepMultiBox, {model.boxes} boxes")
        return 0
    if args.source.suffix == ".safetensors":
        net, regressor = load(args.source), find_regressor(args.source)
    else:
        by_name = {file: name for name, file in RELEASED_FILES.items()}
        name = args.net or by_name.get(args.source.name)
        if name is None:
            raise InputError(f"{args.source}: of which net? say --net {' or --net '.join(RELEASED_FILES)}")
        net = load_released(args.source, name)
    if args.labels:
        net.class_names = read_labels(args.labels, net.num_classes)
    if args.target.suffix == ".safetensors":
        save(net, args.target, torch.float16 if args.half else None, regressor)
    elif net.architecture.name in RELEASED_FILES:
        save_released(net, args.target)
    else:
        raise InputError(
            f"{args.target}: would be of the released layout, which knows {' and '.join(RELEASED_FILES)} nets alone; "
            "let the name end in .safetensors"
        )
    boxes = regressor and ("with boxes" if args.target.suffix == ".safetensors" else "without its boxes")
    print(f"{args.target}: {net.architecture.name} net, {net.num_classes} classes{f', {boxes}' if boxes else ''}")
    return 0
