"""Dense evaluation: its options."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfeat.cli.options import add_options, config_from_args
from overfeat.dense.config import DenseConfig, format_scales

if TYPE_CHECKING:
    from overfeat.models.geometry import Size
    from overfeat.models.net import Net


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is evaluated at every position and scale."""
    add_options(parser.add_argument_group("dense evaluation"), DenseConfig)


def dense_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of dense evaluation, as the predictors take them."""
    return vars(config_from_args(DenseConfig, args))


def dense_settings(args: argparse.Namespace, net: "Net") -> dict[str, Any]:
    """Those of the arguments that results depend on, as JSON holds them."""
    stride = net.default_stride if args.stride is None else args.stride
    return {"scales": format_scales(args.scales), "flip": args.flip, "stride": stride}


def note_unseen(path: Path, net: "Net", image: "Size", config: DenseConfig) -> None:
    """A line on stderr where the stride is so large that the windows cover less than half of an image."""
    from tqdm import tqdm

    from overfeat.dense.grid import grids

    own = grids(net, image, config)
    if all(2 * grid.num_positions * math.prod(grid.window) < math.prod(grid.padded) for grid in own):
        count, (height, width) = own[0].num_positions, own[0].window
        windows = f"{count} window{'' if count == 1 else 's'} of {height}x{width} px"
        of_image = f"less than half of its {own[0].scaled[0]}x{own[0].scaled[1]}"
        tqdm.write(f"{path}: {windows}, {of_image}; choose a smaller --stride", file=sys.stderr)
