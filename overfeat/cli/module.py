"""The user's own module as the net of a command: its options, and its conversion."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overfeat.cli.module_source import ModuleSource, load_module, parse_module
from overfeat.cli.options import add_options, config_from_args, refuse_options
from overfeat.cli.results import digest
from overfeat.errors import ArgumentError, InputError
from overfeat.options import Options, option

if TYPE_CHECKING:
    from overfeat.densify.net import DensifiedNet
    from overfeat.models.net import Net


def parse_window(text: str) -> int | tuple[int, int]:
    """Parse a side in pixels, or HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither pixels, such as 96, nor HEIGHTxWIDTH, such as 96x128")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


@dataclass(frozen=True)
class ModuleOptions(Options):
    """How a module becomes a net, see `overfeat.densify`."""

    module: ModuleSource | None = option(
        None, "the function without arguments in a Python file that returns the net, a torch.nn.Module; also "
        "PACKAGE.MODULE:NAME; --weights is then its state dict, .safetensors or of torch.save",
        parse=parse_module, metavar="FILE.py:NAME",
    )  # fmt: skip
    window: int | tuple[int, int] | None = option(
        None, "pixels of the windows that the module classifies, a side or HEIGHTxWIDTH", parse=parse_window,
        metavar="PIXELS",
    )  # fmt: skip
    mean: tuple[float, ...] = option(
        (0.0,), "subtracted from pixels in 0..255, one number or one a channel; the mean of pixels in 0..1 times 255",
        metavar="X[,X,...]",
    )  # fmt: skip
    std: tuple[float, ...] = option(
        (1.0,), "their divisors after that; 255 for a module that takes pixels in 0..1", metavar="X[,X,...]"
    )
    channel_order: Literal["RGB", "BGR"] = option("RGB", "of the module's input")
    logits: bool = option(True, "the module's outputs are logits; --no-logits: probabilities already")
    borders: Literal["exact", "neighbours"] = option(
        "exact", "what padding sees inside an image: exact, zeros, as in a cropped window; neighbours, the image, "
        "which is faster and another classifier; also of the net that ships"
    )  # fmt: skip


@dataclass(frozen=True)
class BoxModuleOptions(ModuleOptions):
    """How a module that gives boxes beside its scores becomes a net."""

    box_coder: Literal["xyxy", "cxcywh"] = option("xyxy", "how the module's boxes are coded")
    background: bool = option(False, "the module's last class is the background")


def add_module_options(parser: argparse.ArgumentParser, config: type[ModuleOptions] = ModuleOptions) -> None:
    """The options of the user's own module."""
    parser.set_defaults(module_config=config)
    add_options(parser.add_argument_group("a module of your own"), config)


def module_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options as `densify` takes them, but the module and its background."""
    config = vars(config_from_args(args.module_config, args))
    return {name: _single(value) for name, value in config.items() if name not in ("module", "background")}


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def module_settings(args: argparse.Namespace, net: "Net") -> dict[str, Any]:
    """What identifies the converted net in the settings of results, however it came by its weights."""
    file = Path(args.module.file)
    source = digest(file) if file.is_file() else None
    return {"module": str(args.module), "source": source, "weights": _digest_weights(net), **module_arguments(args)} | {
        "background": net.background
    }


def _digest_weights(net: "Net") -> str:
    """SHA-256 of all parameters and buffers."""
    import torch

    total = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def refuse_module_options(args: argparse.Namespace, mode: str, allowed: Sequence[str] = ()) -> None:
    """Raises ArgumentError where an option of a module is given in a mode that has no use for it."""
    refuse_options(args, [field.name for field in fields(args.module_config) if field.name not in allowed], mode)


def load_densified(args: argparse.Namespace) -> "DensifiedNet":
    """The net of --module, with the state dict of --weights if given. Raises InputError."""
    from torch import nn
    from torch.export import ExportedProgram

    refuse_options(args, ("data_dir", "large_net"), "--module")
    if args.window is None:
        raise ArgumentError("window", "must be given with --module: the pixels of the windows that it classifies")
    module = load_module(args.module)
    if args.weights:
        from overfeat.cli.state_dict import load_state_dict

        load_state_dict(module, args.weights)
    from overfeat.densify.convert import densify

    convolves = isinstance(module, ExportedProgram) or any(isinstance(m, nn.Conv2d) for m in module.modules())
    channels = None if convolves else 3  # those of the images, where no convolution has its own
    net = densify(module, **module_arguments(args), channels=channels, name=args.module.name)
    if net.in_channels not in (1, 3):
        problem = f"takes images of {net.in_channels} channels, and the command line reads RGB"
        raise InputError(f"{args.module}: {problem}; use overfeat.densify in Python")
    net.background = getattr(args, "background", False)
    return net
