"""`overfeat profile`: where the time of an image's evaluation goes."""

import argparse
import json
from pathlib import Path

from overfeat.cli import common
from overfeat.data.images import MAX_PIXELS
from overfeat.errors import InputError
from overfeat.files import atomic_write, check_result, ensure_dir
from overfeat.models.checkpoint import find_regressor
from overfeat.models.overfeat import build
from overfeat.profiling.profile import REPEATS, profile
from overfeat.profiling.table import table
from overfeat.training.distributed import choose_device
from overfeat.visualize import check_picture, figure_class, stage_times

UNTRAINED = ("fast", "accurate")


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "profile",
        help="time by scale and layer, as a fraction of what the machine can do",
        description="Time the evaluation of an image: each scale on its own, and all of it as it is done, with boxes "
        "and merging where the weights hold boxes. Rates stand beside the best that large matrix products and "
        "convolutions reach here, measured in the same run.",
        epilog="example: overfeat profile photo.jpg --net accurate -o out/",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--max-pixels", type=common.positive, default=MAX_PIXELS, metavar="N", help="refuse larger ones"
    )
    parser.add_argument(
        "--net", choices=UNTRAINED, help="time this net with random weights and 1,000 classes, which takes as long"
    )
    parser.add_argument("--repeats", type=common.positive, default=REPEATS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER",
        help="write profile.json, trace.json (for chrome://tracing) and profile.png (needs the extra demo)",
    )  # fmt: skip
    common.add_net_options(parser)
    common.add_dense_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.out:
        figure_class()
        ensure_dir(args.out)
        check_result(args.out / "profile.json", ("grids", "whole"))
        check_picture(args.out / "profile.png")
        check_result(args.out / "trace.json", ("traceEvents",))
    if args.net and (args.weights or args.data_dir):
        raise InputError(f"--net {args.net} is for a net with random weights; leave --net out, or the weights")
    regressor = None
    if args.net:
        net = build(args.net).eval().to(choose_device(args.device))
        net.init_weights(None)  # N(0, 0.01) fades to nothing over so many layers
    else:
        net = common.load_net(args)
        if not args.data_dir:
            regressor = find_regressor(args.weights or common.SHIPPED_WEIGHTS)
            regressor = regressor and regressor.to(net.device)
    image = common.read_for(net, args.image, args.max_pixels)
    trace = args.out and args.out / "trace.json"
    results = {"command": args.line} | profile(
        net, image, args.scales, args.flip, args.stride, args.memory << 20, regressor, args.repeats, trace
    )
    print(table(results))
    if args.out:
        with atomic_write(args.out / "profile.json") as part:
            part.write_text(json.dumps(results, indent=1))
        stage_times(results, args.out / "profile.png")
        print(f"written to {args.out}")
    return 0
