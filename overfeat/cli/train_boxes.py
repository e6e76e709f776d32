"""`overfeat train regressor` and `overfeat train detector`: heads that learn from annotated boxes."""

import argparse
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from overfeat.cli.annotated import (
    TRAINING,
    VALIDATION,
    add_annotated_options,
    adopt_class_names,
    read_annotated,
    report_problems,
    splits_in,
)
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.dense import scale_list
from overfeat.cli.training import Help, add_loop, check_dropout, config_of, tell
from overfeat.data.annotated import Annotated, align_boxes, readable
from overfeat.data.images import MAX_PIXELS
from overfeat.data.resize import MAX_PIXELS as MAX_RESIZED
from overfeat.dense.config import SixScales
from overfeat.dense.scales import BEST_OBJECT_SIZE, MAX_SCALE_FACTOR, choose_scales
from overfeat.detection.train import (
    NEGATIVES,
    TILES,
    DetectorTask,
    check_names,
    detector_from,
    fitting,
    longer_sides,
    net_for,
    tiles_for,
)
from overfeat.errors import InputError, shorten
from overfeat.localization.train import LOSSES, RegressorTask
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat, build
from overfeat.ops.boxes import BOX_CODERS
from overfeat.options import positive
from overfeat.training.distributed import choose_device
from overfeat.training.sampler import derive_seed
from overfeat.training.trainer import train

BOX_TRAINING = {"optimizer": "adam", "lr": 0.001, "epochs": 12, "lr_milestones": "6,8,10,11"}


def add_regressor(heads) -> None:
    parser = heads.add_parser(
        "regressor",
        help="boxes for a trained net, from images with boxes",
        description="Train a box regressor on the last maps of a trained net (section 4.2), at all places of all "
        "scales. The files written hold the net and the regressor.",
        epilog="example: overfeat train regressor --data scenes --from net.safetensors --out run",
        formatter_class=Help,
    )
    add_annotated(parser)
    head = parser.add_argument_group("net")
    head.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="WEIGHTS", help="the trained net (safetensors)"
    )
    _add_boxes(head)
    head.add_argument("--dropout", type=float, default=0.0, metavar="P", help="on the hidden layers")
    head.add_argument("--loss", choices=LOSSES, default="l2", help="squared difference, or 1 - IoU of the boxes")
    head.add_argument("--scales", type=scale_list, metavar="LIST", help="as `overfeat classify` (default: all six)")
    head.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="of the places that train")
    head.add_argument("--train-backbone", action="store_true", help="train the net's layers and classes as well")
    add_loop(parser)
    parser.set_defaults(run=_run_regressor, batch=32, **BOX_TRAINING)


def add_detector(heads) -> None:
    parser = heads.add_parser(
        "detector",
        help="a net that finds any number of objects, from images with boxes",
        description="Train a net with a background class and a box regressor (section 5), on parts of the images at "
        "sizes that are chosen from the boxes. Images may be of any size.",
        epilog="example: overfeat train detector --data annotated-photos --out run",
        formatter_class=Help,
    )
    data = add_annotated(parser)
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
    head.add_argument("--negatives-per-tile", type=positive, default=16, metavar="N", help="of these in each part")
    head.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="of the places that train")
    _add_boxes(head)
    head.add_argument("--dropout", type=float, default=0.2, metavar="P", help="on the hidden layers of the classes")
    add_loop(parser)
    parser.set_defaults(run=_run_detector, batch=16, maps=None, **BOX_TRAINING)


def add_annotated(parser: argparse.ArgumentParser):
    """The flags of what is trained on boxes, as a group."""
    data = parser.add_argument_group("data")
    add_annotated_options(data, TRAINING)
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
    head.add_argument("--form", choices=tuple(BOX_CODERS), default="xyxy", help="how a box is written: its edges; or "
                      "its centre and the logarithms of its sides")  # fmt: skip
    head.add_argument("--per-class", action="store_true", help="a box for every class; otherwise one for all")
    head.add_argument(
        "--maps", choices=("pooled", "unpooled"), default="pooled",
        help="what boxes are seen on: the pooled maps, as in the paper, or those before, which tell better where (the "
        "default of detectors with the small net)",
    )  # fmt: skip
    head.add_argument("--hidden", type=positive, nargs=2, metavar="N", help="channels of the two hidden layers "
                      "(default: 4096 1024, less for smaller nets)")  # fmt: skip


def read_training_data(args: argparse.Namespace) -> tuple[Annotated, Annotated | None]:
    """What to train on, and what to judge every epoch by."""
    data, validation = read_annotated(args, args.data, TRAINING, args.split), None
    beside = args.data if args.data.is_dir() else args.data.parent if args.data.stem in TRAINING else None
    if args.validation:
        more = args.validation_images, args.validation_boxes
        validation = read_annotated(args, args.validation, VALIDATION, None, *more)
    elif beside and not args.devkit and not args.images and set(VALIDATION) & set(splits_in(beside)):
        validation = read_annotated(args, beside, VALIDATION)
    return data, validation


def read_checked(args: argparse.Namespace) -> tuple[Annotated, Annotated | None]:
    """The same, with labels that count alike and without a class called background, once every image has been read."""
    data, validation = read_training_data(args)
    if validation:
        validation = align_boxes(validation, data.class_names, "the training data")
    check_names(data.class_names)  # before all images are read
    data, validation = (found and readable(found, args.max_pixels, args.skip_invalid) for found in (data, validation))
    for found in filter(None, (data, validation)):
        report_problems(found, "images that cannot be read")
    return data, validation


def _run_regressor(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_dropout(args.dropout)
    net = checkpoint.load(args.source)
    data, validation = read_training_data(args)
    if args.devkit:
        adopt_class_names(net, data.class_names)
    data, validation = (found and align_boxes(found, net.class_names) for found in (data, validation))
    torch.manual_seed(derive_seed(args.seed))
    regressor = BoxRegressor(
        net.architecture,
        net.num_foreground_classes if args.per_class else None,
        box_coder=args.form,
        hidden=args.hidden,
        box_features=args.maps,
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
        whole=args.train_backbone,
        max_pixels=args.max_pixels,
    )
    boxes = sum(len(sample.labels) for sample in data.samples)
    tell(f"{net.architecture.name} net, {len(data)} images with {boxes} boxes, {len(task.data)} with all scales")
    train(task, config, args.out, args.resume)
    return 0


def _run_detector(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_dropout(args.dropout)
    data, validation = read_checked(args)
    torch.manual_seed(derive_seed(args.seed))
    net, regressor, source = _detector_start(args, data)
    tiles = args.tiles or tiles_for(len(data))
    task = DetectorTask(
        net,
        regressor,
        data,
        config,
        validation,
        negatives=args.negatives,
        count=args.negatives_per_tile,
        tiles=tiles,
        stride=args.stride,
        fixed=args.fixed,
        max_pixels=args.max_pixels,
    )
    told = [name for name in ("net", "source", "scales", "tiles") if getattr(args, name)]
    tell(*choices(data, net, source, tiles, told))
    train(task, config, args.out, args.resume)
    return 0


def _detector_start(args: argparse.Namespace, data: Annotated) -> tuple[OverFeat, BoxRegressor, Path | None]:
    """The net and the boxes that training starts from, and the file they are of."""
    source, cuda = args.source, choose_device(args.device).type == "cuda"
    if source is None and (args.net or net_for(longer_sides(data), cuda)) == "small":
        source = SHIPPED_WEIGHTS
    if source is not None and str(source) != "none":
        if args.source and args.net:
            raise InputError(f"--from {source} says which net it is; leave --net {args.net} out")
        net, known = checkpoint.load(source), checkpoint.find_regressor(source)
    else:
        if args.fixed:
            raise InputError("--fixed leaves the feature layers as they are, so they must come from a trained net")
        source, known = None, None
        net = build(args.net or net_for(longer_sides(data), cuda), len(data.class_names))
    same = net.class_names[: len(data.class_names)] == data.class_names
    net = detector_from(net, data.class_names)
    net.flip, net.dropout = args.flip, args.dropout
    net.scale_factors = args.scales or choose_scales(longer_sides(data), net.architecture.window)
    if args.context and net.context is None:
        net.add_context()
    elif not args.context:
        net.context = None
    classes = len(data.class_names) if args.per_class else None
    # Large windows have finer pooled maps, and unpooled ones would make most of the net's weights.
    box_features = args.maps or ("unpooled" if net.architecture.name == "small" else "pooled")
    regressor = BoxRegressor(
        net.architecture, classes, box_coder=args.form, hidden=args.hidden, box_features=box_features
    )
    if known and known.to_json() == regressor.to_json() and (classes is None or same):
        regressor = known
    return net, regressor, source


def choices(data: Annotated, net: OverFeat, source: Path | None, tiles: int, told: Collection[str]) -> list[str]:
    """In words: what there is to learn, how, why, and what cannot be learnt. told: names of what was asked for."""
    sides, window, stride = longer_sides(data), net.architecture.window, net.architecture.fine_stride
    easy = np.concatenate([sample.labels[~sample.difficult] for sample in data.samples])
    counts = np.bincount(easy, minlength=len(data.class_names))
    empty = sum(not len(sample.labels) for sample in data.samples)
    scale_factors = ", ".join(f"{zoom:g}" for zoom in net.scale_factors)
    if "net" in told or ("source" in told and source):
        why_net = "as told"
    else:
        why_net = "for any boxes" if net.architecture.name == "small" else "for boxes as large as these, on a GPU"
    why_zooms = (
        "as told"
        if "scales" in told
        else f"so that nearly every object is about {BEST_OBJECT_SIZE:g} of the window at one"
    )
    lines = [
        f"data: {data.describe()}, {empty} images without a box",
        f"boxes: longer sides of {sides.min():g} to {sides.max():g} px, median {np.median(sides):g}",
        f"net: {net.architecture.name}, window {window} px, {why_net} (--net), "
        + (f"starting from {source} (--from)" if source else "with new weights (--from)"),
        f"sizes: images are searched at {scale_factors} times their size, {why_zooms} (--scales)",
        f"parts: {tiles} of each image and epoch, {'as told' if 'tiles' in told else f'for {TILES} or more'} (--tiles)",
    ]
    lost = int((~fitting(data, net)).sum())
    if lost:
        lines.append(f"warning: {lost} boxes are too small or too large for these sizes and teach little")
    tiny = int((sides * max(net.scale_factors) < stride).sum())
    if tiny:
        lines.append(f"warning: {tiny} boxes are smaller than the {stride} px between places, even at the largest size")
    height, width = max((sample.size for sample in data.samples), key=math.prod)
    if height * width * max(net.scale_factors) ** 2 > MAX_RESIZED:
        largest = f"{width}x{height} px is too large to be searched at {max(net.scale_factors):g} times its size"
        lines.append(f"warning: an image of {largest}; cut it up, or give --scales")
    absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if absent:
        lines.append(
            f"warning: classes without a box that is not difficult, which will never be found: {shorten(absent)}"
        )
    return lines


def _zooms(text: str) -> tuple[float, ...]:
    """An argparse type: "0.5,1.0" as (0.5, 1.0); 1 is refused, since elsewhere it is the first of six scales."""
    scale_factors = scale_list(text)
    if isinstance(scale_factors, SixScales) or not all(
        isinstance(zoom, float) and zoom <= MAX_SCALE_FACTOR for zoom in scale_factors
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of factors up to {MAX_SCALE_FACTOR} such as 0.5,0.7,1.0")
    return tuple(sorted(set(scale_factors)))
