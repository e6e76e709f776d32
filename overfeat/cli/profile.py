"""`overfeat profile`: time by scale and layer, as a fraction of the measured peak.

Time the evaluation of an image: each scale on its own, and all of it as it is done, with boxes and merging where the
weights hold boxes. Rates are compared with the highest of large GEMMs and convolutions in the same run.

Examples:
    overfeat profile photo.jpg
    overfeat --fast profile photo.jpg --net accurate -o out/
    overfeat profile photo.jpg --module net.py:make_net --window 96 --stride 8
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments
from overfeat.cli.images import add_max_pixels, read_enlarged
from overfeat.cli.module import ModuleOptions, refuse_module_options
from overfeat.cli.net import add_net_options, load_net
from overfeat.cli.results import add_out
from overfeat.data.formats import IMAGE_FORMATS
from overfeat.errors import InputError
from overfeat.files import check_result, ensure_dir, write_json
from overfeat.options import positive
from overfeat.profiling import REPEATS

if TYPE_CHECKING:
    from overfeat.models.net import Net, Regressor

UNTRAINED = ("fast", "accurate")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "profile", run, __doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE", help=f"a file: {IMAGE_FORMATS}")
    add_max_pixels(parser)
    help = "time this net with random weights and 1,000 classes, which takes as long"
    parser.add_argument("--net", choices=UNTRAINED, help=help)
    help = "times that everything is timed (default: %(default)s)"
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N", help=help)
    help = "write profile.json, trace.json (for chrome://tracing) and profile.png (needs the extra plots)"
    add_out(parser, help)
    add_net_options(parser, module=ModuleOptions)
    add_dense_options(parser)


def run(args: argparse.Namespace) -> int:
    """Time the evaluation and print a table."""
    from overfeat.profiling.profile import profile
    from overfeat.profiling.table import table, title_of
    from overfeat.visualize import stage_times

    with_picture = args.out is not None and _check_folder(args.out)
    net, regressor = _nets(args)
    image = read_enlarged(net, args.image, args.max_pixels)
    trace = args.out and args.out / "trace.json"
    dense = dense_arguments(args)
    timed = profile(net, image, regressor=regressor, repeats=args.repeats, trace=trace, **dense)
    results = {"command": args.line} | timed
    print(table(results))
    if args.out:
        write_json(args.out / "profile.json", results)
        if with_picture:
            titles = [title_of(entry) for entry in (*results["grids"], results["whole"])]
            stage_times(results, titles, args.out / "profile.png")
        print(f"written to {args.out}")
    return 0


def _check_folder(folder: Path) -> bool:
    """Check that the files can be written and overwrite no others; whether matplotlib is there to draw the picture."""
    from overfeat.visualize import check_picture, figure_class

    ensure_dir(folder)
    check_result(folder / "profile.json", ("grids", "whole"))
    check_result(folder / "trace.json", ("traceEvents",))
    try:
        figure_class()
    except InputError as error:
        print(f"overfeat profile: no profile.png: {error}", file=sys.stderr)
        return False
    check_picture(folder / "profile.png")
    return True


def _nets(args: argparse.Namespace) -> "tuple[Net, Regressor | None]":
    """The net to time, and its box regressor if it has one."""
    from overfeat.densify.net import DensifiedNet
    from overfeat.models.architecture import ARCHITECTURES
    from overfeat.models.checkpoint import find_regressor
    from overfeat.models.overfeat import build
    from overfeat.training.distributed import choose_device

    if args.net and (args.weights or args.data_dir or args.module):
        raise InputError(f"--net {args.net} is for a net with random weights; leave --net out, or the weights")
    if args.net:
        refuse_module_options(args, f"--net {args.net}")
        # With the paper's N(0, 0.01) the activations of so many untrained layers vanish.
        architecture = replace(ARCHITECTURES[args.net], init_std=None)
        return build(architecture).eval().to(choose_device(args.device)), None
    net = load_net(args)
    if isinstance(net, DensifiedNet):
        return net, net.regressor
    regressor = find_regressor(args.weights) if args.weights else None
    return net, regressor and regressor.to(net.device)
