"""`overfeat evaluate`: error rates or average precision of a net on a data set."""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from overfeat.classification.evaluate import ALL_WAYS, WAYS, evaluate_classifier
from overfeat.cli import common
from overfeat.cli.detect import DETECTION_OPTIONS, add_detection_options, add_multibox_options, multibox_options
from overfeat.cli.localize import add_merge_options, fraction
from overfeat.data.annotated import Annotated, align_boxes
from overfeat.data.image_folder import align, read_image_folder
from overfeat.data.images import MAX_PIXELS
from overfeat.data.readers.ilsvrc import read_ignore_list, read_ilsvrc, read_pairs
from overfeat.data.walk import subsample
from overfeat.detection.evaluate import evaluate_detection
from overfeat.errors import InputError
from overfeat.files import Journal, atomic_write, check_result
from overfeat.localization.evaluate import evaluate_localization
from overfeat.metrics.classification import error_table
from overfeat.metrics.report import precision_table
from overfeat.models.checkpoint import load, load_regressor
from overfeat.multibox.evaluate import evaluate_multibox, rate_table
from overfeat.multibox.predict import OVERLAP, names_of
from overfeat.training.distributed import choose_device
from overfeat.visualize import check_picture, figure_class, multibox, precision_recall


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="error rates or average precision on a data set", description="Measure a trained net."
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    classifier = tasks.add_parser(
        "classifier",
        help="top-1 and top-5 error",
        description="Top-1 and top-5 error by every way of voting in the paper's table 2, as a table and as "
        "JSON. Several --weights vote as a committee. Every image is evaluated at all six scales.",
        epilog="example: overfeat evaluate classifier --data scenes/test --weights runs/a/net.safetensors",
    )
    classifier.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="one folder a class; with --devkit the flat folder of validation images",
    )
    classifier.add_argument("--devkit", type=Path, metavar="DIR", help="ILSVRC2012 development kit")
    classifier.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="several are a committee (default: the shipped net)",
    )
    classifier.add_argument("-d", "--data-dir", type=Path, metavar="DIR", help="folder with the released weights")
    classifier.add_argument("-l", "--large-net", action="store_true", help="the accurate net of --data-dir")
    classifier.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    classifier.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    classifier.add_argument(
        "--voting",
        nargs="+",
        choices=ALL_WAYS,
        default=WAYS,
        metavar="WAY",
        help=f"any of: {'; '.join(ALL_WAYS)} (default: the first six)",
    )
    classifier.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mirror images vote too (default: as the net was trained)",
    )
    classifier.add_argument("--limit", type=common.positive, metavar="N", help="only N images, evenly spaced")
    classifier.add_argument(
        "--memory",
        type=common.positive,
        default=1024,
        metavar="MIB",
        help="memory for maps (default: %(default)s)",
    )
    classifier.add_argument(
        "--max-pixels",
        type=common.positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger images (default: %(default)s)",
    )
    classifier.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the results as JSON")
    classifier.set_defaults(run=run)
    _add_localization(tasks)
    _add_detector(tasks)
    _add_multibox(tasks)


def _add_annotated(parser: argparse.ArgumentParser, dense: bool = True) -> None:
    """The flags of what is evaluated on images with boxes; dense: at all their places."""
    common.add_box_options(parser.add_argument_group("data"), common.TESTING)
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only N images, evenly spaced")
    parser.add_argument(
        "--max-pixels", type=common.positive, default=MAX_PIXELS, metavar="N", help="skip larger images"
    )
    common.add_net_options(parser, released=False)
    if dense:
        common.add_dense_options(parser)


def _add_localization(tasks) -> None:
    parser = tasks.add_parser(
        "localization",
        help="localization error",
        description="Localization error as ILSVRC counts it, with one guess and with five: wrong unless a guess "
        "names the class of an object and overlaps its box by half.",
        epilog="example: overfeat evaluate localization --data scenes/test.json --weights run/net.safetensors",
    )
    _add_annotated(parser)
    parser.add_argument("--ignore_list", type=Path, metavar="FILE", help="numbers of images not to count, one a line")
    add_merge_options(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the results as JSON")
    parser.set_defaults(run=_run_localization)


def _run_localization(args: argparse.Namespace) -> int:
    if args.out:
        check_result(args.out)
    net = common.load_net(args)
    regressor = load_regressor(args.weights or common.SHIPPED_WEIGHTS).to(net.device)
    data = common.read_boxes(args, args.data, common.TESTING, args.split)
    if args.devkit:
        common.adopt_names(net, data.class_names)
    data = align_boxes(data, net.class_names)
    names = ("scales", "flip", "stride", "threshold", "match", "average", "share")
    options = {name: getattr(args, name) for name in names}
    ignore_list = read_ignore_list(args.ignore_list) if args.ignore_list else ()
    results = evaluate_localization(
        net, regressor, data, ignore_list, args.max_pixels, args.limit, memory=args.memory << 20, **options
    )
    print(f"{results['images']} images of {args.data}")
    print(error_table({"localization": results["errors"]}))
    return _kept(results, args.out)


def _add_detector(tasks) -> None:
    parser = tasks.add_parser(
        "detector",
        help="average precision of a detector",
        description="Average precision of each class, and their mean, as ILSVRC, PASCAL VOC (all points), VOC 2007 (11 "
        "points) and COCO (at an IoU of 0.5, and the mean over 0.5 to 0.95) count it.",
        epilog="example: overfeat evaluate detector --data photos/test --weights run/net.safetensors",
    )
    _add_annotated(parser)
    parser.add_argument(
        "--ignore_list", type=Path, metavar="FILE",
        help="ILSVRC's: lines of an image's number from 1 and a class that is not to count there",
    )  # fmt: skip
    add_detection_options(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE",
        help="write the results, with VOC's curves, as JSON; a second run goes on where one was killed",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw precision against recall as PNG")
    parser.set_defaults(run=_run_detector)


def _run_detector(args: argparse.Namespace) -> int:
    _check_places(args, ("ap", "unreadable"))
    net, regressor = common.load_detector(args)
    data = common.read_boxes(args, args.data, common.TESTING, args.split)
    if args.ignore_list and data.problems:
        raise InputError("--ignore_list counts the images from 1, and some are left out; put them right instead")
    data = align_boxes(data, net.class_names[:-1])
    options = {name: getattr(args, name) for name in DETECTION_OPTIONS}
    ignore_list = read_pairs(args.ignore_list) if args.ignore_list else ()
    settings = {**options, **common.weights_note(args, net), **_of_data(data)}
    journal = _journal(args.out, settings)
    results = evaluate_detection(
        net, regressor, data, ignore_list, args.max_pixels, args.limit, journal, memory=args.memory << 20, **options
    )
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects; average precision in %")
    print(precision_table(results))
    return _finish(args, results, journal, precision_recall)


def _check_places(args: argparse.Namespace, keys: Collection[str]) -> None:
    """Before the work: that -o, for results with these keys, and --plot can be written."""
    if args.out:
        check_result(args.out, keys)
    if args.plot:
        figure_class()
        check_picture(args.plot)
        if args.out and args.out.resolve() == args.plot.resolve():
            raise InputError(f"{args.plot}: named by -o and by --plot; name two files")


def _finish(
    args: argparse.Namespace, results: dict, journal: Journal | None, draw: Callable[[dict, Path], None]
) -> int:
    """Write what is to be kept, and draw it where a picture is wanted; gives the exit status."""
    status = _kept(results, args.out)
    if journal:
        journal.finish()
    if args.plot:
        draw(results, args.plot)
        print(f"drawn to {args.plot}")
    return status


def _of_data(data: Annotated) -> dict:
    """What results say of the data that they are of."""
    folders = sorted({str(sample.path.resolve().parent) for sample in data.samples})
    return {"data": data.describe(), "folders": folders}


def _journal(out: Path | None, settings: dict) -> Journal | None:
    """What keeps the results of single images, where there is a file for all."""
    if out is None:
        return None
    journal = Journal(out.with_name(f".images-{out.name}"), settings)
    if journal.done:
        print(f"{len(journal.done)} images are done already", file=sys.stderr)
    elif journal.dropped:
        print("what an earlier, unfinished run with other settings found is not used", file=sys.stderr)
    return journal


def _add_multibox(tasks) -> None:
    parser = tasks.add_parser(
        "multibox",
        help="DeepMultiBox: objects found by so many boxes, average precision",
        description="The share of the objects that the best 1, 2, ... boxes of an image find, and the average "
        "precision of boxes of anything; with --classifier that of each class, and detection@5 and classification@5 "
        "with 1 to 25 boxes classified.",
        epilog="example: overfeat evaluate multibox --data photos/test --weights run/net.safetensors --classifier "
        "what/net.safetensors",
    )
    _add_annotated(parser, dense=False)
    add_multibox_options(parser)
    parser.add_argument(
        "--threshold", type=fraction, default=OVERLAP, metavar="T",
        help="boxes that overlap a surer one by a larger IoU go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE",
        help="write the results as JSON; a second run goes on where one was killed",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the two curves as PNG")
    parser.set_defaults(run=_run_multibox)


def _run_multibox(args: argparse.Namespace) -> int:
    _check_places(args, ("rate", "unreadable"))
    model, net = common.load_boxes(args)
    data = common.read_boxes(args, args.data, common.TESTING, args.split)
    if net is not None or model.class_names is not None:
        data = align_boxes(data, names_of(model, net))
    options = multibox_options(args)
    settings = {**options, **common.multibox_note(args), **_of_data(data)}
    journal = _journal(args.out, settings)
    results = evaluate_multibox(model, net, data, args.max_pixels, args.limit, journal, **options)
    results["settings"] = settings
    print(f"{results['images']} images of {args.data} with {results['objects']} objects")
    print(rate_table(results))
    if "ap" in results:
        print(f"average precision in % of the {args.top} surest boxes")
        print(precision_table(results))
    return _finish(args, results, journal, multibox)


def run(args: argparse.Namespace) -> int:
    if args.out:
        check_result(args.out)
    if args.weights and len(args.weights) > 1:
        if args.data_dir or args.labels or args.large_net:
            raise InputError("a committee is given by --weights alone")
        device = choose_device(args.device)
        nets = [load(path).to(device) for path in args.weights]
        for net, path in zip(nets, args.weights, strict=True):
            if net.class_names != nets[0].class_names:
                raise InputError(f"{path}: has other classes than {args.weights[0]}; a committee needs the same")
    else:
        args.weights = args.weights[0] if args.weights else None
        nets = [common.load_net(args)]
    folder = read_ilsvrc(args.devkit, args.data, "validation") if args.devkit else read_image_folder(args.data)
    if args.devkit:
        for net in nets:
            common.adopt_names(net, folder.class_names)
    samples = subsample(align(folder, nets[0].class_names).samples, args.limit)
    results = evaluate_classifier(nets, samples, args.voting, args.flip, args.memory << 20, args.max_pixels)
    print(f"{results['images']} images of {args.data}, {len(nets)} net{'s' if len(nets) > 1 else ''}")
    print(error_table(results["errors"]))
    if not (nets[0].flip if args.flip is None else args.flip):
        print("without mirror images: 5 of the 10 views, and each scale once")
    return _kept(results, args.out)


def _kept(results: dict, out: Path | None) -> int:
    """Write the results where they are wanted and name what is not in them; gives the exit status."""
    if out:
        with atomic_write(out) as part:
            part.write_text(json.dumps(results, indent=1))
        print(f"written to {out}")
    for message in results["unreadable"]:
        print(f"not counted: {message}")
    return 1 if results["unreadable"] else 0
