"""`overfeat train HEAD`: train a classifier, a box regressor, a detector or DeepMultiBox, alone or under torchrun."""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from overfeat.classification.config import TRAINING as CLASSIFIER_TRAINING
from overfeat.classification.config import ClassifierConfig
from overfeat.cli import annotated
from overfeat.cli.annotated import TRAINING, VALIDATION, read_annotated
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.command import Commands, HelpFormatter, add_command
from overfeat.cli.options import add_options, config_from_args, refuse_options
from overfeat.data.formats import IMAGE_FORMATS
from overfeat.detection.config import TRAINING as DETECTOR_TRAINING
from overfeat.detection.config import DetectorConfig
from overfeat.errors import ArgumentError, printable
from overfeat.localization.config import BoxRegressorConfig
from overfeat.multibox.config import BOX_CLASSIFIER_TRAINING, MULTIBOX_TRAINING, BoxClassifierConfig, MultiBoxConfig
from overfeat.options import Options
from overfeat.training.config import BOX_TRAINING, TrainConfig

if TYPE_CHECKING:
    from overfeat.data.annotated import Annotated
    from overfeat.training.task import Task

Built: TypeAlias = "tuple[Task, list[str]]"  # and the lines that describe it


@dataclass(frozen=True)
class Head:
    """One kind of training on the command line."""

    name: str
    build: Callable[[argparse.Namespace, Any, TrainConfig], Built]  # its docstring is the help
    options: type[Options]
    defaults: TrainConfig


def add_parser(commands: Commands) -> None:
    """Add `train` with a parser for each head."""
    parser = commands.add_parser(
        "train",
        help="train a classifier, a box regressor, a detector or DeepMultiBox",
        description="Train a head; a classifier's defaults are the paper's (section 3.1). On several GPUs or "
        "processes: torchrun --nproc_per_node N -m overfeat train HEAD ...",
        epilog="examples:\n  overfeat train classifier --data photos --out run\n"
        "  overfeat train detector --data photos --out run --resume",
        formatter_class=HelpFormatter,
    )
    heads = parser.add_subparsers(required=True, metavar="HEAD", dest="head")
    for head in HEADS:
        _add_head(heads, head)


def _add_head(heads: Commands, head: Head) -> None:
    parser = add_command(heads, head.name, partial(_run, head), head.build.__doc__)
    data = parser.add_argument_group("data")
    if head.options is ClassifierConfig:
        _add_folder_options(data)
    else:
        _add_box_data_options(data)
    add_options(parser.add_argument_group("net and loss"), head.options)
    loop = parser.add_argument_group("training")
    help = "folder for the log, checkpoint and nets: net.safetensors, the last, and best.safetensors, every epoch"
    loop.add_argument("--out", type=Path, required=True, metavar="DIR", help=help)
    help = "continue the interrupted run in --out; to the same weights on a CPU with as many processes as before"
    loop.add_argument("--resume", action="store_true", help=help)
    add_options(loop, TrainConfig, **asdict(head.defaults))


def _run(head: Head, args: argparse.Namespace) -> int:
    """Train; the description is printed by one process of torchrun's."""
    train_config = config_from_args(TrainConfig, args)
    if train_config.lr_schedule == "cosine":
        refuse_options(args, ["lr_milestones"], "the cosine schedule")
    options = config_from_args(head.options, args)  # bad values are reported before the data is read

    from overfeat.training.trainer import train

    task, lines = head.build(args, options, train_config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(*map(printable, lines), sep="\n", flush=True)
    train(task, args.out, resume=args.resume)
    return 0


# Data


def _add_folder_options(group: argparse._ArgumentGroup) -> None:
    help = "a folder of images per class; or a folder that holds this as train, and perhaps validation or val. Images "
    help += f"are {IMAGE_FORMATS} files"
    group.add_argument("--data", type=Path, required=True, metavar="DIR", help=help)
    group.add_argument("--validation", type=Path, metavar="DIR", help="images to validate every epoch on")
    help = "the ILSVRC2012 development kit, for images in its layout"
    group.add_argument("--devkit", type=Path, metavar="DIR", help=help)


def _add_box_data_options(group: argparse._ArgumentGroup) -> None:
    annotated.add_annotated_options(group, TRAINING)
    help = "annotations to validate every epoch on (default: those of validation, val or valid beside the training "
    help += "data, without --images and --devkit)"
    group.add_argument("--validation", type=Path, metavar="PATH", help=help)
    group.add_argument("--validation-images", type=Path, metavar="DIR", help="the images of --validation, as --images")
    group.add_argument("--validation-boxes", type=Path, metavar="DIR", help="the boxes of --validation, as --boxes")


def _read(args: argparse.Namespace) -> "tuple[Annotated, Annotated | None]":
    """Training and validation data."""
    from overfeat.data.readers.annotations import available_splits

    data, validation = read_annotated(args, args.data, TRAINING, args.split), None
    whole = args.data.is_dir() or available_splits(args.data)
    folder = args.data if whole else args.data.parent if args.data.stem in TRAINING else None
    if args.validation:
        more = args.validation_images, args.validation_boxes
        validation = read_annotated(args, args.validation, VALIDATION, None, *more)
    elif folder and not args.devkit and not args.images and set(VALIDATION) & set(available_splits(folder)):
        validation = read_annotated(args, folder, VALIDATION)
    return data, validation


def _read_checked(args: argparse.Namespace) -> "tuple[Annotated, Annotated | None]":
    """Training and validation data with the same classes, of which every image has been read."""
    from overfeat.data.annotated import align_boxes, readable
    from overfeat.models.transfer import check_class_names

    data, validation = _read(args)
    if validation is not None:
        validation = align_boxes(validation, data.class_names, "the training data")
    check_class_names(data.class_names)  # before all images are read
    data = readable(data, args.max_pixels, args.skip_invalid)
    validation = readable(validation, args.max_pixels, args.skip_invalid) if validation else None
    for checked in filter(None, (data, validation)):
        annotated.report_problems(checked, "images that cannot be read")
    return data, validation


def _seed(train: TrainConfig) -> None:
    """Seed the initial weights."""
    import torch

    from overfeat.training.sampler import derive_seed

    torch.manual_seed(derive_seed(train.seed))


# Heads


def _classifier(args: argparse.Namespace, options: ClassifierConfig, train: TrainConfig) -> Built:
    """`overfeat train classifier`: a net, from images sorted into classes.

    Train a net on images sorted into one folder per class.

    Examples:
        overfeat train classifier --data photos --out run --net small
        overfeat train classifier --data photos --out run --net small --resume
    """
    from overfeat.classification.data import read_data
    from overfeat.classification.train import ClassifierTask, build_classifier
    from overfeat.data.image_folder import align
    from overfeat.densify.initial_net import describe_start

    data, validation = read_data(args.data, args.validation, args.devkit)
    _seed(train)
    net, new_layer = build_classifier(data, options)
    data = align(data, net.class_names)
    validation = align(validation, net.class_names) if validation else None
    task = ClassifierTask(net, data, validation, options, train)
    start = f"; fine-tuning {options.init}" if options.init else f"; {describe_start(net, None)}"
    if options.init and new_layer:
        start += " with a new last layer, since its classes differ"
    return task, [f"{net.architecture.name} net, {net.num_classes} classes, {len(data)} images{start}"]


def _regressor(args: argparse.Namespace, options: BoxRegressorConfig, train: TrainConfig) -> Built:
    """`overfeat train regressor`: box regression for a trained net, from images with boxes.

    Train a box regressor on the last maps of a trained net (section 4.2), at all positions of all scales. The files
    written hold the net and the regressor.

    Examples:
        overfeat train regressor --data digits --init net.safetensors --out run
    """
    from overfeat.data.annotated import align_boxes
    from overfeat.localization.train import RegressorTask, build_regressor
    from overfeat.models import checkpoint

    if options.init is None:
        raise ArgumentError("init", "is needed: a trained net")
    net = checkpoint.load(options.init)
    data, validation = _read(args)
    if args.devkit:
        annotated.adopt_class_names(net, data.class_names)
    data = align_boxes(data, net.class_names)
    validation = align_boxes(validation, net.class_names) if validation else None
    _seed(train)
    task = RegressorTask(net, build_regressor(net, options), data, validation, options, train)
    boxes = f"{len(data)} images with {sum(len(sample.labels) for sample in data.samples)} boxes"
    return task, [f"{net.architecture.name} net, {boxes}, {len(task.dataset)} with all scales"]


def _detector(args: argparse.Namespace, options: DetectorConfig, train: TrainConfig) -> Built:
    """`overfeat train detector`: a net that detects any number of objects, from images with boxes.

    Train a net with a background class and a box regressor (section 5), on tiles of the images at scales that are
    chosen from the boxes. Images may be of any size.

    Examples:
        overfeat train detector --data annotated-photos --out run
    """
    from overfeat.detection.build import build_detector, describe_choices
    from overfeat.detection.train import DetectorTask

    data, validation = _read_checked(args)
    _seed(train)
    net, regressor, init = build_detector(data, options, shipped=SHIPPED_WEIGHTS)
    task = DetectorTask(net, regressor, data, validation, options, train)
    return task, describe_choices(data, net, options, train, init)


def _multibox(args: argparse.Namespace, options: MultiBoxConfig, train: TrainConfig) -> Built:
    """`overfeat train multibox`: a net that predicts K boxes in one forward pass, from images with boxes.

    Train DeepMultiBox: K boxes and their confidences from one forward pass over a square image, matched with the
    objects. A second net classifies the boxes (`overfeat train box-classifier`).

    Examples:
        overfeat train multibox --data annotated-photos --out run
    """
    from overfeat.multibox.build import build_multibox, describe_multibox
    from overfeat.multibox.train import MultiBoxTask

    data, validation = _read_checked(args)
    _seed(train)
    model, copied, init = build_multibox(data, options, seed=train.seed, shipped=SHIPPED_WEIGHTS)
    task = MultiBoxTask(model, data, validation, options, train)
    return task, describe_multibox(data, model, options, copied, init)


def _box_classifier(args: argparse.Namespace, options: BoxClassifierConfig, train: TrainConfig) -> Built:
    """`overfeat train box-classifier`: a net that classifies boxes, or rejects them as background.

    Train the second net of DeepMultiBox: a classifier with a background class, on squares around boxes whose IoU with
    an object is at least 0.5, and twice as many around background.

    Examples:
        overfeat train box-classifier --data annotated-photos --out run
    """
    from overfeat.densify.initial_net import describe_start
    from overfeat.multibox.build import build_box_classifier, samples_for
    from overfeat.multibox.data import CROPS_PER_POSITIVE
    from overfeat.multibox.train import BoxClassifierTask

    data, validation = _read_checked(args)
    _seed(train)
    net, init = build_box_classifier(data, options, shipped=SHIPPED_WEIGHTS)
    task = BoxClassifierTask(net, data, validation, options, train)
    start = describe_start(net, init)
    samples = options.samples_per_image or samples_for(len(data), CROPS_PER_POSITIVE)
    return task, [
        f"data: {data.describe()}",
        f"net: {net.architecture.name}, squares of {net.architecture.window} px; {start}",
        f"samples: {samples} squares per image and epoch",
    ]


HEADS = (
    Head("classifier", _classifier, ClassifierConfig, CLASSIFIER_TRAINING),
    Head("regressor", _regressor, BoxRegressorConfig, BOX_TRAINING),
    Head("detector", _detector, DetectorConfig, DETECTOR_TRAINING),
    Head("multibox", _multibox, MultiBoxConfig, MULTIBOX_TRAINING),
    Head("box-classifier", _box_classifier, BoxClassifierConfig, BOX_CLASSIFIER_TRAINING),
)
