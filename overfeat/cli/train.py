"""`overfeat train HEAD`: train on a folder of images, alone or under torchrun."""

import argparse
import os
from pathlib import Path

import torch

from overfeat import weights
from overfeat.batches import mix
from overfeat.boxes import FORMS
from overfeat.classifier_training import ClassifierTask, fit_classes, read_data, relabel
from overfeat.cli.common import (
    SHIPPED_WEIGHTS,
    TRAINING,
    VALIDATION,
    add_box_options,
    adopt_names,
    positive,
    read_boxes,
    scale_list,
    splits_in,
    tell_problems,
)
from overfeat.data.annotations import Annotated, align_boxes, readable
from overfeat.data.folder import ImageFolder
from overfeat.data.images import MAX_PIXELS
from overfeat.detector_training import (
    NEGATIVES,
    TILES,
    DetectorTask,
    choices,
    detector_from,
    longer_sides,
    net_for,
    tiles_for,
)
from overfeat.files import InputError
from overfeat.heads import Regressor
from overfeat.nets import ARCHITECTURES, OverFeat, build
from overfeat.processes import choose_device
from overfeat.regressor_training import LOSSES, RegressorTask
from overfeat.training import DTYPES, OPTIMIZERS, TrainConfig, train
from overfeat.windows import MAX_ZOOM, zooms_for

DEFAULTS = TrainConfig()
BOX_TRAINING = {"optimizer": "adam", "lr": 0.001, "epochs": 12, "halve_at": "6,8,10,11"}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or isinstance(action, argparse._StoreTrueAction):
            return action.help
        return super()._get_help_string(action)


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a classifier, a box regressor or a detector",
        description="Train a head. A classifier's defaults are the paper's (section 3.1).",
    )
    heads = parser.add_subparsers(required=True, metavar="HEAD", dest="head")
    _add_classifier(heads)
    _add_regressor(heads)
    _add_detector(heads)


def _add_classifier(heads) -> None:
    parser = heads.add_parser(
        "classifier",
        help="a net, from images sorted into classes",
        description="Train a net on images sorted into one folder a class. On several GPUs or processes: "
        "torchrun --nproc_per_node N -m overfeat.cli.main train classifier ...",
        epilog="example: overfeat train classifier --data photos --out run --net small",
        formatter_class=_Help,
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
    net.add_argument(
        "--init-std",
        type=_std,
        metavar="STD|he",
        help="standard deviation of new weights, or He initialisation of all layers but the last "
        "(default: 0.01; small net he)",
    )
    net.add_argument("--dropout", type=float, default=0.5, metavar="P", help="on the hidden full layers")
    _add_loop(parser)
    parser.set_defaults(run=_run_classifier)


def _add_regressor(heads) -> None:
    parser = heads.add_parser(
        "regressor",
        help="boxes for a trained net, from images with boxes",
        description="Train a box regressor on the last maps of a trained net (section 4.2), at all places of all "
        "scales. The files written hold the net and the regressor.",
        epilog="example: overfeat train regressor --data scenes --from net.safetensors --out run",
        formatter_class=_Help,
    )
    _add_annotated(parser)
    head = parser.add_argument_group("net")
    head.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="WEIGHTS", help="the trained net (safetensors)"
    )
    _add_boxes(head)
    head.add_argument("--dropout", type=float, default=0.0, metavar="P", help="on the hidden layers")
    head.add_argument("--loss", choices=LOSSES, default="l2", help="squared difference, or 1 - IoU of the boxes")
    head.add_argument("--scales", type=scale_list, metavar="LIST", help="as `overfeat classify` (default: all six)")
    head.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="of the places that train")
    head.add_argument("--through-net", action="store_true", help="train the net's layers and classes as well")
    _add_loop(parser)
    parser.set_defaults(run=_run_regressor, batch=32, **BOX_TRAINING)


def _add_detector(heads) -> None:
    parser = heads.add_parser(
        "detector",
        help="a net that finds any number of objects, from images with boxes",
        description="Train a net with a background class and a box regressor (section 5), on parts of the images at "
        "sizes that are chosen from the boxes. Images may be of any size.",
        epilog="example: overfeat train detector --data annotated-photos --out run",
        formatter_class=_Help,
    )
    data = _add_annotated(parser)
    data.add_argument(
        "--tiles", type=positive, metavar="N",
        help=f"parts of each image and epoch (default: as many as make {TILES} an epoch)",
    )  # fmt: skip
    data.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="train on mirror images too")
    head = parser.add_argument_group("net")
    head.add_argument(
        "--net", choices=tuple(ARCHITECTURES),
        help="which net (default: small; on a GPU fast, where the boxes are as large as its window asks for)",
    )  # fmt: skip
    head.add_argument(
        "--from", dest="source", type=Path, metavar="WEIGHTS", help="start from this net (safetensors), such as a "
        "classifier, and from its boxes where they are of the same form; 'none': all weights are new (default: the "
        "shipped net, if the net is small)"
    )  # fmt: skip
    head.add_argument("--fixed", action="store_true", help="leave the feature layers of --from as they are")
    head.add_argument(
        "--context", action=argparse.BooleanOptionalAction, default=True,
        help="every place also sees its surroundings at half the resolution",
    )  # fmt: skip
    head.add_argument(
        "--scales", type=_zooms, metavar="LIST",
        help="sizes to look for objects at, as factors of the images' own, such as 0.5,0.7,1.0 (default: chosen from "
        "the boxes)",
    )  # fmt: skip
    head.add_argument(
        "--negatives", choices=NEGATIVES, default=NEGATIVES[0],
        help="windows of background to learn from: those taken for objects most (hard), random ones, or half of each",
    )  # fmt: skip
    head.add_argument("--negatives-count", type=positive, default=16, metavar="N", help="of these in each part")
    head.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="of the places that train")
    _add_boxes(head)
    head.add_argument("--dropout", type=float, default=0.2, metavar="P", help="on the hidden layers of the classes")
    _add_loop(parser)
    parser.set_defaults(run=_run_detector, batch=16, maps=None, **BOX_TRAINING)


def _add_annotated(parser: argparse.ArgumentParser):
    """The flags of what is trained on boxes, as a group."""
    data = parser.add_argument_group("data")
    add_box_options(data, TRAINING)
    data.add_argument(
        "--validation",
        type=Path,
        metavar="PATH",
        help="annotations to judge every epoch by (default: those of validation or val beside the training data, "
        "without --images and --devkit)",
    )
    data.add_argument("--validation-images", type=Path, metavar="DIR", help="for --validation what --images is")
    data.add_argument("--validation-boxes", type=Path, metavar="DIR", help="for --validation what --boxes is")
    data.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    return data


def _add_boxes(head) -> None:
    """The flags of a box regressor."""
    head.add_argument("--form", choices=tuple(FORMS), default="edges", help="how a box is written: its edges; or its "
                      "centre and the logarithms of its sides")  # fmt: skip
    head.add_argument("--per-class", action="store_true", help="a box for every class; otherwise one for all")
    head.add_argument(
        "--maps", choices=("pooled", "unpooled"), default="pooled",
        help="what boxes are seen on: the pooled maps, as in the paper, or those before, which tell better where (the "
        "default of detectors with the small net)",
    )  # fmt: skip
    head.add_argument("--hidden", type=positive, nargs=2, metavar="N", help="channels of the two hidden layers "
                      "(default: 4096 1024, less for smaller nets)")  # fmt: skip


def _read_annotated(args: argparse.Namespace) -> tuple[Annotated, Annotated | None]:
    """What to train on, and what to judge every epoch by."""
    data, validation = read_boxes(args, args.data, TRAINING, args.split), None
    beside = args.data if args.data.is_dir() else args.data.parent if args.data.stem in TRAINING else None
    if args.validation:
        more = args.validation_images, args.validation_boxes
        validation = read_boxes(args, args.validation, VALIDATION, None, *more)
    elif beside and not args.devkit and not args.images and set(VALIDATION) & set(splits_in(beside)):
        validation = read_boxes(args, beside, VALIDATION)
    return data, validation


def _run_detector(args: argparse.Namespace) -> int:
    config = _config(args)
    _check_dropout(args)
    data, validation = _read_annotated(args)
    if validation:
        validation = align_boxes(validation, data.class_names, "the training data")
    if "background" in data.class_names:  # said before all images are read
        detector_from(build("small", 1), data.class_names)
    data, validation = (found and readable(found, args.max_pixels, args.skip_bad) for found in (data, validation))
    for found in filter(None, (data, validation)):
        tell_problems(found, "images that cannot be read")
    torch.manual_seed(mix(args.seed))
    net, regressor, source = _detector_start(args, data)
    tiles = args.tiles or tiles_for(len(data))
    task = DetectorTask(
        net,
        regressor,
        data,
        config,
        validation,
        negatives=args.negatives,
        count=args.negatives_count,
        tiles=tiles,
        stride=args.stride,
        fixed=args.fixed,
        max_pixels=args.max_pixels,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        told = [name for name in ("net", "source", "scales", "tiles") if getattr(args, name)]
        print(*choices(data, net, source, tiles, told), sep="\n", flush=True)
    train(task, config, args.out, args.resume)
    return 0


def _detector_start(args: argparse.Namespace, data: Annotated) -> tuple[OverFeat, Regressor, Path | None]:
    """The net and the boxes that training starts from, and the file they are of."""
    source, cuda = args.source, choose_device(args.device).type == "cuda"
    if source is None and (args.net or net_for(longer_sides(data), cuda)) == "small":
        source = SHIPPED_WEIGHTS
    if source is not None and str(source) != "none":
        if args.source and args.net:
            raise InputError(f"--from {source} says which net it is; leave --net {args.net} out")
        net, known = weights.load(source), weights.find_regressor(source)
    else:
        if args.fixed:
            raise InputError("--fixed leaves the feature layers as they are, so they must come from a trained net")
        source, known = None, None
        net = build(args.net or net_for(longer_sides(data), cuda), len(data.class_names))
        net.reset(None if net.architecture.name == "small" else 0.01)
    same = net.class_names[: len(data.class_names)] == data.class_names
    net = detector_from(net, data.class_names)
    net.flip, net.dropout = args.flip, args.dropout
    net.zooms = args.scales or zooms_for(longer_sides(data), net.architecture.window)
    if args.context and net.context is None:
        net.add_context()
    elif not args.context:
        net.context = None
    classes = len(data.class_names) if args.per_class else None
    # Large windows have finer pooled maps, and unpooled ones would make most of the net's weights.
    pooled = args.maps == "pooled" if args.maps else net.architecture.name != "small"
    regressor = Regressor(net.architecture, classes, args.form, args.hidden, pooled)
    if known and known.to_json() == regressor.to_json() and (classes is None or same):
        regressor = known
    return net, regressor, source


def _check_dropout(args: argparse.Namespace) -> None:
    if not 0 <= args.dropout < 1:
        raise InputError(f"--dropout is at least 0 and less than 1, not {args.dropout}")


def _zooms(text: str) -> tuple[float, ...]:
    """An argparse type: "0.5,1.0" as (0.5, 1.0); 1 is refused, since elsewhere it is the first of six scales."""
    zooms = scale_list(text)
    if not all(isinstance(zoom, float) and zoom <= MAX_ZOOM for zoom in zooms):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of factors up to {MAX_ZOOM} such as 0.5,0.7,1.0")
    return tuple(sorted(set(zooms)))


def _run_regressor(args: argparse.Namespace) -> int:
    config = _config(args)
    _check_dropout(args)
    net = weights.load(args.source)
    data, validation = _read_annotated(args)
    if args.devkit:
        adopt_names(net, data.class_names)
    data, validation = (found and align_boxes(found, net.class_names) for found in (data, validation))
    torch.manual_seed(mix(args.seed))
    regressor = Regressor(
        net.architecture, net.object_classes if args.per_class else None, args.form, args.hidden, args.maps == "pooled"
    )
    regressor.dropout = args.dropout
    task = RegressorTask(
        net,
        regressor,
        data,
        config,
        validation,
        loss=args.loss,
        scales=args.scales,
        stride=args.stride,
        whole=args.through_net,
        max_pixels=args.max_pixels,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        boxes = sum(len(sample.labels) for sample in data.samples)
        print(f"{net.architecture.name} net, {len(data)} images with {boxes} boxes, {len(task.data)} with all scales")
    train(task, config, args.out, args.resume)
    return 0


def _add_loop(parser: argparse.ArgumentParser) -> None:
    """The flags that every head has: `TrainConfig`, --out and --resume."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where log, checkpoint and nets go")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in --out was interrupted; "
        "to the same weights on a CPU with as many processes as before",
    )
    run.add_argument("--epochs", type=int, default=DEFAULTS.epochs, metavar="N", help="passes over the samples")
    run.add_argument("--batch", type=int, default=DEFAULTS.batch, metavar="N", help="samples a step, on all GPUs")
    run.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=DEFAULTS.optimizer, help="what takes the steps")
    run.add_argument("--lr", type=float, default=DEFAULTS.lr, metavar="X", help="learning rate at the start")
    run.add_argument("--momentum", type=float, default=DEFAULTS.momentum, metavar="X", help="of SGD")
    run.add_argument(
        "--weight-decay", type=float, default=DEFAULTS.weight_decay, metavar="X", help="of weights and biases"
    )
    run.add_argument(
        "--halve-at",
        type=_epochs,
        default=",".join(map(str, DEFAULTS.halve_at)),
        metavar="N,N,...",
        help="halve the rate after these epochs; '' for never",
    )
    run.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N", help="of weights, order, crops, dropout")
    run.add_argument("--workers", type=int, default=DEFAULTS.workers, metavar="N", help="processes that read images")
    run.add_argument("--precision", choices=tuple(DTYPES), default=DEFAULTS.precision, help="of the passes")
    run.add_argument("--device", default=DEFAULTS.device, help="cpu, cuda, cuda:1; auto: a GPU where there is one")
    run.add_argument(
        "--checkpoint-steps",
        type=int,
        default=DEFAULTS.checkpoint_steps,
        metavar="N",
        help="steps between checkpoints within an epoch",
    )


def _config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(**{name: getattr(args, name) for name in TrainConfig.__dataclass_fields__})


def _run_classifier(args: argparse.Namespace) -> int:
    config = _config(args)
    _check_dropout(args)
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
    if int(os.environ.get("RANK", 0)) == 0:
        layer = f"; fine-tuning {args.source}" if args.source else ""
        if args.source and new:
            layer += " with a new last layer, since its classes are others"
        print(f"{net.architecture.name} net, {net.classes} classes, {len(data)} images{layer}", flush=True)
    train(task, config, args.out, args.resume)
    return 0


def _net(args: argparse.Namespace, data: ImageFolder) -> tuple[OverFeat, bool]:
    """The net to train, and whether its last layer is not that of --from."""
    torch.manual_seed(mix(args.seed))
    if args.source:
        net = weights.load(args.source)
        if args.net not in (None, net.architecture.name):
            raise InputError(f"--from {args.source} is a {net.architecture.name} net; leave --net {args.net} out")
    else:
        net = build(args.net or "fast", len(data.class_names))
    # The paper's 0.01 suits layers of thousands of inputs; through the small net nothing would come.
    std = args.init_std or ("he" if net.architecture.name == "small" else 0.01)
    std = None if std == "he" else std
    if not args.source:
        net.reset(std)
    # He initialisation is for layers before a ReLU; as a last layer it makes the first losses, and
    # their gradients, several times too large.
    return net, fit_classes(net, data, std or 0.01)


def _std(text: str) -> float | str:
    """An argparse type: a positive number or "he"."""
    if text.lower() == "he":
        return "he"
    try:
        std = float(text)
    except ValueError:
        std = 0.0
    if not 0 < std < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor 'he'")
    return std


def _epochs(text: str) -> tuple[int, ...]:
    """An argparse type: "30,50" as (30, 50)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of epochs such as 30,50,60")
    return tuple(int(part) for part in parts)
