"""`overfeat evaluate`: error rates or average precision of a net on a data set."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from overfeat.classification.config import DEFAULT_PROTOCOLS, PROTOCOLS
from overfeat.cli import net as nets
from overfeat.cli.annotated import TESTING, add_annotated_options, adopt_class_names, read_annotated
from overfeat.cli.command import Commands, HelpFormatter, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings
from overfeat.cli.detect import add_multibox_options
from overfeat.cli.images import add_max_pixels
from overfeat.cli.options import add_options, config_from_args, refuse_options
from overfeat.cli.results import add_out, check_outputs, data_settings, open_journal, write_results
from overfeat.data.formats import IMAGE_FORMATS
from overfeat.dense.config import DenseConfig
from overfeat.detection.config import IOUS, MAX_MISTAKES, MIN_SCORE, DetectionConfig
from overfeat.errors import InputError
from overfeat.localization.config import LocalizationConfig
from overfeat.multibox.config import ProposalConfig
from overfeat.options import fraction, fractions, positive


def add_parser(commands: Commands) -> None:
    """Add the command and its tasks."""
    parser = commands.add_parser(
        "evaluate",
        help="error rates or average precision on a data set",
        description="Evaluate a trained net on a data set.",
        epilog="examples:\n  overfeat evaluate classifier --data test --weights run/net.safetensors\n"
        "  overfeat evaluate detector --data test.json --weights net.safetensors",
        formatter_class=HelpFormatter,
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK", dest="task")
    _add_classifier(tasks)
    _add_localization(tasks)
    _add_detector(tasks)
    _add_multibox(tasks)


def _add_task(tasks: Commands, name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """Add a task on annotated images, with the options of the data and the net."""
    parser = add_command(tasks, name, run, run.__doc__)
    add_annotated_options(parser.add_argument_group("data"), TESTING)
    _add_limits(parser)
    nets.add_net_options(parser, released=False)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    help = "evaluate only N images, evenly spaced"
    parser.add_argument("--max-images", type=positive, metavar="N", help=help)
    add_max_pixels(parser)


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    return {"max_images": args.max_images, "max_pixels": args.max_pixels}


def _add_outputs(parser: argparse.ArgumentParser, curves: str) -> None:
    add_out(parser, "write the results as JSON; a second run continues a killed one", "FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw {curves} as PNG (needs the extra plots)")


# Classification


def _add_classifier(tasks: Commands) -> None:
    parser = add_command(tasks, "classifier", _run_classifier, _run_classifier.__doc__)
    help = "one folder a class; with --devkit the flat folder of validation images. Images are "
    help += f"{IMAGE_FORMATS} files"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=help)
    parser.add_argument("--devkit", type=Path, metavar="DIR", help="the ILSVRC2012 development kit")
    _add_limits(parser)
    nets.add_net_options(parser, ensemble=True)
    group = parser.add_argument_group("voting")
    help = f"any of: {'; '.join(PROTOCOLS)} (default: the first {len(DEFAULT_PROTOCOLS)})"
    group.add_argument("--voting", nargs="+", choices=PROTOCOLS, default=DEFAULT_PROTOCOLS, metavar="NAME", help=help)
    add_options(group, DenseConfig, skip=("scales", "stride"))
    add_out(parser, "write the results as JSON", "FILE")


def _run_classifier(args: argparse.Namespace) -> int:
    """`overfeat evaluate classifier`: top-1 and top-5 error.

    Top-1 and top-5 error by the protocols of the paper's table 2, as a table and as JSON. The scores of several
    --weights are averaged.

    Examples:
        overfeat evaluate classifier --data digits/test --weights run/net.safetensors
        overfeat evaluate classifier --data digits/test --voting 'centre crop' '6 scales, fine'
    """
    from overfeat.classification.evaluate import evaluate_classifier
    from overfeat.data.image_folder import align
    from overfeat.data.readers.ilsvrc import read_ilsvrc
    from overfeat.data.readers.image_folder import read_image_folder
    from overfeat.metrics.classification import error_table

    check_outputs(args, ("errors", "unreadable"))
    ensemble = nets.load_ensemble(args)
    folder = read_ilsvrc(args.devkit, args.data, "validation") if args.devkit else read_image_folder(args.data)
    for net in ensemble if args.devkit else ():
        adopt_class_names(net, folder.class_names)
    images, dense = (
        align(folder, ensemble[0].class_names).samples,
        {"flip": args.flip, "memory_limit": args.memory_limit},
    )
    results = evaluate_classifier(ensemble, images, protocols=args.voting, **dense, **_limits(args))
    print(f"{results['images']} images of {args.data}, {len(ensemble)} net{'s' if len(ensemble) > 1 else ''}")
    print(error_table(results["errors"]))
    if not (ensemble[0].flip if args.flip is None else args.flip):
        print("without mirror images: 5 of the 10 views, and each scale once")
    return write_results(args, results)


# Localization


def _add_localization(tasks: Commands) -> None:
    parser = _add_task(tasks, "localization", _run_localization)
    add_dense_options(parser)
    help = "a text file of numbers of images that do not count, one a line"
    parser.add_argument("--ignore-list", type=Path, metavar="FILE", help=help)
    add_options(parser.add_argument_group("boxes"), LocalizationConfig, skip=("top_k",))
    add_out(parser, "write the results as JSON", "FILE")


def _run_localization(args: argparse.Namespace) -> int:
    """`overfeat evaluate localization`: localization error.

    Localization error as ILSVRC counts it, with one prediction and with five: wrong unless a prediction has the class
    of an object and an IoU of 0.5 or more with its box.

    Examples:
        overfeat evaluate localization --data digits/test.json --weights run/net.safetensors
    """
    from overfeat.data.annotated import align_boxes
    from overfeat.data.readers.ilsvrc import read_ignore_list
    from overfeat.localization.evaluate import evaluate_localization
    from overfeat.localization.predict import localize
    from overfeat.metrics.classification import error_table

    check_outputs(args, ("errors", "unreadable"))
    net, regressor = nets.load_localizer(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if args.devkit:
        adopt_class_names(net, data.class_names)
    ignored = read_ignore_list(args.ignore_list) if args.ignore_list else ()
    config = config_from_args(LocalizationConfig, args)
    predict = partial(localize, net, regressor, **asdict(config), **dense_arguments(args))
    results = evaluate_localization(predict, align_boxes(data, net.class_names), ignore_list=ignored, **_limits(args))
    print(f"{results['images']} images of {args.data}")
    print(error_table({"localization": results["errors"]}))
    return write_results(args, results)


# Detection


def _add_detector(tasks: Commands) -> None:
    parser = _add_task(tasks, "detector", _run_detector)
    add_dense_options(parser)
    help = "ILSVRC's text file: lines of an image's number from 1 and a class that does not count there"
    parser.add_argument("--ignore-list", type=Path, metavar="FILE", help=help)
    add_options(parser.add_argument_group("boxes"), DetectionConfig)
    _add_figures(parser.add_argument_group("precision, recall, F1, confusions, mistakes"))
    _add_outputs(parser, "precision against recall")


def _add_figures(group: argparse._ArgumentGroup) -> None:
    """The options of figures at a score threshold."""
    help = "smallest IoU of a detection with its object; of several the first is that of the mistakes (default: 0.5)"
    group.add_argument("--iou", dest="ious", type=fraction, nargs="+", default=IOUS, metavar="IOU", help=help)
    help = "score threshold; one number, or one for each class, such as 0.5,0.4 (default: that of `detect`: as chosen "
    help += f"in training, else {MIN_SCORE:g}); average precision has none"
    group.add_argument("--min-score", type=fractions, metavar="S", help=help)
    help = "draw the worst misses and false positives into a folder (needs the extra plots)"
    group.add_argument("--mistakes", type=Path, metavar="FOLDER", help=help)
    help = "list and draw N of each kind (default: %(default)s)"
    group.add_argument("--max-mistakes", type=positive, default=MAX_MISTAKES, metavar="N", help=help)


def _run_detector(args: argparse.Namespace) -> int:
    """`overfeat evaluate detector`: average precision, precision, recall and mistakes of a detector.

    Average precision of each class, and their mean, as ILSVRC, PASCAL VOC (all points), VOC 2007 (11 points) and COCO
    (at an IoU of 0.5, and the mean over 0.5 to 0.95) count it; precision, recall and F1 at --min-score, and the score
    with the best F1, by class and by size; which classes are confused; why objects are missed and false positives
    arise, with pictures of the worst (--mistakes).

    Examples:
        overfeat evaluate detector --data photos/test --weights run/net.safetensors --plot curves.png
        overfeat evaluate detector --data photos/test --weights run/net.safetensors --iou 0.4 0.5 --mistakes mistakes/
    """
    from overfeat.data.annotated import align_boxes
    from overfeat.data.readers.ilsvrc import read_pairs
    from overfeat.detection.evaluate import check_ious, detection_figures, detection_report, predict_annotated
    from overfeat.detection.predict import choose_postprocess, detect, lowest_score
    from overfeat.metrics.coco import check_installed
    from overfeat.models.thresholds import check_match_threshold
    from overfeat.visualize import check_mistakes, mistakes, precision_recall

    check_ious(args.ious)
    check_installed()
    if not (args.out or args.mistakes):
        refuse_options(args, ["max_mistakes"], "a run without -o or --mistakes, which hold them")
    check_outputs(args, ("ap", "unreadable"))
    net, regressor = nets.load_detector(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if args.ignore_list and data.problems:
        raise InputError("--ignore-list counts the images from 1, and some are left out; put them right instead")
    if args.mistakes:
        check_mistakes(args.mistakes, [sample.path for sample in data.samples])
    data = align_boxes(data, net.class_names[:-1])
    config = asdict(config_from_args(DetectionConfig, args))
    check_match_threshold(config["match_threshold"], net.num_foreground_classes)
    config["postprocess"] = choose_postprocess(net, config["postprocess"], config["match_threshold"])
    min_score = lowest_score(net, args.min_score, config["postprocess"])
    settings = {**config, **dense_settings(args, net), **nets.net_settings(args, net), **data_settings(data)}
    journal = open_journal(args.out, settings)
    ignored = read_pairs(args.ignore_list) if args.ignore_list else ()
    predict = partial(detect, net, regressor, min_score=0.0, **config, **dense_arguments(args))
    images = predict_annotated(predict, data, journal=journal, **_limits(args))
    figures = {"ious": args.ious, "min_score": min_score, "max_mistakes": args.max_mistakes}
    results = detection_figures(images, data.class_names, ignore_list=ignored, **figures)
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects; average precision in %")
    print(detection_report(results))
    if args.min_score is None and net.thresholds and min_score == net.thresholds.min_score:
        scores = "min scores" if isinstance(min_score, Sequence) else f"min score {min_score:g}"
        print(f"\n{scores}: as chosen on validation images, with the weights")
    if args.mistakes:
        drawn = mistakes(images, results, args.mistakes, max_pixels=args.max_pixels)
        print(f"{' and '.join(f'{count} {plural}' for plural, count in drawn.items())} drawn to {args.mistakes}")
    return write_results(args, results, journal, precision_recall)


# DeepMultiBox


def _add_multibox(tasks: Commands) -> None:
    parser = _add_task(tasks, "multibox", _run_multibox)
    add_multibox_options(parser)
    _add_outputs(parser, "recall by number of boxes, and precision against recall,")


def _run_multibox(args: argparse.Namespace) -> int:
    """`overfeat evaluate multibox`: DeepMultiBox: recall by number of boxes, average precision.

    Recall with the 1, 2, ... highest-confidence boxes of an image, and the average precision of class-agnostic boxes;
    with --classifier also that of each class, and detection@5 and classification@5 with 1 to 25 boxes classified.

    Examples:
        overfeat evaluate multibox --data photos/test --weights run/net.safetensors --plot curves.png
        overfeat evaluate multibox --data photos/test --weights run/net.safetensors --classifier net.safetensors
    """
    from overfeat.data.annotated import align_boxes
    from overfeat.metrics.report import precision_table
    from overfeat.multibox.evaluate import evaluate_multibox, rate_table
    from overfeat.multibox.predict import label_names
    from overfeat.visualize import multibox

    check_outputs(args, ("rate", "unreadable"))
    model, net = nets.load_multibox_nets(args)
    data = read_annotated(args, args.data, TESTING, args.split)
    if net is not None or model.class_names is not None:
        data = align_boxes(data, label_names(model, net))
    config = config_from_args(ProposalConfig, args)
    settings = {**asdict(config), **nets.multibox_settings(args), **data_settings(data)}
    journal = open_journal(args.out, settings)
    results = evaluate_multibox(model, net, data, config, journal=journal, **_limits(args))
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects")
    print(rate_table(results))
    if "ap" in results:
        print(f"average precision in % of the {config.max_detections} highest-confidence boxes")
        print(precision_table(results))
    return write_results(args, results, journal, multibox)
