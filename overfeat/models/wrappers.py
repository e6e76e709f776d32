"""Nets out of what torch wraps them in, and errors in words for what is no net."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from overfeat.errors import ArgumentError, InputError
from overfeat.models.multibox import MultiBox
from overfeat.models.net import Net, Regressor

Nets = Net | Sequence[Net]
ANY_NET = "a net of overfeat.build, load or densify"
OF = {Net: ANY_NET, Regressor: "a box regressor of overfeat.load_regressor", MultiBox: "a model of load_multibox"}


def unwrap(module: Any) -> Any:
    """The module that torch.compile, DataParallel or DistributedDataParallel was given; anything else as it is."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(module, nn.Module) and "_orig_mod" in module._modules:
            module = module._orig_mod
        else:
            return module


def as_net(net: object) -> Net:
    """A net, unwrapped; TypeError for anything else."""
    return _of_kind(net, Net, "net")


def as_nets(nets: object) -> list[Net]:
    """The nets of an ensemble, or one net, unwrapped.

    Raises:
        InputError: For none, and for nets of different classes.
        TypeError: For anything else.
    """
    given = list(nets) if isinstance(nets, (list, tuple, nn.ModuleList)) else [nets]
    if not given:
        raise InputError("an ensemble needs at least one net")
    ensemble = [as_net(net) for net in given]
    if any(net.class_names != ensemble[0].class_names for net in ensemble[1:]):
        raise InputError("the nets of an ensemble must have the same classes in the same order")
    return ensemble


def as_regressor(regressor: object) -> Regressor:
    """A box regressor, unwrapped; ArgumentError for None, what a converted net without boxes has; else TypeError."""
    if regressor is None:
        remedy = "use score_maps or classify, or convert a module that gives scores and boxes"
        raise ArgumentError("regressor", f"must predict boxes, and is None: the net gives none; {remedy}")
    return _of_kind(regressor, Regressor, "regressor")


def as_multibox(model: object) -> MultiBox:
    """A DeepMultiBox model, unwrapped; TypeError for anything else."""
    return _of_kind(model, MultiBox, "model")


def _of_kind(value: object, kind: type, argument: str) -> Any:
    value = unwrap(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"{argument} must be {OF[kind]}, not {_described(value)}")


def _described(value: object) -> str:
    """A value of another kind, and the remedy of common slips."""
    for kind, name in ((Net, "net"), (Regressor, "box regressor"), (MultiBox, "DeepMultiBox model")):
        if isinstance(value, kind):
            return f"a {name}; are the arguments in another order?"
    if isinstance(value, (str, os.PathLike)):
        return f"the path {str(value)!r}; overfeat.load and its siblings read weights"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__}; overfeat.densify(module, window) makes a net of it"
    return type(value).__name__
