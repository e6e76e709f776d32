"""Transfer learning: trained nets with other classes, and layers with the weights of others."""

from collections.abc import Sequence

import torch
from torch import nn

from overfeat.errors import InputError
from overfeat.models.overfeat import OverFeat


def check_class_names(names: Sequence[str]) -> None:
    """Raises InputError where a class has the background's name."""
    if "background" in names:
        problem = 'a class is called "background", the name of the detector\'s own last class'
        raise InputError(f"{problem}; rename it in the annotations")


def with_background(net: OverFeat, names: Sequence[str]) -> OverFeat:
    """The net with these classes and the background as its last layer.

    The weights of classes that the net has already are kept, its thresholds are not. Raises InputError as
    `check_class_names`.
    """
    check_class_names(names)
    old, old_names = net.fc_layers[-1], net.class_names
    net.reset_classifier([*names, "background"])
    new, known = net.fc_layers[-1], [name for name in names if name in old_names]
    with torch.no_grad():
        for key, value in new.state_dict().items():  # weight and bias
            source = old.state_dict()[key]
            value[[names.index(name) for name in known]] = source[[old_names.index(name) for name in known]]
    net.background, net.thresholds = True, None
    return net


def copy_matching_weights(layers: nn.ModuleList, source: nn.ModuleList) -> int:
    """Copy the weights of `source` into `layers`, up to the first whose shapes differ; returns their number."""
    count = 0
    for layer, other in zip(layers, source, strict=False):
        if layer.weight.shape != other.weight.shape:
            break
        layer.load_state_dict(other.state_dict())
        count += 1
    return count
