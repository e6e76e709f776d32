"""`overfeat compare-borders`: what exact borders cost, and how much neighbours differ from them.

Print what windows share and how many multiplications that saves with either of --borders; then, in every window of the
images, how often the best class is the same and the mean total variation distance of the scores.

Examples:
    overfeat compare-borders photo.jpg
    overfeat compare-borders photos/ --module net.py:make_net --weights state.pt --window 96 --stride 8
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.command import Commands, add_command
from overfeat.cli.images import ImageWork, add_image_options, find_images, process_images
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net
from overfeat.cli.options import add_options, refuse_options
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.compare import BorderComparison
    from overfeat.densify.net import DensifiedNet


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "compare-borders", run, __doc__)
    add_image_options(parser)
    add_net_options(parser, released=False, module=ModuleOptions)
    add_options(parser.add_argument_group("dense evaluation"), DenseConfig, skip=("flip",))


def run(args: argparse.Namespace) -> int:
    """Compare the borders on the images."""
    from overfeat.dense.compare import combine
    from overfeat.densify.net import DensifiedNet

    refuse_options(args, ("borders",), "compare-borders")
    net, images = load_net(args), find_images(args)
    if not isinstance(net, DensifiedNet):
        raise InputError("compare-borders is for --module and the net that ships; leave --weights out")
    print(f"{net}\n")
    work = _Comparison(args, net)
    status = process_images(args, images, work)
    if len(work.comparisons) > 1:
        print(f"all images: {combine(work.comparisons)}")
    return status


class _Comparison(ImageWork):
    titled = False

    def __init__(self, args: argparse.Namespace, net: "DensifiedNet"):
        super().__init__(args)
        self.net, self.comparisons = net, list["BorderComparison"]()

    def process(self, path: Path, image: "Tensor") -> "BorderComparison":
        from overfeat.dense.compare import compare_borders

        scales, stride, memory_limit = self.args.scales, self.args.stride, self.args.memory_limit
        return compare_borders(self.net, image, scales=scales, stride=stride, memory_limit=memory_limit)

    def show(self, path: Path, entry: "BorderComparison") -> None:
        self.comparisons.append(entry)
        print(f"{printable(path)}: {entry}")
