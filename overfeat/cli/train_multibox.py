"""`overfeat train multibox` and `overfeat train box-classifier`: the two nets of DeepMultiBox."""

import argparse
from pathlib import Path

import torch

from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.train_boxes import add_annotated, read_checked
from overfeat.cli.training import Help, add_loop, check_dropout, config_of, tell
from overfeat.data.annotated import Annotated
from overfeat.detection.train import detector_from
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, MULTIBOX_ARCHITECTURES
from overfeat.models.checkpoint import load_any
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, build
from overfeat.multibox.data import BUCKETS, KINDS, SquareDataset
from overfeat.multibox.matching import ALPHA, fit_priors
from overfeat.multibox.train import MATCHING, PRIOR_BOXES, BoxClassifierTask, MultiBoxTask, copy_matching_weights
from overfeat.ops.boxes import SQUARES
from overfeat.options import positive
from overfeat.training.sampler import derive_seed
from overfeat.training.trainer import train

SAMPLES = 4000  # in an epoch, at least


def add_multibox(heads) -> None:
    parser = heads.add_parser(
        "multibox",
        help="a net that gives K boxes of anything in one pass, from images with boxes",
        description="Train DeepMultiBox: K boxes and their confidences from one look at a square image, matched with "
        "the objects. What is in a box a second net tells (`overfeat train box-classifier`).",
        epilog="example: overfeat train multibox --data annotated-photos --out run",
        formatter_class=Help,
    )
    data = add_annotated(parser)
    data.add_argument(
        "--squares", type=positive, metavar="N",
        help="of each image and epoch, as many of each share that boxes cover: a multiple of 4 (default: so many that "
        f"an epoch has {SAMPLES} or more)",
    )  # fmt: skip
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="train on mirror images too")
    head = parser.add_argument_group("net")
    _add_net(head)
    head.add_argument("--fixed", action="store_true", help="leave the feature layers of --from as they are")
    head.add_argument(
        "--size", type=positive, metavar="PX",
        help="side of the square image (default: the net's window; small: "
        f"{MULTIBOX_ARCHITECTURES['small'].window})",
    )  # fmt: skip
    head.add_argument(
        "--hidden", type=positive, nargs="*", metavar="N",
        help="channels of the hidden layers, none if none are given (default: the net's own)",
    )  # fmt: skip
    head.add_argument("--predictions", type=positive, default=100, metavar="K", help="boxes that one look gives")
    head.add_argument("--per-class", action="store_true", help="K boxes for every class; otherwise K of anything")
    head.add_argument(
        "--priors", action=argparse.BooleanOptionalAction, default=True,
        help="boxes are learnt as what is to be added to the means of clusters of the training boxes",
    )  # fmt: skip
    head.add_argument(
        "--matching", choices=MATCHING, default=MATCHING[0],
        help="which box is to find which object: by the distance of its prior, or by its own and its confidence",
    )  # fmt: skip
    head.add_argument("--alpha", type=float, default=ALPHA, metavar="X", help="weight of the boxes' loss")
    head.add_argument("--dropout", type=float, default=0.2, metavar="P", help="on the hidden layers")
    add_loop(parser)
    parser.set_defaults(
        run=_run_multibox,
        optimizer="adagrad",
        lr=0.01,
        batch=32,
        epochs=12,
        lr_milestones="6,8,10,11",
        weight_decay=0.0,
    )


def add_box_classifier(heads) -> None:
    parser = heads.add_parser(
        "box-classifier",
        help="a net that tells what is in a box, or that nothing is",
        description="Train the second net of DeepMultiBox: a classifier with a background class, on squares around "
        "boxes that overlap an object by half, and around twice as many that hardly overlap any.",
        epilog="example: overfeat train box-classifier --data annotated-photos --out run",
        formatter_class=Help,
    )
    data = add_annotated(parser)
    data.add_argument(
        "--parts", type=positive, metavar="N",
        help="squares of each image and epoch, a third of them with an object: a multiple of 3 (default: so many that "
        f"an epoch has {SAMPLES} or more)",
    )  # fmt: skip
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="train on mirror images too")
    data.add_argument(
        "--square", choices=SQUARES, default=SQUARES[0],
        help="around a box: with its longer side (maximum) or its shorter one; to be the same in prediction",
    )  # fmt: skip
    head = parser.add_argument_group("net")
    _add_net(head)
    head.add_argument("--dropout", type=float, default=0.2, metavar="P", help="on the hidden layers")
    add_loop(parser)
    parser.set_defaults(
        run=_run_box_classifier, optimizer="adam", lr=0.001, batch=64, epochs=12, lr_milestones="6,8,10,11"
    )


def _add_net(head) -> None:
    head.add_argument("--net", choices=tuple(ARCHITECTURES), help="which net (default: small)")
    head.add_argument(
        "--from", dest="source", type=Path, metavar="WEIGHTS",
        help="start from the layers of this net (safetensors), as far as they are of the same form; 'none': all "
        "weights are new (default: the shipped net, if the net is small)",
    )  # fmt: skip


def _source(args: argparse.Namespace) -> tuple[OverFeat | MultiBox | None, Path | None]:
    """The net to start from, if there is one, and its file."""
    path = args.source or (SHIPPED_WEIGHTS if args.net in (None, "small") else None)
    if path is None or str(path) == "none":
        return None, None
    if args.source and args.net:
        raise InputError(f"--from {path} says which net it is; leave --net {args.net} out")
    return load_any(path), path


def _run_multibox(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_dropout(args.dropout)
    if args.matching == "prior" and not args.priors:
        raise InputError("--no-priors leaves nothing to match but the predictions: add --matching prediction")
    source, path = _source(args)
    if args.fixed and source is None:
        raise InputError("--fixed leaves the feature layers as they are, so they must come from a trained net")
    data, validation = read_checked(args)
    squares = args.squares or _multiple(len(BUCKETS), len(data))
    torch.manual_seed(derive_seed(args.seed))
    model, known = _model(args, data, source, squares)
    task = MultiBoxTask(model, data, config, validation, args.matching, args.alpha, squares, args.max_pixels)
    architecture, layers = model.net.architecture, len(model.net.conv_layers) + len(model.net.fc_layers)
    tell(
        f"data: {data.describe()}",
        f"net: {architecture.name}, squares of {model.image_size} px (--size), hidden layers of "
        f"{list(architecture.hidden)} (--hidden), {model.num_boxes} boxes"
        + (f" for each of {model.num_groups} classes" if args.per_class else ""),
        f"start: {known} of {layers} layers are those of {path} (--from)" if path else "start: new weights",
        f"squares: {squares} of each image and epoch (--squares)",
    )
    train(task, config, args.out, args.resume)
    return 0


def _model(args: argparse.Namespace, data: Annotated, source: OverFeat | MultiBox | None, squares: int):
    """The net as training starts, and how many of its layers are the source's."""
    earlier = source if isinstance(source, MultiBox) else None
    of_source = earlier.net if earlier else source
    architecture = of_source.architecture if of_source else MULTIBOX_ARCHITECTURES[args.net or "small"]
    if not earlier and ARCHITECTURES.get(architecture.name) == architecture:
        architecture = MULTIBOX_ARCHITECTURES[architecture.name]
    if args.size or args.hidden is not None:
        try:
            architecture = architecture.with_input_size(args.size or architecture.window, args.hidden)
        except ValueError as error:
            raise InputError(f"--size {args.size}: {error}; give a larger one") from error
    priors = None
    if args.priors and earlier and earlier.priors is not None and earlier.num_boxes == args.predictions:
        priors = earlier.priors
    elif args.priors:
        every = SquareDataset(data, architecture.window, squares, args.flip, args.seed).truths(PRIOR_BOXES)
        priors = fit_priors(every, args.predictions, args.seed)
    model = MultiBox(architecture, args.predictions, data.class_names if args.per_class else None, priors)
    model.flip = args.flip
    model.net.dropout = args.dropout
    if of_source is None:
        return model, 0
    known = copy_matching_weights(model.net.conv_layers, of_source.conv_layers)
    if earlier and (earlier.num_boxes, earlier.class_names) == (model.num_boxes, model.class_names):
        known += copy_matching_weights(model.net.fc_layers, of_source.fc_layers)
    model.net.conv_layers[: known if args.fixed else 0].requires_grad_(False)
    return model, known


def _run_box_classifier(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_dropout(args.dropout)
    source, path = _source(args)
    if isinstance(source, MultiBox):
        raise InputError(f"{path}: gives boxes and knows no classes; start from a classifier or a detector")
    data, validation = read_checked(args)
    parts = args.parts or _multiple(KINDS, len(data))
    torch.manual_seed(derive_seed(args.seed))
    net = source
    if net is None:
        net = build(args.net or "small", len(data.class_names))
    net = detector_from(net, data.class_names)
    net.context, net.scale_factors = None, None
    net.flip, net.dropout = args.flip, args.dropout
    task = BoxClassifierTask(net, data, config, validation, parts, args.square, args.max_pixels)
    tell(
        f"data: {data.describe()}",
        f"net: {net.architecture.name}, squares of {net.architecture.window} px, "
        + (f"starting from {path} (--from)" if path else "with new weights (--from)"),
        f"parts: {parts} of each image and epoch (--parts)",
    )
    train(task, config, args.out, args.resume)
    return 0


def _multiple(of: int, images: int) -> int:
    """How many of each image make SAMPLES, as a multiple of a number."""
    return of * -(-SAMPLES // (of * images))
