"""The net that a command uses: its options, and loading it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from overfeat.cli.assets import SHIPPED_CLASSIFIER, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.module import (
    ModuleOptions,
    add_module_options,
    load_densified,
    module_settings,
    refuse_module_options,
)
from overfeat.cli.results import digest
from overfeat.cli.state_dict import TORCH_SUFFIXES
from overfeat.errors import InputError

if TYPE_CHECKING:
    from overfeat.models.multibox import MultiBox
    from overfeat.models.net import Net, Regressor
    from overfeat.models.overfeat import OverFeat

AnyNet = TypeVar("AnyNet", bound="Net")


def add_net_options(
    parser: argparse.ArgumentParser, *, released: bool = True, ensemble: bool = False,
    module: type[ModuleOptions] | None = None,
) -> None:  # fmt: skip
    """Options of the net.

    Args:
        released: Also for the raw weights of 2013, which have no boxes.
        ensemble: For several nets.
        module: Also for the user's own module, with these options.
    """
    group = parser.add_argument_group("net")
    text = "weights written by overfeat (safetensors; default: those that ship)"
    text += "; the scores of several nets are averaged" if ensemble else ""
    group.add_argument("--weights", type=Path, nargs="+" if ensemble else None, metavar="FILE", help=text)
    if released:
        text = "folder with the released net_weight_0 (fast) and net_weight_1 (accurate)"
        group.add_argument("-d", "--data-dir", type=Path, metavar="DIR", help=text)
        group.add_argument("-l", "--large-net", action="store_true", help="the accurate net of --data-dir")
    else:
        parser.set_defaults(data_dir=None, large_net=False)
    group.add_argument("--labels", type=Path, metavar="FILE", help="text file of class names, one a line")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    if module:
        add_module_options(parser, module)
    else:
        parser.set_defaults(module=None, module_config=None)


def load_net(args: argparse.Namespace) -> "Net":
    """The net of --module, --weights, -d and -l, for commands with --module; by default SqueezeNet, which ships."""
    if args.module:
        return _adopt(load_densified(args), args)
    if args.weights or args.data_dir or args.large_net:
        if args.weights and args.weights.suffix in TORCH_SUFFIXES:
            remedy = "name the module that it is for: --module FILE.py:NAME --window PIXELS"
            raise InputError(f"{args.weights}: not a net of overfeat's own, which are .safetensors; {remedy}")
        return load_overfeat(args)
    from overfeat.densify.squeezenet import squeezenet

    refuse_module_options(args, "the net that ships", allowed=("borders",))
    return _adopt(squeezenet().with_borders(args.borders), args)


def load_overfeat(args: argparse.Namespace) -> "OverFeat":
    """The net of --weights, -d and -l; by default the shipped one."""
    from overfeat.models.architecture import RELEASED_FILES
    from overfeat.models.checkpoint import load
    from overfeat.models.released import load_released

    if args.module_config:
        refuse_module_options(args, "nets without --module")
    if args.weights and args.data_dir:
        raise InputError("--weights and --data-dir both name weights; give one of them")
    if args.large_net and not args.data_dir:
        needs = "-l is the accurate net, which needs its weights: -d FOLDER with the released net_weight_1; "
        raise InputError(needs + "other weights are chosen with --weights")
    if args.data_dir:
        name = "accurate" if args.large_net else "fast"
        return _adopt(load_released(args.data_dir / RELEASED_FILES[name], name), args)
    return _adopt(load(args.weights or SHIPPED_WEIGHTS), args)


def _adopt(net: AnyNet, args: argparse.Namespace) -> AnyNet:
    """The net with the names of --labels, on --device."""
    from overfeat.models.released import read_labels
    from overfeat.training.distributed import choose_device

    if args.labels:
        net.class_names = read_labels(args.labels, net.num_classes)
    return net.to(choose_device(args.device))


def load_ensemble(args: argparse.Namespace) -> "list[OverFeat]":
    """The nets of several --weights, which have the same classes; else the one net of `load_overfeat`."""
    from overfeat.models.checkpoint import load
    from overfeat.training.distributed import choose_device

    if not args.weights or len(args.weights) == 1:
        return [load_overfeat(argparse.Namespace(**vars(args) | {"weights": args.weights and args.weights[0]}))]
    if args.data_dir or args.labels or args.large_net:
        raise InputError("an ensemble is given by --weights alone")
    nets = [load(path).to(choose_device(args.device)) for path in args.weights]
    for net, path in zip(nets, args.weights, strict=True):
        if net.class_names != nets[0].class_names:
            raise InputError(f"{path}: has other classes than {args.weights[0]}; the nets of an ensemble share them")
    return nets


def load_localizer(args: argparse.Namespace) -> "tuple[Net, Regressor]":
    """The net of the options, and the box regressor in its file; by default the shipped ones (digits)."""
    from overfeat.models.checkpoint import load_regressor

    if args.module:
        return _load_with_boxes(args)
    args.weights = args.weights or _shipped(SHIPPED_WEIGHTS)
    net = load_overfeat(args)
    return net, load_regressor(args.weights).to(net.device)


def _shipped(weights: Path) -> Path:
    """The weights that ship, with a line on stderr."""
    print("the net is the one that ships, for handwritten digits; --weights takes another", file=sys.stderr)
    return weights


def load_detector(args: argparse.Namespace) -> "tuple[Net, Regressor]":
    """The detector of the options; by default the shipped one (digits)."""
    from overfeat.models.checkpoint import find_regressor

    if args.module:
        converted, boxes = _load_with_boxes(args)
        if not converted.background and converted.activation == "softmax":
            remedy = "give --background if its last class is that, --no-logits for probabilities of each class alone"
            raise InputError(f"{args.module}: no detector, since it has no background class; {remedy}")
        return converted, boxes
    args.weights = args.weights or _shipped(SHIPPED_DETECTOR)
    net, regressor = load_overfeat(args), find_regressor(args.weights)
    if regressor is None or not net.background:
        lacks = "no box regressor" if regressor is None else "no background class"
        raise InputError(f"{args.weights}: no detector, since it has {lacks}; train one with `overfeat train detector`")
    return net, regressor.to(net.device)


def _load_with_boxes(args: argparse.Namespace) -> "tuple[Net, Regressor]":
    """The net of --module, and the boxes that it gives."""
    net = _adopt(load_densified(args), args)
    if net.regressor is None:
        remedy = "return scores [N, classes] and boxes [N, 4] or [N, 4 * classes]"
        raise InputError(f"{args.module}: gives no boxes; {remedy}")
    return net, net.regressor


def load_multibox_nets(args: argparse.Namespace) -> "tuple[MultiBox, OverFeat | None]":
    """DeepMultiBox's two nets: that of --weights, and that of --classifier if it is given."""
    from overfeat.models.checkpoint import load, load_multibox
    from overfeat.models.released import read_labels
    from overfeat.multibox.predict import label_names
    from overfeat.training.distributed import choose_device

    if not args.weights:
        raise InputError("DeepMultiBox needs --weights: none ship; train some with `overfeat train multibox`")
    model, net = load_multibox(args.weights), load(args.classifier) if args.classifier else None
    if model.class_names is not None and net is not None:
        raise InputError(f"{args.weights}: its boxes have classes already; leave --classifier out")
    named = net or model
    if args.labels:
        if named.class_names is None:
            raise InputError(f"--labels {args.labels}: class-agnostic boxes have no names; give --classifier")
        own = read_labels(args.labels, len(label_names(model, net)))
        named.class_names = [*own, *named.class_names[len(own) :]]
    device = choose_device(args.device)
    return model.to(device), net and net.to(device)


def net_settings(args: argparse.Namespace, net: "Net") -> dict:
    """What identifies the net in the settings of results: the SHA-256 of its files, and the class names."""
    from overfeat.models.architecture import RELEASED_FILES

    if args.module:
        return {"classes": net.class_names, **module_settings(args, net)}
    if args.data_dir:
        path = args.data_dir / RELEASED_FILES["accurate" if args.large_net else "fast"]
        return {"weights": digest(path), "classes": net.class_names}
    shipped = {} if args.weights else {"borders": args.borders}
    return {"weights": digest(args.weights or SHIPPED_CLASSIFIER), "classes": net.class_names, **shipped}


def multibox_settings(args: argparse.Namespace) -> dict:
    """What identifies DeepMultiBox's two nets in the settings of results."""
    files = {"weights": args.weights, "classifier": args.classifier}
    return {name: path and digest(path) for name, path in files.items()}
