"""`overfeat evaluate`: error rates or average precision of a net on a data set."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from overfeat.classification.protocols import DEFAULT_PROTOCOLS, PROTOCOLS
from overfeat.cli.annotated import TESTING, add_annotated_options, adopt_class_names, read_annotated
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings
from overfeat.cli.detect import (
    add_multibox_options,
)
from overfeat.cli.images import add_max_pixels
from overfeat.cli.net import (
    add_net_options,
    load_detector,
    load_ensemble,
    load_localizer,
    load_multibox_nets,
    multibox_settings,
    net_settings,
)
from overfeat.cli.options import add_options, config_from_args
from overfeat.cli.results import add_out, add_plot, check_outputs, data_settings, open_journal, write_results
from overfeat.dense.config import DenseConfig
from overfeat.detection.config import DetectionConfig
from overfeat.errors import InputError
from overfeat.localization.config import LocalizationConfig
from overfeat.multibox.config import ProposalConfig
from overfeat.options import positive


def add_parser(commands: Commands) -> None:
    """Add the command and its tasks."""
    parser = commands.add_parser(
        "evaluate",
        help="error rates or average precision on a data set",
        description="Evaluate a trained net on a data set; `overfeat evaluate TASK --help` has examples.",
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK", dest="task")
    _add_classifier(tasks)
    _add_localization(tasks)
    _add_detector(tasks)
    _add_multibox(tasks)


def _add_max_images(parser: argparse.ArgumentParser) -> None:
    help = "evaluate only N images, evenly spaced"
    parser.add_argument("--max-images", type=positive, metavar="N", help=help)
    add_max_pixels(parser)


def _add_data_and_net(parser: argparse.ArgumentParser, dense: bool = True) -> None:
    """The options of annotated images and of the net; dense: and of dense evaluation."""
    add_annotated_options(parser.add_argument_group("data"), TESTING)
    _add_max_images(parser)
    add_net_options(parser, released=False)
    if dense:
        add_dense_options(parser)


# Classification


def _add_classifier(tasks: Commands) -> None:
    parser = add_command(
        tasks,
        "classifier",
        _run_classifier,
        summary="top-1 and top-5 error",
        description="Top-1 and top-5 error by the protocols of the paper's table 2, as a table and as JSON. The scores "
        "of several --weights are averaged.",
        examples=(
            "overfeat evaluate classifier --data digits/test --weights run/net.safetensors",
            "overfeat evaluate classifier --data digits/test --voting 'centre crop' '6 scales, fine'",
        ),
    )
    help = "one folder a class; with --devkit the flat folder of validation images"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=help)
    parser.add_argument("--devkit", type=Path, metavar="DIR", help="the ILSVRC2012 development kit")
    _add_max_images(parser)
    add_net_options(parser, ensemble=True)
    group = parser.add_argument_group("voting")
    help = f"any of: {'; '.join(PROTOCOLS)} (default: the first {len(DEFAULT_PROTOCOLS)})"
    group.add_argument("--voting", nargs="+", choices=PROTOCOLS, default=DEFAULT_PROTOCOLS, metavar="NAME", help=help)
    add_options(group, DenseConfig, skip=("scales", "stride"))
    add_out(parser)


def _run_classifier(args: argparse.Namespace) -> int:
    from overfeat.classification.evaluate import evaluate_classifier
    from overfeat.data.image_folder import align
    from overfeat.data.readers.ilsvrc import read_ilsvrc
    from overfeat.data.readers.image_folder import read_image_folder
    from overfeat.metrics.classification import error_table

    check_outputs(args, ("errors", "unreadable"))
    nets = load_ensemble(args)
    folder = read_ilsvrc(args.devkit, args.data, "validation") if args.devkit else read_image_folder(args.data)
    if args.devkit:
        for net in nets:
            adopt_class_names(net, folder.class_names)
    results = evaluate_classifier(
        nets,
        align(folder, nets[0].class_names).samples,
        protocols=args.voting,
        flip=args.flip,
        memory_limit=args.memory_limit,
        max_images=args.max_images,
        max_pixels=args.max_pixels,
    )
    print(f"{results['images']} images of {args.data}, {len(nets)} net{'s' if len(nets) > 1 else ''}")
    print(error_table(results["errors"]))
    if not (nets[0].flip if args.flip is None else args.flip):
        print("without mirror images: 5 of the 10 views, and each scale once")
    return write_results(args, results)


# Localization


def _add_localization(tasks: Commands) -> None:
    parser = add_command(
        tasks,
        "localization",
        _run_localization,
        summary="localization error",
        description="Localization error as ILSVRC counts it, with one prediction and with five: wrong unless a "
        "prediction has the class of an object and an IoU of 0.5 or more with its box.",
        examples=("overfeat evaluate localization --data digits/test.json --weights run/net.safetensors",),
    )
    _add_data_and_net(parser)
    help = "numbers of images that do not count, one a line"
    parser.add_argument("--ignore-list", type=Path, metavar="FILE", help=help)
    add_options(parser.add_argument_group("boxes"), LocalizationConfig, skip=("top_k",))
    add_out(parser)


def _run_localization(args: argparse.Namespace) -> int:
    from overfeat.data.annotated import align_boxes
    from overfeat.data.readers.ilsvrc import read_ignore_list
    from overfeat.localization.evaluate import evaluate_localization
    from overfeat.localization.predict import localize
    from overfeat.metrics.classification import error_table

    check_outputs(args, ("errors", "unreadable"))
    net, regressor = load_localizer(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if args.devkit:
        adopt_class_names(net, data.class_names)
    data = align_boxes(data, net.class_names)
    config = config_from_args(LocalizationConfig, args)
    results = evaluate_localization(
        partial(
            localize,
            net,
            regressor,
            match_threshold=config.match_threshold,
            relative_threshold=config.relative_threshold,
            **dense_arguments(args),
        ),
        data,
        ignore_list=read_ignore_list(args.ignore_list) if args.ignore_list else (),
        max_images=args.max_images,
        max_pixels=args.max_pixels,
    )
    print(f"{results['images']} images of {args.data}")
    print(error_table({"localization": results["errors"]}))
    return write_results(args, results)


# Detection


def _add_detector(tasks: Commands) -> None:
    parser = add_command(
        tasks,
        "detector",
        _run_detector,
        summary="average precision of a detector",
        description="Average precision of each class, and their mean, as ILSVRC, PASCAL VOC (all points), VOC 2007 (11 "
        "points) and COCO (at an IoU of 0.5, and the mean over 0.5 to 0.95) count it.",
        examples=("overfeat evaluate detector --data photos/test --weights run/net.safetensors --plot curves.png",),
    )
    _add_data_and_net(parser)
    help = "ILSVRC's: lines of an image's number from 1 and a class that does not count there"
    parser.add_argument("--ignore-list", type=Path, metavar="FILE", help=help)
    add_options(parser.add_argument_group("boxes"), DetectionConfig)
    add_out(parser, resumable=True)
    add_plot(parser, "precision against recall")


def _run_detector(args: argparse.Namespace) -> int:
    from overfeat.data.annotated import align_boxes
    from overfeat.data.readers.ilsvrc import read_pairs
    from overfeat.detection.evaluate import evaluate_detection
    from overfeat.detection.predict import detect
    from overfeat.metrics.report import precision_table
    from overfeat.visualize import precision_recall

    check_outputs(args, ("ap", "unreadable"))
    net, regressor = load_detector(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if args.ignore_list and data.problems:
        raise InputError("--ignore-list counts the images from 1, and some are left out; put them right instead")
    data = align_boxes(data, net.class_names[:-1])
    config = config_from_args(DetectionConfig, args)
    settings = {**asdict(config), **dense_settings(args), **net_settings(args, net), **data_settings(data)}
    journal = open_journal(args.out, settings)
    ignored = read_pairs(args.ignore_list) if args.ignore_list else ()
    results = evaluate_detection(
        partial(detect, net, regressor, **asdict(config), **dense_arguments(args)),
        data,
        ignore_list=ignored,
        max_images=args.max_images,
        max_pixels=args.max_pixels,
        journal=journal,
    )
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects; average precision in %")
    print(precision_table(results))
    return write_results(args, results, journal, precision_recall)


# DeepMultiBox


def _add_multibox(tasks: Commands) -> None:
    parser = add_command(
        tasks,
        "multibox",
        _run_multibox,
        summary="DeepMultiBox: recall by number of boxes, average precision",
        description="Recall with the 1, 2, ... highest-confidence boxes of an image, and the average precision of "
        "class-agnostic boxes; with --classifier also that of each class, and detection@5 and classification@5 with 1 "
        "to 25 boxes classified.",
        examples=(
            "overfeat evaluate multibox --data photos/test --weights run/net.safetensors --plot curves.png",
            "overfeat evaluate multibox --data photos/test --weights run/net.safetensors --classifier net.safetensors",
        ),
    )
    _add_data_and_net(parser, dense=False)
    add_multibox_options(parser)
    add_out(parser, resumable=True)
    add_plot(parser, "recall by number of boxes, and precision against recall,")


def _run_multibox(args: argparse.Namespace) -> int:
    from overfeat.data.annotated import align_boxes
    from overfeat.metrics.report import precision_table
    from overfeat.multibox.evaluate import evaluate_multibox, rate_table
    from overfeat.multibox.predict import label_names
    from overfeat.visualize import multibox

    check_outputs(args, ("rate", "unreadable"))
    model, net = load_multibox_nets(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if net is not None or model.class_names is not None:
        data = align_boxes(data, label_names(model, net))
    config = config_from_args(ProposalConfig, args)
    settings = {**asdict(config), **multibox_settings(args), **data_settings(data)}
    journal = open_journal(args.out, settings)
    results = evaluate_multibox(
        model, net, data, config, max_images=args.max_images, max_pixels=args.max_pixels, journal=journal
    )
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects")
    print(rate_table(results))
    if "ap" in results:
        print(f"average precision in % of the {config.max_detections} highest-confidence boxes")
        print(precision_table(results))
    return write_results(args, results, journal, multibox)
