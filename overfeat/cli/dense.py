"""Dense evaluation: its options."""

import argparse
from typing import Any

from overfeat.cli.options import add_options, config_from_args
from overfeat.dense.config import DenseConfig, format_scales


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is evaluated at every position and scale."""
    add_options(parser.add_argument_group("dense evaluation"), DenseConfig)


def dense_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of dense evaluation, as the predictors take them."""
    return vars(config_from_args(DenseConfig, args))


def dense_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the arguments that results depend on, as JSON holds them."""
    return {"scales": format_scales(args.scales), "flip": args.flip, "stride": args.stride}
