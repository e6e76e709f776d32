"""`overfeat export`: a net for ONNX Runtime, OpenVINO, TensorRT, or torch.export.

Write a net, with its boxes if it has them, as an ONNX file or a torch.export program for images of any size. Window,
stride and class names are in the metadata. A module of your own that pads needs --borders neighbours.

Examples:
    overfeat export run/net.safetensors net.onnx
    overfeat export squeezenet.onnx --borders neighbours --stride 32
    overfeat export net.pt2 --module net.py:make_net --weights state.pt --window 96 --borders neighbours
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.command import Commands, add_command
from overfeat.cli.module import BoxModuleOptions
from overfeat.cli.net import add_net_options, load_net
from overfeat.cli.options import add_options
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError, printable

if TYPE_CHECKING:
    from overfeat.models.box_regressor import BoxRegressor


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "export", run, __doc__)
    help = "a net of overfeat's own, as --weights (default: SqueezeNet, which ships)"
    parser.add_argument("source", nargs="?", type=Path, metavar="FROM", help=help)
    parser.add_argument("target", type=Path, metavar="TO", help="the file to write, .onnx or .pt2")
    add_net_options(parser, module=BoxModuleOptions)
    add_options(parser, DenseConfig, skip=("scales", "flip", "memory_limit"))


def run(args: argparse.Namespace) -> int:
    """Export the net."""
    from overfeat.export import export

    if args.source and args.weights:
        raise InputError(f"{args.source} and {args.weights}: name the weights once")
    args.weights = args.source or args.weights
    net = load_net(args)
    print(f"tracing the net for {printable(args.target)}, up to half a minute", file=sys.stderr, flush=True)
    names = export(net, args.target, regressor=_regressor(args), stride=args.stride)
    (height, width), stride = net.geometry.window, net.geometry.stride(args.stride or net.default_stride)
    print(f"{printable(args.target)}: {' and '.join(names)} of windows of {height}x{width} px, {stride} px apart")
    return 0


def _regressor(args: argparse.Namespace) -> "BoxRegressor | None":
    """That in the file of a net of overfeat's own."""
    from overfeat.models.checkpoint import find_regressor
    from overfeat.training.distributed import choose_device

    if args.module or not args.weights:
        return None
    regressor = find_regressor(args.weights)
    return None if regressor is None else regressor.to(choose_device(args.device))
