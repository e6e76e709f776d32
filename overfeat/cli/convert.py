"""`overfeat convert`: between the released raw weight files and safetensors."""

import argparse
from pathlib import Path

from overfeat.files import InputError
from overfeat.weights import RELEASED_FILES, load, load_released, read_labels, save, save_released


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="released raw weights to safetensors and back",
        description="Convert net_weight_0 or net_weight_1 of the 2013 release to a safetensors file with "
        "class "
        "names, or (a FROM that ends in .safetensors) back to the raw layout. --labels alone "
        "gives a safetensors file other class names.",
        epilog="example: overfeat convert net_weight_1 accurate.safetensors --labels imagenet.txt",
    )
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    parser.add_argument("--net", choices=tuple(RELEASED_FILES), help="which net a raw file is of, if not by its name")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.target.name in RELEASED_FILES.values() and args.target.exists():
        raise InputError(
            f"{args.target}: is there already, and released weights are hard to come by; name another file"
        )
    if args.target.resolve() == args.source.resolve() and args.target.suffix != ".safetensors":
        raise InputError(f"{args.target}: is the file to convert; name another")
    if args.source.suffix == ".safetensors":
        net = load(args.source)
    else:
        by_name = {file: name for name, file in RELEASED_FILES.items()}
        name = args.net or by_name.get(args.source.name)
        if name is None:
            raise InputError(f"{args.source}: of which net? say --net {' or --net '.join(RELEASED_FILES)}")
        net = load_released(args.source, name)
    if args.labels:
        net.class_names = read_labels(args.labels, net.classes)
    if args.target.suffix == ".safetensors":
        save(net, args.target)
    else:
        save_released(net, args.target)
    print(f"{args.target}: {net.architecture.name} net, {net.classes} classes")
    return 0
