"""Dense evaluation: its options."""

import argparse
import re
from typing import Any

from overfeat.dense.config import MEMORY_LIMIT, Scale, Scales, SixScales
from overfeat.options import mebibytes


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is evaluated at every position and scale."""
    group = parser.add_argument_group("dense evaluation")
    group.add_argument(
        "--scales",
        type=scale_list,
        metavar="LIST",
        help="'six', the net's six scales; some of them, such as six:1,2,4,6; factors of the image's own size, such as "
        "0.5,1.0; sizes HEIGHTxWIDTH, such as 245x317, turned as the image is (default: six; a detector's own)",
    )
    group.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="default: %(default)s")
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also evaluate the mirror image (default: as the net was trained)",
    )
    add_memory_limit(group)


def add_memory_limit(group: argparse._ActionsContainer) -> None:
    """--memory-limit."""
    group.add_argument(
        "--memory-limit",
        type=mebibytes,
        default=MEMORY_LIMIT,
        metavar="MIB",
        help="memory for maps; larger images are evaluated in tiles (default: 1024)",
    )


def dense_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of dense evaluation, as the predictors take them."""
    return {"scales": args.scales, "flip": args.flip, "stride": args.stride, "memory_limit": args.memory_limit}


def dense_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the arguments that results depend on, as JSON holds them."""
    return {"scales": args.scales and str(args.scales), "flip": args.flip, "stride": args.stride}


def scale_list(text: str) -> Scales:
    """An argparse type: "six", "six:1,2,4,6" or a list of factors and sizes, "0.5,245x317"."""
    name, colon, numbers = text.strip().lower().partition(":")
    if name == "six":
        chosen = re.findall(r"[1-6]", numbers) if colon else "123456"
        if colon and not re.fullmatch(r"[1-6](,[1-6])*", numbers):
            raise argparse.ArgumentTypeError(f"{text!r}: the six scales have the numbers 1 to 6, as in six:1,2,4,6")
        return SixScales(*map(int, chosen))
    return [_scale(part.strip().lower()) for part in text.split(",")]


def _scale(text: str) -> Scale:
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        height, width = text.split("x")
        return int(height), int(width)
    if re.fullmatch(r"\d*\.\d*[1-9]\d*|[1-9]\d*\.0*", text):
        return float(text)
    hint = f"; a factor is written {text}.0, the net's own scale six:{text}" if text.isdecimal() else ""
    raise argparse.ArgumentTypeError(f"{text!r} is neither six, a factor such as 0.5, nor HEIGHTxWIDTH{hint}")
