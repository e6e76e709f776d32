"""`overfeat train HEAD`, and its classifiers: train on a folder of images, alone or under torchrun."""

import argparse
from pathlib import Path

import torch

from overfeat.classification.data import fit_classes, read_data, relabel
from overfeat.classification.train import ClassifierTask
from overfeat.cli.train_boxes import add_detector, add_regressor
from overfeat.cli.train_multibox import add_box_classifier, add_multibox
from overfeat.cli.training import Help, add_loop, check_dropout, config_of, tell
from overfeat.data.image_folder import ImageFolder
from overfeat.data.images import MAX_PIXELS
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.overfeat import OverFeat, build
from overfeat.options import positive
from overfeat.training.sampler import derive_seed
from overfeat.training.trainer import train


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a classifier, a box regressor, a detector, DeepMultiBox",
        description="Train a head. A classifier's defaults are the paper's (section 3.1).",
    )
    heads = parser.add_subparsers(required=True, metavar="HEAD", dest="head")
    _add_classifier(heads)
    add_regressor(heads)
    add_detector(heads)
    add_multibox(heads)
    add_box_classifier(heads)


def _add_classifier(heads) -> None:
    parser = heads.add_parser(
        "classifier",
        help="a net, from images sorted into classes",
        description="Train a net on images sorted into one folder a class. On several GPUs or processes: "
        "torchrun --nproc_per_node N -m overfeat train classifier ...",
        epilog="example: overfeat train classifier --data photos --out run --net small",
        formatter_class=Help,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder of images for each class; or a folder that holds this as train, and perhaps validation or val",
    )
    data.add_argument("--validation", type=Path, metavar="DIR", help="images to judge every epoch by")
    data.add_argument(
        "--devkit",
        type=Path,
        metavar="DIR",
        help="the ILSVRC2012 development kit, for images laid out as there",
    )
    data.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    data.add_argument(
        "--resize",
        type=positive,
        nargs="+",
        metavar=("MIN", "MAX"),
        help="the shorter side before cropping, drawn between the two (default: 256; small net 54)",
    )
    data.add_argument("--crops", type=positive, default=5, metavar="N", help="random crops an image and epoch")
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="train on mirror images too")
    net = parser.add_argument_group("net")
    net.add_argument("--net", choices=tuple(ARCHITECTURES), help="which net (default: fast)")
    net.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="WEIGHTS",
        help="fine-tune this net (safetensors); its last layer is new where its classes are others",
    )
    net.add_argument("--dropout", type=float, default=0.5, metavar="P", help="on the hidden full layers")
    add_loop(parser)
    parser.set_defaults(run=_run_classifier)


def _run_classifier(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_dropout(args.dropout)
    resize = args.resize
    if resize and len(resize) > 2:
        raise InputError(f"--resize takes one size or two, not {len(resize)}")
    data, validation = read_data(args.data, args.validation, args.devkit)
    net, new = _net(args, data)
    data, validation = relabel([data, validation], net)
    net.dropout = args.dropout
    task = ClassifierTask(
        net,
        data,
        config,
        validation,
        resize=resize and (resize[0], resize[-1]),
        crops=args.crops,
        flip=args.flip,
        max_pixels=args.max_pixels,
    )
    layer = f"; fine-tuning {args.source}" if args.source else ""
    if args.source and new:
        layer += " with a new last layer, since its classes are others"
    tell(f"{net.architecture.name} net, {net.num_classes} classes, {len(data)} images{layer}")
    train(task, config, args.out, args.resume)
    return 0


def _net(args: argparse.Namespace, data: ImageFolder) -> tuple[OverFeat, bool]:
    """The net to train, and whether its last layer is not that of --from."""
    torch.manual_seed(derive_seed(args.seed))
    if args.source:
        net = checkpoint.load(args.source)
        if args.net not in (None, net.architecture.name):
            raise InputError(f"--from {args.source} is a {net.architecture.name} net; leave --net {args.net} out")
    else:
        net = build(args.net or "fast", len(data.class_names))
    return net, fit_classes(net, data)
